"""Pulled drafts: whole, checked, swapped at once; asked of every kind of place."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import ArtifactError, BadArgument, StoreFull
from deepspec.registry.errors import PromotionLogDamaged
from deepspec.serving.errors import OtherTarget, PulledDraftDamaged
from deepspec.serving.names import draft_named
from deepspec.serving.pull import RECORD, Pulled, pull
from deepspec.serving.swap import Place
from deepspec.store import Store, open_store
from deepspec.store.fingerprint import Fingerprints, model_files
from deepspec.store.manifest import content_digest
from deepspec.store.reading import pieces
from deepspec.store.records import seal
from tests.fixtures.refused import refused
from tests.fixtures.serving import MODEL, ReadOnly, draft_files, file_limit, promote, roll_back, train
from tests.fixtures.store import EVERY_PLACE, PLACES, contents, manifest_path, manifest_record
from tests.fixtures.store import Place as StorePlace

CHAMPION = f"models:/{MODEL}@champion"


@pytest.fixture(params=EVERY_PLACE)
def there(request: pytest.FixtureRequest) -> StorePlace:
    """Where artifacts are."""
    return PLACES[request.param](request)


@pytest.fixture
def dir_(tmp_path: Path) -> Path:
    return tmp_path / "serving" / "draft"


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def consumer(there: StorePlace, place: Place) -> Store:
    """The store as the host that pulls opens it."""
    return open_store(there.location, cache=place.download)


def pulled(directory: Path) -> dict[str, bytes]:
    """The draft's files as a reader of DIR sees them."""
    found = contents(directory.resolve())
    found.pop(RECORD, None)
    return found


def left_over(place: Place) -> set[str]:
    """What lies in the folder of versions, but for what belongs there."""
    kept = {folder.name for folder in place.kept()}
    return {entry.name for entry in place.versions.iterdir()} - {"lock", "previous", *kept}


# --- a pull --------------------------------------------------------------------------------------------------------


def test_a_pull_brings_the_promoted_bytes_and_says_what_they_are(there: StorePlace, dir_: Path, tmp_path: Path) -> None:
    draft = promote(there.store(), train(there.store(), "one"), "1")
    place = Place(dir_)
    store = consumer(there, place)
    before = store.backend.list("")
    outcome = pull(draft_named(CHAMPION, tmp_path, store), store, place)
    assert pulled(dir_) == draft_files("one")
    assert outcome.changed
    assert outcome.downloaded_bytes == sum(map(len, draft_files("one").values()))
    held = Pulled.read(dir_)
    assert held == outcome.held
    assert (held.model, held.version, held.digest, held.source) == (MODEL, "1", draft.digest, there.location)
    assert store.backend.list("") == before
    assert left_over(place) == set()


def test_what_is_there_is_not_downloaded_again(there: StorePlace, dir_: Path) -> None:
    draft = promote(there.store(), train(there.store(), "one"), "1")
    place = Place(dir_)
    first = pull(draft, consumer(there, place), place)
    again = pull(draft, consumer(there, place), place)
    assert (again.changed, again.downloaded_bytes, again.tampered) == (False, 0, "")
    assert (again.held, again.folder) == (first.held, first.folder)


def test_another_champion_takes_its_place_and_the_one_before_is_kept(there: StorePlace, dir_: Path) -> None:
    place = Place(dir_)
    for name in ("one", "two", "three"):
        draft = promote(there.store(), train(there.store(), name), name)
        assert pull(draft, consumer(there, place), place).changed
        assert pulled(dir_) == draft_files(name)
    assert [pulled(folder) for folder in place.kept()] == [draft_files("three"), draft_files("two")]
    assert left_over(place) == set()


def test_after_a_roll_back_the_kept_draft_is_used(there: StorePlace, dir_: Path, tmp_path: Path) -> None:
    place = Place(dir_)
    for name in ("one", "two"):
        pull(promote(there.store(), train(there.store(), name), name), consumer(there, place), place)
    roll_back(there.store())
    outcome = pull(draft_named(CHAMPION, tmp_path, there.store()), consumer(there, place), place)
    assert (outcome.changed, outcome.downloaded_bytes, outcome.held.version) == (True, 0, "one")
    assert pulled(dir_) == draft_files("one")


def test_credentials_that_may_only_read_are_enough(there: StorePlace, dir_: Path, tmp_path: Path) -> None:
    promote(there.store(), train(there.store(), "one"), "1")
    place = Place(dir_)
    store = Store(ReadOnly(consumer(there, place).backend))
    pull(draft_named(CHAMPION, tmp_path, store), store, place)
    assert pulled(dir_) == draft_files("one")


