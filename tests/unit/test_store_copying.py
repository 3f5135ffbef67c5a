"""Copying a store: what is missing, checked, and nothing over what is there."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import ArtifactError, StoreFull
from deepspec.store import Store
from deepspec.store.copy_store import copy_store
from deepspec.store.records import seal, unseal
from tests.fixtures.refused import refused
from tests.fixtures.store import PLACES, Around, LocalPlace, Place, contents, fill, ingredients, manifest_path, put

PAIRS = [
    pytest.param(("local", "local"), id="local-to-local"),
    pytest.param(("local", "moto"), id="local-to-moto"),
    pytest.param(("moto", "local"), id="moto-to-local"),
    # A copy knows its two stores by their contract alone, which every kind of place has a suite for.
    pytest.param(("local", "radosgw"), id="local-to-radosgw", marks=pytest.mark.full),
]


@pytest.fixture(params=PAIRS)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, Place]:
    """A pair of kinds of places."""
    source, destination = (
        LocalPlace(str(tmp_path / folder)) if name == "local" else PLACES[name](request)
        for name, folder in zip(request.param, ("source", "destination"), strict=True)
    )
    return source, destination


@pytest.fixture
def source(places: tuple[Place, Place]) -> Store:
    """Three artifacts, one of them from the others, an attempt that goes on, and a log of eleven entries."""
    store = places[0].store()
    made_of = ingredients("data")
    with store.write("data", made_of) as writing:
        fill(writing.directory)
    tokens = put(store, ingredients("tokens"), data=writing.artifact)
    put(store, ingredients("train"), {"draft/a.json": b"{}", "about/b.json": b"[]"}, tokens=tokens)
    for number in range(1, 12):
        store.backend.create(f"registry/tiny/promotions/{number}.json", f"entry {number}".encode())
    store.backend.create("leases/runs/other/000001.json", b"{}")
    staging = store.backend.staging(f"train/{'0' * 64}/{'1' * 32}")
    (staging / "half.json").write_bytes(b"{")
    store.backend.publish(f"train/{'0' * 64}/{'1' * 32}", staging)
    return store


@pytest.fixture
def destination(places: tuple[Place, Place]) -> Store:
    return places[1].store()


def state(store: Store) -> dict[str, bytes]:
    """What a store holds, but for what goes on in it."""
    listing = store.backend.list("")
    return {path: store.backend.read(path) for path in listing if not path.startswith("leases/")}


def test_a_copy_has_the_same_artifacts_and_records(source: Store, destination: Store) -> None:
    done = copy_store(source, destination)
    assert done.complete
    assert (done.artifacts, done.present, done.records) == (3, 0, 11)
    for original in source.artifacts():
        copy = destination.get(original.kind, original.key)
        assert (copy.digest, copy.number) == (original.digest, original.number)
        assert copy.manifest.model_copy(update={"attempt": original.manifest.attempt}) == original.manifest
        assert contents(copy.directory()) == contents(original.directory())
        assert copy.verify() == []
    assert {path.split("/")[0] for path in state(destination)} == {"data", "tokens", "train", "registry"}
    assert ("train", "0" * 64) not in destination.names()
    for path in source.backend.list("registry"):
        assert destination.backend.read(path) == source.backend.read(path)


def test_a_second_copy_writes_nothing_and_a_copy_can_be_copied_back(source: Store, destination: Store) -> None:
    copy_store(source, destination)
    before = state(destination)
    done = copy_store(source, destination)
    assert (done.artifacts, done.present, done.records) == (0, 3, 0)
    assert state(destination) == before
    assert copy_store(destination, source).present == 3


def test_records_come_last_in_their_order_and_manifests_after_their_files(source: Store, destination: Store) -> None:
    order: list[str] = []

    class Watched(Around):
        def publish(self, prefix: str, staging: Path) -> None:
            order.append(prefix)
            self.inner.publish(prefix, staging)

        def create(self, path: str, data: bytes) -> bool:
            order.append(path)
            return self.inner.create(path, data)

    copy_store(source, Store(Watched(destination.backend)))  # type: ignore[arg-type]
    order = [path for path in order if not path.startswith("leases/")]
    assert order[-11:] == [f"registry/tiny/promotions/{number}.json" for number in range(1, 12)]
    for published, manifest in zip(order[:-11:2], order[1:-11:2], strict=True):
        assert manifest.startswith(published.rpartition("/")[0] + "/manifest.")


def test_what_is_promoted_meanwhile_is_left_to_the_next_copy(source: Store, destination: Store) -> None:
    class Promoting(Around):
        """Before the first artifact is copied, somebody trains and promotes."""

        def fetch(self, prefix: str, names: Any, *, refetch: bool = False) -> Path:
            if self.inner.create("registry/tiny/promotions/12.json", b"entry 12"):
                put(source, ingredients("train", lr=2))
            return Path(self.inner.fetch(prefix, names, refetch=refetch))

    done = copy_store(Store(Promoting(source.backend)), destination)  # type: ignore[arg-type]
    assert done.records == 11
    assert "registry/tiny/promotions/12.json" not in destination.backend.list("registry")
    done = copy_store(source, destination)
    assert (done.artifacts, done.records) == (1, 1)


@pytest.mark.parametrize("reason", [StoreFull("No space left."), KeyboardInterrupt()])
def test_an_interrupted_copy_is_taken_up(source: Store, destination: Store, reason: BaseException) -> None:
    class Interrupted(Around):
        published = 0

        def publish(self, prefix: str, staging: Path) -> None:
            self.published += 1
            if self.published == 2:
                raise reason
            self.inner.publish(prefix, staging)

    with pytest.raises(type(reason)):
        copy_store(source, Store(Interrupted(destination.backend)))  # type: ignore[arg-type]
    assert len(list(destination.artifacts())) == 1
    assert not destination.backend.list("registry")
    done = copy_store(source, destination)
    assert (done.artifacts, done.present, done.records) == (2, 1, 11)


def test_other_records_under_the_same_name_are_refused_before_anything_is_written(
    source: Store, destination: Store
) -> None:
    destination.backend.create("registry/tiny/promotions/2.json", b"another history")
    before = state(destination)
    with refused(ArtifactError, "promotion logs", "registry/tiny/promotions/2.json"):
        copy_store(source, destination)
    assert state(destination) == before


def test_a_damaged_artifact_is_named_and_the_others_are_copied(
    source: Store, destination: Store, places: tuple[Place, Place]
) -> None:
    (tokens,) = source.artifacts("tokens")
    path = f"{tokens.prefix}/data.json"
    data = bytearray(source.backend.read(path))
    data[3] ^= 1
    places[0].overwrite(path, bytes(data))
    done = copy_store(places[0].store(), destination)
    assert not done.complete
    assert list(done.not_whole) == [f"tokens/{tokens.key}"]
    assert done.artifacts == 2
    assert destination.find("tokens", tokens.key) is None
    assert not [path for path in destination.backend.list("tokens") if "manifest" in path]


def test_other_content_under_a_key_is_left_and_named(source: Store, destination: Store) -> None:
    (tokens,) = source.artifacts("tokens")
    (data,) = source.artifacts("data")
    other = put(destination, ingredients("tokens"), {"data.json": b"1"}, data=data)
    assert other.key == tokens.key
    done = copy_store(source, destination)
    assert done.other_content == [f"tokens/{tokens.key}"]
    assert destination.get("tokens", tokens.key).digest == other.digest


def test_what_was_rebuilt_in_the_source_replaces_the_copy(source: Store, destination: Store) -> None:
    copy_store(source, destination)
    (tokens,) = source.artifacts("tokens")
    (data,) = source.artifacts("data")
    tokens.condemn("for a test")
    rebuilt = put(source, ingredients("tokens"), {"data.json": b"2"}, data=data)
    assert (rebuilt.key, rebuilt.number) == (tokens.key, 2)
    assert copy_store(source, destination).artifacts == 1
    assert destination.get("tokens", tokens.key).digest == rebuilt.digest


def test_a_damaged_copy_is_replaced(source: Store, destination: Store, places: tuple[Place, Place]) -> None:
    copy_store(source, destination)
    (copy,) = destination.artifacts("tokens")
    destination.backend.delete(f"{copy.prefix}/data.json")
    done = copy_store(source, places[1].store())
    assert (done.artifacts, done.present) == (1, 2)
    assert destination.get("tokens", copy.key).verify() == []


def test_what_an_equal_format_added_to_a_manifest_is_copied(
    source: Store, destination: Store, places: tuple[Place, Place]
) -> None:
    (tokens,) = source.artifacts("tokens")
    record = unseal(source.backend.read(manifest_path(tokens))) | {"added_later": [1]}
    places[0].overwrite(manifest_path(tokens), seal(record))
    copy_store(places[0].store(), destination)
    copy = destination.get("tokens", tokens.key)
    assert unseal(destination.backend.read(manifest_path(copy)))["added_later"] == [1]


def test_a_newer_manifest_stops_the_copy(source: Store, destination: Store, places: tuple[Place, Place]) -> None:
    (tokens,) = source.artifacts("tokens")
    record = unseal(source.backend.read(manifest_path(tokens))) | {"format": 2}
    places[0].overwrite(manifest_path(tokens), seal(record))
    with refused(ArtifactError, "format 2"):
        copy_store(places[0].store(), destination)
    assert not destination.backend.list("registry")


def test_a_collector_in_the_destination_leaves_what_is_being_copied(source: Store, destination: Store) -> None:
    from deepspec.store.gc import collect

    removed = []

    class Collecting(Around):
        def create(self, path: str, data: bytes) -> bool:
            removed.extend(collect(destination, [], grace_seconds=0.0))
            return bool(self.inner.create(path, data))

    copy_store(source, Store(Collecting(destination.backend)))  # type: ignore[arg-type]
    assert removed == []
    assert len(list(destination.artifacts())) == 3
