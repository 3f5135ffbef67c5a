"""Copying a promotion log into production's store: whole or not at all, whatever fails or is killed when."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import ArtifactError
from deepspec.registry import keys
from deepspec.registry.batches import Batch
from deepspec.registry.errors import DraftDamaged, OtherHistory, PromotionConflict, VersionRecordDamaged
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.publishing import Publishing, describe
from deepspec.registry.version_record import version_record, version_records
from deepspec.serving.names import draft_named
from deepspec.serving.pull import pull
from deepspec.serving.swap import Place
from deepspec.store import Artifact, Store, open_store
from deepspec.store.records import seal
from tests.fixtures.refused import refused
from tests.fixtures.serving import MODEL, promote, roll_back, train
from tests.fixtures.store import Around, ingredients, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def production(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "production"))


def draft(store: Store, name: str) -> Artifact:
    """A draft with all that it was made from, promoted."""
    conversations = put(store, ingredients("conversations", name=name), {"rows.jsonl": b"a private conversation"})
    tokens = put(store, ingredients("tokens", name=name), conversations=conversations)
    made = train(store, name)
    files = {f"draft/{file.name}": file.read_bytes() for file in (made.directory() / "draft").iterdir()}
    made = put(store, ingredients("train", name=name, tokens=True), files, tokens=tokens)
    promote(store, made, str(len(PromotionLog(store.backend).history(MODEL)) + 1))
    return made


def publish(store: Store, production: Store) -> Publishing:
    publishing = Publishing(store, production, PromotionLog(store.backend), MODEL)
    publishing.publish()
    return publishing


def entries(store: Store) -> dict[str, bytes]:
    return {
        path: store.backend.read(path)
        for path in store.backend.list(f"registry/{MODEL}/promotions")
        if not path.rpartition("/")[2].startswith("0.")
    }


def kinds(store: Store) -> set[str]:
    return {path.split("/")[0] for path in store.backend.list("")} - {"leases"}


def test_the_log_is_copied_byte_for_byte_and_the_drafts_with_their_checksums(
    store: Store, production: Store, tmp_path: Path
) -> None:
    first, second = draft(store, "one"), draft(store, "two")
    done = publish(store, production)
    assert (done.written, done.behind, done.notes) == (2, 0, ())
    assert entries(production) == entries(store)
    for made in (first, second):
        copy = production.get("train", made.key)
        assert (copy.digest, copy.verify()) == (made.digest, [])
    assert kinds(production) == {"train", "registry"}  # nothing that users have said
    pulled = pull(
        draft_named(f"models:/{MODEL}@champion", tmp_path, production), production, Place(tmp_path / "serving")
    )
    assert pulled.held.digest == second.digest


def test_a_second_time_nothing_is_written_and_what_is_new_follows(store: Store, production: Store) -> None:
    made = [draft(store, name) for name in ("one", "two")]
    publish(store, production)
    before = set(production.backend.list(""))
    assert publish(store, production).written == 0
    assert set(production.backend.list("")) == before
    made.append(draft(store, "three"))
    assert publish(store, production).written == 1
    roll_back(store)
    roll_back(store)
    assert publish(store, production).written == 2
    assert PromotionLog(production.backend).champion(MODEL).digest == made[0].digest  # type: ignore[union-attr]


def test_before_the_first_promotion_there_is_nothing_to_do(store: Store, production: Store) -> None:
    assert publish(store, production).behind == 0
    assert production.backend.list("") == {}


def test_of_a_long_log_the_drafts_of_champion_and_roll_back_are_copied(store: Store, production: Store) -> None:
    made = [draft(store, f"draft {number}") for number in range(6)]
    publish(store, production)
    assert entries(production) == entries(store)
    assert [production.find("train", one.key) is not None for one in made] == [False] * 4 + [True] * 2


class Killed(BaseException):
    """The process ends at once: nothing tidies up."""


class Dying(Around):
    """A store whose writer is killed at the k-th write: before it, or after it, with the answer lost."""

    def __init__(self, inner: Any, left: int, *, after: bool) -> None:
        super().__init__(inner)
        self.left, self.after, self.dead = left, after, False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name in ("staging", "publish", "create", "put", "delete"):
            return lambda *given, **named: self.write(lambda: found(*given, **named))
        return found

    def write(self, call: Any) -> Any:
        if self.dead:
            raise Killed
        self.left -= 1
        if self.left == 0:
            self.dead = True
            if self.after:
                call()
            raise Killed
        return call()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write_the_old_champion_stays_and_a_retry_completes(
    store: Store, tmp_path: Path, *, after: bool
) -> None:
    """Four entries are missing, one of them a champion that was rolled back: it must never be seen in production."""
    first = draft(store, "one")
    template = open_store(str(tmp_path / "template"))
    publish(store, template)
    draft(store, "bad")
    roll_back(store)
    draft(store, "two")
    last = draft(store, "three")
    for killed_at in range(1, 100):
        production = open_store(str(tmp_path / f"production-{killed_at}"))
        copy_of(template, production)
        dying = Dying(production.backend, killed_at, after=after)
        try:
            publish(store, Store(dying))  # type: ignore[arg-type]
        except Killed:
            whole_champion(production, {first.digest, last.digest})
        if not dying.dead:
            break
        publish(store, production)
        assert entries(production) == entries(store)
        assert whole_champion(production, {last.digest})
    assert killed_at > 10
    assert entries(production) == entries(store)


def copy_of(source: Store, destination: Store) -> None:
    for path in source.backend.list(""):
        target = Path(destination.backend.location, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(source.backend.location, path).read_bytes())


def whole_champion(production: Store, allowed: set[str]) -> bool:
    """The champion in production is one of those that it may be, and all there."""
    champion = PromotionLog(production.backend).champion(MODEL)
    assert champion is not None
    assert champion.digest in allowed
    assert production.get("train", champion.key).verify() == []
    assert version_record(production.backend, MODEL, champion.digest) is not None
    return True


def test_processes_that_catch_up_at_once_end_with_the_same_log(store: Store, production: Store) -> None:
    for number in range(5):
        draft(store, f"draft {number}")
    together, failed = threading.Barrier(3), []

    def catch_up() -> None:
        together.wait()
        try:
            publish(store, production)
        except BaseException as error:  # noqa: BLE001  # a thread's own is shown by no test
            failed.append(error)

    threads = [threading.Thread(target=catch_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert entries(production) == entries(store)
    assert PromotionLog(production.backend).history(MODEL) == PromotionLog(store.backend).history(MODEL)


@pytest.mark.parametrize("longer", [False, True], ids=["instead", "further"])
def test_an_entry_of_productions_own_is_named_and_nothing_is_copied(
    store: Store, production: Store, *, longer: bool
) -> None:
    draft(store, "one")
    draft(store, "two")
    publish(store, production)
    PromotionLog(production.backend).rollback(MODEL, who="ann", reason="slower")
    if not longer:
        draft(store, "three")
    before = set(production.backend.list(""))
    with refused(OtherHistory, "entry 3", "roll back", "ann", "version 1", where=f"{MODEL}/promotions/3.json"):
        publish(store, production)
    assert set(production.backend.list("")) == before


def test_an_entry_that_another_writes_meanwhile_is_named(store: Store, production: Store) -> None:
    draft(store, "one")
    publish(store, production)
    draft(store, "two")

    class Overtaken(Around):
        """A person rolls forward in production while the draft is copied."""

        def publish(self, prefix: str, staging: Path) -> None:
            self.inner.publish(prefix, staging)
            promote(production, train(production, "theirs"), "9")

    with refused(OtherHistory, "entry 2", "promotion"):
        publish(store, Store(Overtaken(production.backend)))  # type: ignore[arg-type]
    assert PromotionLog(production.backend).champion(MODEL).version == "9"  # type: ignore[union-attr]


def test_nobody_promotes_into_a_copy_that_is_not_complete(store: Store, production: Store) -> None:
    draft(store, "one")
    publish(store, production)
    PromotionLog(production.backend).announce(MODEL, Batch(1, 3))
    with refused(PromotionConflict, "from 2 on"):
        promote(production, train(production, "theirs"), "9")


def test_a_draft_that_is_damaged_here_leaves_productions_champion(store: Store, production: Store) -> None:
    first = draft(store, "one")
    publish(store, production)
    second = draft(store, "two")
    flip_a_bit(second)
    with refused(DraftDamaged, "Version 2", second.key[:12], where=MODEL):
        publish(store, production)
    assert PromotionLog(production.backend).champion(MODEL).digest == first.digest  # type: ignore[union-attr]


def test_a_damaged_earlier_champion_hinders_no_promotion(store: Store, production: Store) -> None:
    first, second = draft(store, "one"), draft(store, "two")
    flip_a_bit(first)
    done = publish(store, production)
    assert len(done.notes) == 1
    assert "Version 1" in done.notes[0]
    assert whole_champion(production, {second.digest})


def test_a_draft_that_was_lost_or_changed_in_production_is_copied_again(store: Store, production: Store) -> None:
    made = draft(store, "one")
    publish(store, production)
    weights = production.get("train", made.key).directory() / "draft" / "model.safetensors"
    weights.chmod(0o644)
    weights.unlink()
    assert publish(store, production).written == 0
    assert production.get("train", made.key).verify() == []
    flip_a_bit(production.get("train", made.key))  # its size is right: only a new entry has all of it read
    draft(store, "two")
    roll_back(store)
    publish(store, production)
    assert whole_champion(production, {made.digest})


def flip_a_bit(artifact: Artifact) -> None:
    path = artifact.directory() / "draft" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_other_bytes_under_a_drafts_key_are_left_as_they_are(store: Store, production: Store) -> None:
    train(production, "one", 8192)
    made = train(store, "one")
    assert made.key == next(iter(production.artifacts("train"))).key
    promote(store, made, "1")
    with refused(DraftDamaged, "other bytes", where=MODEL):
        publish(store, production)
    assert entries(production) == {}


def test_a_record_says_what_a_version_was_made_from(store: Store) -> None:
    made = draft(store, "one")
    champion = PromotionLog(store.backend).champion(MODEL)
    assert champion is not None
    record = describe(store, MODEL, champion)
    assert [(one.kind, one.in_store) for one in record.lineage] == [
        ("train", True), ("tokens", False), ("conversations", False)
    ]  # fmt: skip
    assert keys.lineage_in(record.tags)["train"][0] == made.key
    assert b"private" not in json.dumps(record.to_json()).encode()
    record.write(store.backend)
    record.model_copy(update={"card": "another"}).write(store.backend)
    assert version_records(store.backend, MODEL) == [record]


def test_a_damaged_record_of_a_version_is_named(store: Store, production: Store) -> None:
    made = draft(store, "one")
    publish(store, production)
    path = f"registry/{MODEL}/versions/{made.digest}.json"
    production.backend.put(path, production.backend.read(path).replace(b"train", b"trial"))
    with refused(VersionRecordDamaged, "checksum", where=path):
        publish(store, production)
    production.backend.put(path, seal({"format": 9}))
    with refused(ArtifactError, "format 9", where=path):
        publish(store, production)