@pytest.mark.full
def test_a_user_who_may_only_read_the_bucket_pulls(
    radosgw: Any, dir_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server with a policy; the user's writes are seen to be refused."""
    from tests.fixtures.s3 import bucket_client

    radosgw.enter(monkeypatch)
    location = f"s3://{radosgw.bucket}/read-only"
    promote(open_store(location, cache=tmp_path / "a"), train(open_store(location, cache=tmp_path / "a"), "one"), "1")
    user = radosgw.user("consumer")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": ["arn:aws:iam:::user/consumer"]},
                "Action": ["s3:GetObject", "s3:ListBucket"],
                "Resource": [f"arn:aws:s3:::{radosgw.bucket}", f"arn:aws:s3:::{radosgw.bucket}/*"],
            }
        ],
    }
    bucket_client(radosgw).put_bucket_policy(Bucket=radosgw.bucket, Policy=json.dumps(policy))
    user.enter(monkeypatch)
    place = Place(dir_)
    store = open_store(location, cache=place.download)
    with pytest.raises(ArtifactError):
        store.backend.put("followers/demo/x.json", b"{}")
    pull(draft_named(CHAMPION, tmp_path, store), store, place)
    assert pulled(dir_) == draft_files("one")


# --- bytes that are not the promoted ones --------------------------------------------------------------------------


