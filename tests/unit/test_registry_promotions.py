"""The promotion log: compare-and-set, history, roll back, and damage that is noticed."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deepspec.errors import ArtifactError, GateFailed, RecipeError
from deepspec.gates.verdict import Verdict
from deepspec.registry.batches import Batch, in_force
from deepspec.registry.entries import DraftReference
from deepspec.registry.errors import NothingToRollBackTo, PromotionConflict, PromotionLogDamaged
from deepspec.registry.promotions import PromotionLog
from deepspec.store.backends.contract import MAX_RECORD_BYTES
from deepspec.store.backends.local import LocalBackend
from tests.fixtures.refused import refused
from tests.fixtures.verdicts import judged

MODEL = "demo"


@pytest.fixture
def backend(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path)


@pytest.fixture
def log(backend: LocalBackend) -> PromotionLog:
    return PromotionLog(backend, clock=lambda: datetime(2026, 11, 23, 3, 0, tzinfo=UTC))


def draft(name: str, version: str | None = None) -> DraftReference:
    return DraftReference(kind="calibrate", key=f"key-{name}", digest=f"digest-{name}", version=version)


def verdict_on(challenger: DraftReference, against: DraftReference | None, tau: float = 4.0) -> Verdict:
    return judged(
        tau,
        None if against is None else 3.0,
        challenger_digest=challenger.digest,
        champion_digest=None if against is None else against.digest,
    )


def promote(log: PromotionLog, name: str, version: str | None = None) -> DraftReference:
    challenger = draft(name, version)
    log.promote(MODEL, challenger, verdict_on(challenger, log.champion(MODEL)), who="nightly")
    return challenger


def test_before_the_first_promotion_there_is_nobody(log: PromotionLog) -> None:
    assert log.champion(MODEL) is None
    assert log.last(MODEL) is None
    assert log.history(MODEL) == ()
    assert log.models() == ()


def test_promotions_are_recorded_one_after_the_other(log: PromotionLog, backend: LocalBackend) -> None:
    first, second = promote(log, "a", "1"), promote(log, "b", "2")
    one, two = log.history(MODEL)
    assert (one.number, one.kind, one.champion, one.previous) == (1, "promote", first, None)
    assert (two.number, two.kind, two.champion, two.previous) == (2, "promote", second, first)
    assert two.verdict == verdict_on(second, first)
    assert (two.who, two.when.isoformat()) == ("nightly", "2026-11-23T03:00:00+00:00")
    assert log.champion(MODEL) == second
    assert log.models() == (MODEL,)
    assert log.roots() == {("calibrate", "key-a"), ("calibrate", "key-b")}
    assert sorted(backend.list("")) == [f"registry/demo/promotions/{n}.json" for n in (1, 2)]


def test_the_log_goes_on_after_nine(log: PromotionLog) -> None:
    drafts = [promote(log, f"d{n}") for n in range(12)]
    assert [entry.champion for entry in log.history(MODEL)] == drafts
    assert log.champion(MODEL) == drafts[-1]


def test_models_have_logs_of_their_own(log: PromotionLog) -> None:
    promote(log, "a")
    other = draft("z")
    log.promote("other", other, verdict_on(other, None), who="me")
    assert log.champion(MODEL) == draft("a")
    assert log.champion("other") == other
    assert log.models() == ("demo", "other")


def test_a_refused_challenger_is_not_promoted(log: PromotionLog) -> None:
    champion = promote(log, "a")
    with refused(GateFailed, "τ", where=MODEL):
        log.promote(MODEL, draft("b"), verdict_on(draft("b"), champion, tau=2.0), who="nightly")
    assert log.champion(MODEL) == champion


def test_a_verdict_against_a_former_champion_is_worthless(log: PromotionLog) -> None:
    first = promote(log, "a")
    late = verdict_on(draft("late"), first)
    promote(log, "b")
    with refused(PromotionConflict, "digest-a", "digest-b", where=MODEL):
        log.promote(MODEL, draft("late"), late, who="nightly")
    with refused(PromotionConflict, "no champion", "digest-b", where=MODEL):
        log.promote(MODEL, draft("late"), verdict_on(draft("late"), None), who="nightly")
    assert len(log.history(MODEL)) == 2


def test_a_verdict_holds_again_when_its_champion_is_back(log: PromotionLog) -> None:
    first = promote(log, "a")
    late = verdict_on(draft("late"), first)
    promote(log, "b")
    log.rollback(MODEL, who="me")
    assert log.promote(MODEL, draft("late"), late, who="nightly").number == 4


def test_another_drafts_verdict_is_refused(log: PromotionLog) -> None:
    with refused(PromotionConflict, "digest-b", "digest-a", where=MODEL):
        log.promote(MODEL, draft("a"), verdict_on(draft("b"), None), who="nightly")


def test_promoting_the_champion_again_appends_nothing(log: PromotionLog) -> None:
    champion = promote(log, "a")
    again = log.promote(MODEL, champion, verdict_on(champion, None), who="the resumed run")
    assert (again.number, again.who) == (1, "nightly")
    assert len(log.history(MODEL)) == 1


def test_of_many_concurrent_promoters_one_wins(backend: LocalBackend) -> None:
    verdicts = {name: verdict_on(draft(name), None) for name in "abcdefgh"}
    barrier = threading.Barrier(len(verdicts))
    outcomes: list[str] = []

    def race(name: str) -> None:
        log = PromotionLog(backend)
        barrier.wait()
        try:
            log.promote(MODEL, draft(name), verdicts[name], who=name)
            outcomes.append("won")
        except PromotionConflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=race, args=(name,)) for name in verdicts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert len(PromotionLog(backend).history(MODEL)) == 1


class Interfering(LocalBackend):
    """A backend where something happens just before an entry is created, or its answer gets lost."""

    before_create: Callable[[], None] | None = None
    answer_is_lost = False

    def create(self, path: str, data: bytes) -> bool:
        action, self.before_create = self.before_create, None
        if action is not None:
            action()
        created = super().create(path, data)
        return created and not self.answer_is_lost


def test_losing_the_race_at_the_last_moment(tmp_path: Path) -> None:
    backend = Interfering(tmp_path)
    log = PromotionLog(backend)
    first = promote(log, "a")
    verdict = verdict_on(draft("b"), first)
    backend.before_create = lambda: promote(PromotionLog(LocalBackend(tmp_path)), "faster")
    with refused(PromotionConflict, "digest-a", "digest-faste", where=MODEL):
        log.promote(MODEL, draft("b"), verdict, who="nightly")
    assert [entry.champion for entry in log.history(MODEL)] == [first, draft("faster")]
    backend.before_create = lambda: promote(PromotionLog(LocalBackend(tmp_path)), "third")
    with refused(PromotionConflict, "roll back", where=MODEL):
        log.rollback(MODEL, who="me")
    assert log.champion(MODEL) == draft("third")


def test_a_lost_answer_is_resolved_by_reading_back(tmp_path: Path) -> None:
    backend = Interfering(tmp_path)
    backend.answer_is_lost = True
    log = PromotionLog(backend)
    promote(log, "a")
    promote(log, "b")
    assert log.rollback(MODEL, who="me").number == 3
    assert [entry.champion.key for entry in log.history(MODEL)] == ["key-a", "key-b", "key-a"]


def test_roll_back_appends_the_previous_champion(log: PromotionLog) -> None:
    first, second = promote(log, "a", "1"), promote(log, "b", "2")
    entry = log.rollback(MODEL, who="on call", reason="slower in production")
    assert (entry.number, entry.kind, entry.champion, entry.previous) == (3, "rollback", first, second)
    assert (entry.verdict, entry.who, entry.reason) == (None, "on call", "slower in production")
    assert log.champion(MODEL) == first


def test_repeated_roll_backs_walk_further_back(log: PromotionLog) -> None:
    a, b, c = (promote(log, name) for name in "abc")
    assert log.rollback(MODEL, who="me").champion == b
    assert log.rollback(MODEL, who="me").champion == a
    with refused(NothingToRollBackTo, "no champion", where=MODEL):
        log.rollback(MODEL, who="me")
    d = promote(log, "d")
    assert d not in (a, b, c)
    assert log.rollback(MODEL, who="me").champion == a
    assert [entry.kind for entry in log.history(MODEL)] == ["promote"] * 3 + ["rollback"] * 2 + ["promote", "rollback"]


@pytest.mark.parametrize("to", ["2", "key-b", "digest-b", "digest-b-with-a-long"])
def test_roll_back_to_a_named_draft(log: PromotionLog, to: str) -> None:
    promote(log, "a", "1")
    named = DraftReference(kind="calibrate", key="key-b", digest="digest-b-with-a-long-name", version="2")
    log.promote(MODEL, named, verdict_on(named, log.champion(MODEL)), who="nightly")
    promote(log, "c", "3")
    assert log.rollback(MODEL, to, who="me").champion == named
    # From there, one more step back is what stood below the named draft.
    assert log.rollback(MODEL, who="me").champion == draft("a", "1")


def test_roll_back_names_what_it_cannot_do(log: PromotionLog) -> None:
    with refused(NothingToRollBackTo, "ever promoted", where=MODEL):
        log.rollback(MODEL, who="me")
    promote(log, "a", "1")
    with refused(NothingToRollBackTo, "no champion", where=MODEL):
        log.rollback(MODEL, who="me")
    promote(log, "b", "2")
    with refused(NothingToRollBackTo, "'9'", where=MODEL) as caught:
        log.rollback(MODEL, "9", who="me")
    assert "version 1 (digest-a)" in str(caught.value.remedy)
    with refused(NothingToRollBackTo, "2 past champions", "'digest'", where=MODEL):
        log.rollback(MODEL, "digest", who="me")
    with refused(NothingToRollBackTo, "digest-b", "already", where=MODEL):
        log.rollback(MODEL, "2", who="me")
    assert len(log.history(MODEL)) == 2


def damage(backend: LocalBackend, number: int, change: Callable[[bytes], bytes | None]) -> None:
    path = backend.root / f"registry/{MODEL}/promotions/{number}.json"
    content = change(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (lambda data: data.replace(b"digest-c", b"digest-x"), "checksum"),
        (lambda data: data[:40], "damaged"),
        (lambda data: data[:0], "damaged"),
        (lambda data: bytes([data[0] ^ 0x80]) + data[1:], "damaged"),
        (lambda _: b"[]", "not a JSON object"),
    ],
)
def test_a_damaged_last_entry_stops_everything(
    log: PromotionLog, backend: LocalBackend, change: Callable[[bytes], bytes], flaw: str
) -> None:
    """Falling back to the entry before would silently bring an old champion back."""
    for name in "abc":
        promote(log, name)
    damage(backend, 3, change)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: log.champion(MODEL),
        lambda: log.history(MODEL),
        lambda: log.rollback(MODEL, who="me"),
        lambda: log.promote(MODEL, draft("d"), verdict_on(draft("d"), draft("c")), who="me"),
    )
    for attempt in attempts:
        with refused(PromotionLogDamaged, flaw, where="promotions/3.json"):
            attempt()
    assert len(backend.list("")) == 3


def test_a_missing_entry_is_noticed(log: PromotionLog, backend: LocalBackend) -> None:
    for name in "abc":
        promote(log, name)
    damage(backend, 2, lambda _: None)
    with refused(PromotionLogDamaged, "missing", where="promotions/2.json"):
        log.champion(MODEL)


def test_an_entry_with_a_field_of_another_type_is_named(log: PromotionLog, backend: LocalBackend) -> None:
    import hashlib

    promote(log, "a")

    def forged(data: bytes) -> bytes:
        body = json.loads(data)
        del body["checksum"]
        body["kind"] = "demote"
        checksum = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        return json.dumps({"checksum": checksum, **body}).encode()

    damage(backend, 1, forged)
    with refused(PromotionLogDamaged, "kind", "'promote', 'rollback' or 'unblock'", where="promotions/1.json"):
        log.champion(MODEL)


def test_entries_swapped_between_places_are_noticed(log: PromotionLog, backend: LocalBackend) -> None:
    promote(log, "a")
    promote(log, "b")
    promote(log, "c")
    folder = backend.root / f"registry/{MODEL}/promotions"
    second = (folder / "2.json").read_bytes()
    damage(backend, 3, lambda _: second)
    with refused(PromotionLogDamaged, "entry 2 of demo", where="promotions/3.json"):
        log.champion(MODEL)


def test_a_rewritten_past_does_not_continue(tmp_path: Path, log: PromotionLog, backend: LocalBackend) -> None:
    promote(log, "a")
    promote(log, "b")
    forger = PromotionLog(LocalBackend(tmp_path / "elsewhere"))
    promote(forger, "x")
    forged = (tmp_path / f"elsewhere/registry/{MODEL}/promotions/1.json").read_bytes()
    damage(backend, 1, lambda _: forged)
    with refused(PromotionLogDamaged, "continue", where="promotions/2.json"):
        PromotionLog(backend).history(MODEL)


def test_an_entry_is_read_once_and_what_came_later_is_seen(tmp_path: Path) -> None:
    class Counting(LocalBackend):
        reads = 0

        def read(self, path: str, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
            self.reads += 1
            return super().read(path, max_bytes=max_bytes)

    backend = Counting(tmp_path / "store")
    writer, reader = PromotionLog(LocalBackend(tmp_path / "store")), PromotionLog(backend, remembers=True)
    promote(writer, "a")
    promote(writer, "b")
    assert [reader.history(MODEL), backend.reads] == [reader.history(MODEL), 2]
    promote(writer, "c")
    assert reader.champion(MODEL) == writer.champion(MODEL)
    assert (len(reader.history(MODEL)), backend.reads) == (3, 3)


def test_a_newer_format_is_refused_and_not_called_damaged(log: PromotionLog, backend: LocalBackend) -> None:
    promote(log, "a")

    def newer(data: bytes) -> bytes:
        import hashlib

        body = json.loads(data) | {"format": 3, "something": "new"}
        del body["checksum"]
        checksum = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        return json.dumps({"checksum": checksum, **body}).encode()

    damage(backend, 1, newer)
    with refused(ArtifactError, "format 3", where="promotions/1.json"):
        log.champion(MODEL)


@pytest.mark.parametrize("model", ["", "../evil", "a/b", ".hidden", "x" * 201, "a b"])
def test_a_model_name_cannot_leave_its_folder(log: PromotionLog, model: str) -> None:
    with refused(RecipeError, repr(model), where="model"):
        log.promote(model, draft("a"), verdict_on(draft("a"), None), who="me")


def test_files_that_are_no_entries_are_none_of_its_business(log: PromotionLog, backend: LocalBackend) -> None:
    promote(log, "a")
    backend.create(f"registry/{MODEL}/promotions/notes.txt", b"remember the milk")
    backend.create(f"registry/{MODEL}/promotions/2.json.bak", b"")
    assert log.champion(MODEL) == draft("a")
    promote(log, "b")
    assert len(log.history(MODEL)) == 2


def test_a_batch_counts_once_its_last_entry_is_there(log: PromotionLog, tmp_path: Path) -> None:
    drafts = [promote(log, name) for name in "abcd"]
    entries = [log.record(MODEL, number) for number in range(1, 5)]
    copy = PromotionLog(LocalBackend(tmp_path / "copy"))
    seen = []
    for batch in (Batch(0, 1), Batch(1, 4)):
        copy.announce(MODEL, batch)
        for number in range(batch.after + 1, batch.until + 1):
            entry = entries[number - 1]
            assert entry is not None
            assert copy.copy(MODEL, number, entry)
            assert copy.copy(MODEL, number, entry)  # another process was there first
            seen.append(copy.champion(MODEL))
    assert seen == [drafts[0], drafts[0], drafts[0], drafts[3]]
    assert copy.history(MODEL) == log.history(MODEL)
    assert copy.models() == (MODEL,)
    assert not copy.copy(MODEL, 4, b"another entry")
    assert copy.record(MODEL, 5) is None


@pytest.mark.parametrize(
    ("written", "batches", "expected"),
    [
        (3, [], 3),
        (0, [(0, 3)], 0),
        (2, [(0, 3)], 0),
        (3, [(0, 3)], 3),
        (4, [(0, 3)], 4),  # appended there itself
        (3, [(0, 3), (0, 5)], 3),  # announced late, by one who had seen nothing
        (4, [(0, 3), (0, 5)], 3),
        (4, [(0, 3), (3, 5)], 3),
        (4, [(0, 3), (3, 4), (3, 5)], 4),
        (2, [(0, 3), (0, 5)], 0),
    ],
)
def test_what_counts_of_a_log(written: int, batches: list[tuple[int, int]], expected: int) -> None:
    assert in_force(written, [Batch(*batch) for batch in batches]) == expected


def test_nobody_appends_into_a_batch_that_is_not_whole(log: PromotionLog) -> None:
    promote(log, "a")
    log.announce(MODEL, Batch(1, 3))
    with refused(PromotionConflict, "Entries from 2 on", where=f"registry/{MODEL}/promotions"):
        promote(log, "b")
    assert log.record(MODEL, 2) is None