def test_bytes_that_changed_in_the_store_are_refused_by_name_and_the_old_draft_stays(
    there: StorePlace, dir_: Path
) -> None:
    place = Place(dir_)
    pull(promote(there.store(), train(there.store(), "one"), "1"), consumer(there, place), place)
    artifact = train(there.store(), "two")
    draft = promote(there.store(), artifact, "2")
    weights = draft_files("two")["model.safetensors"]
    there.overwrite(f"{artifact.prefix}/draft/model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))
    with refused(PulledDraftDamaged, "SHA-256", where="draft/model.safetensors"):
        pull(draft, consumer(there, place), place)
    assert pulled(dir_) == draft_files("one")
    assert left_over(place) == set()


def test_a_manifest_that_was_forged_with_the_bytes_is_refused(there: StorePlace, dir_: Path, tmp_path: Path) -> None:
    artifact = train(there.store(), "one")
    draft = promote(there.store(), artifact, "1")
    forged = tmp_path / "config.json"
    forged.write_bytes(b'{"name": "evil"}')
    there.overwrite(f"{artifact.prefix}/draft/config.json", forged.read_bytes())
    entries = [
        pieces.describe(forged, entry.path) if entry.path == "draft/config.json" else entry
        for entry in artifact.manifest.files
    ]
    files = [entry.model_dump(mode="json", by_alias=True) for entry in entries]
    record = {**manifest_record(artifact), "files": files, "digest": content_digest(tuple(entries))}
    there.overwrite(manifest_path(artifact), seal(record))
    place = Place(dir_)
    with refused(PulledDraftDamaged, draft.digest[:12], where="manifest.1.json"):
        pull(draft, consumer(there, place), place)
    assert place.held() is None


def test_a_file_that_is_gone_is_refused_by_name(local: Store, dir_: Path) -> None:
    artifact = train(local, "one")
    draft = promote(local, artifact, "1")
    local.backend.delete(f"{artifact.prefix}/draft/config.json")
    with refused(PulledDraftDamaged, "missing", where="draft/config.json"):
        pull(draft, local, Place(dir_))
    assert not dir_.exists()


def test_a_condemned_manifest_is_not_pulled(local: Store, dir_: Path) -> None:
    artifact = train(local, "one")
    draft = promote(local, artifact, "1")
    artifact.condemn("a test says so")
    with refused(PulledDraftDamaged, where=draft.key):
        pull(draft, local, Place(dir_))


def change(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def add(folder: Path) -> None:
    (folder / "model-2.safetensors").write_bytes(b"x")


def forget(folder: Path) -> None:
    (folder / RECORD).write_text("{}")


@pytest.mark.parametrize(
    ("harm", "named"),
    [(change, "model.safetensors"), (remove, "config.json"), (add, "model-2.safetensors"), (forget, RECORD)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_tampered_with_in_dir_is_found_and_pulled_again(
    local: Store, dir_: Path, harm: Any, named: str
) -> None:
    draft = promote(local, train(local, "one"), "1")
    place = Place(dir_)
    pull(draft, local, place)
    harm(dir_.resolve())
    outcome = pull(draft, local, place)
    assert outcome.tampered.startswith(named)
    assert outcome.downloaded_bytes > 0
    assert pulled(dir_) == draft_files("one")


# --- targets -------------------------------------------------------------------------------------------------------


def test_a_draft_of_another_target_is_refused_before_it_is_downloaded(local: Store, dir_: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "target", tmp_path / "other"
    for folder in (target, other):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"of": folder.name}))
    fingerprint = Fingerprints().files(model_files(target), within=target)
    draft = promote(local, train(local, "one", parents={"target": fingerprint}), "1")
    with refused(OtherTarget, fingerprint[:12], where=str(other)):
        pull(draft, local, Place(dir_), target=other)
    assert not dir_.exists()
    pull(draft, local, Place(dir_), target=target)
    with refused(OtherTarget, where=str(other)):  # also where it lies already
        pull(draft, local, Place(dir_), target=other)


def test_without_a_recorded_target_its_shape_is_compared(local: Store, dir_: Path, tmp_path: Path) -> None:
    from deepspec.drafts.files.config_json import draft_config
    from deepspec.targets.directory import read_spec
    from tests.fixtures.algorithms import TARGETS
    from tests.fixtures.store import ingredients, put

    target, other = (TARGETS["qwen3"](tmp_path / name, num_layers=layers) for name, layers in (("a", 4), ("b", 6)))
    config = draft_config(read_spec(target), "DSparkModel", 1, "float32")
    files = {"draft/config.json": json.dumps(config).encode()}
    draft = promote(local, put(local, ingredients("train"), files), "1")
    with refused(OtherTarget, "num_target_layers", "4", "6"):
        pull(draft, local, Place(dir_), target=other)
    assert not dir_.exists()
    assert pull(draft, local, Place(dir_), target=target).changed


# --- the disk, and other processes ---------------------------------------------------------------------------------


def test_on_a_full_disk_the_old_draft_stays_and_nothing_is_left(there: StorePlace, dir_: Path) -> None:
    place = Place(dir_)
    pull(promote(there.store(), train(there.store(), "one"), "1"), consumer(there, place), place)
    draft = promote(there.store(), train(there.store(), "two", num_bytes=200_000), "2")
    with file_limit(50_000), refused(StoreFull, where=str(dir_)):
        pull(draft, consumer(there, place), place)
    assert pulled(dir_) == draft_files("one")
    assert left_over(place) == set()
    pull(draft, consumer(there, place), place)
    assert pulled(dir_) == draft_files("two", 200_000)


def test_two_pulls_into_one_directory_do_not_mix(local: Store, dir_: Path) -> None:
    draft = promote(local, train(local, "one"), "1")
    with Place(dir_).alone(), refused(ArtifactError, where=str(dir_)):
        pull(draft, local, Place(dir_))
    pull(draft, local, Place(dir_))


def test_a_reader_who_resolves_dir_never_sees_a_mixture(local: Store, dir_: Path) -> None:
    drafts = [promote(local, train(local, name), name) for name in ("one", "two")]
    place = Place(dir_)
    pull(drafts[0], local, place)
    expected = [draft_files("one"), draft_files("two")]
    seen, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(expected.index(pulled(dir_)))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        pull(drafts[(number + 1) % 2], local, place)
    stop.set()
    reader.join()
    assert {0, 1} <= set(seen)


def test_what_no_pull_made_is_left_alone(local: Store, tmp_path: Path) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "mine.txt").touch()
    file.touch()
    link.symlink_to(full)
    for taken in (full, file, link):
        with refused(BadArgument, where=str(taken)):
            Place(taken)


def test_an_empty_directory_is_taken(local: Store, dir_: Path) -> None:
    dir_.mkdir(parents=True)
    pull(promote(local, train(local, "one"), "1"), local, Place(dir_))
    assert pulled(dir_) == draft_files("one")


def test_a_directory_may_be_moved_with_its_versions(local: Store, dir_: Path, tmp_path: Path) -> None:
    draft = promote(local, train(local, "one"), "1")
    pull(draft, local, Place(dir_))
    dir_.parent.rename(tmp_path / "moved")
    assert pull(draft, local, Place(tmp_path / "moved" / "draft")).downloaded_bytes == 0


# --- names ---------------------------------------------------------------------------------------------------------


def test_names_are_read_from_the_log(local: Store, tmp_path: Path) -> None:
    drafts = {name: promote(local, train(local, name), name) for name in ("1", "2", "3")}
    for alias, version in (("champion", "3"), ("previous", "2")):
        assert draft_named(f"models:/{MODEL}@{alias}", tmp_path, local) == drafts[version]
    assert draft_named(f"models:/{MODEL}/1", tmp_path, local) == drafts["1"]
    roll_back(local)
    for alias, version in (("champion", "2"), ("previous", "1")):
        assert draft_named(f"models:/{MODEL}@{alias}", tmp_path, local) == drafts[version]
    assert not (tmp_path / "mlflow.db").exists()


def test_an_artifact_can_be_pulled_by_its_key(local: Store, dir_: Path, tmp_path: Path) -> None:
    artifact = train(local, "one")
    outcome = pull(draft_named(f"train/{artifact.key[:8]}", tmp_path, local), local, Place(dir_))
    assert (outcome.held.model, outcome.held.key) == ("", artifact.key)


def test_names_that_mean_no_draft_in_the_store_are_refused(local: Store, tmp_path: Path) -> None:
    with refused(BadArgument, "champion", where="DRAFT"):
        draft_named(CHAMPION, tmp_path, local)
    promote(local, train(local, "one"), "1")
    with refused(BadArgument, "previous", where="DRAFT"):
        draft_named(f"models:/{MODEL}@previous", tmp_path, local)
    with refused(BadArgument, where=str(tmp_path)):
        draft_named(str(tmp_path), tmp_path, local)


def test_a_damaged_log_names_no_draft(there: StorePlace, tmp_path: Path) -> None:
    promote(there.store(), train(there.store(), "one"), "1")
    there.overwrite(f"registry/{MODEL}/promotions/1.json", b"{}")
    with refused(PromotionLogDamaged, where="promotions/1.json"):
        draft_named(CHAMPION, tmp_path, there.store())
