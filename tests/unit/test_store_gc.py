"""What a collector removes, and above all what it does not."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from deepspec.errors import ArtifactError
from deepspec.store import Artifact, Store, open_store
from deepspec.store.gc import GRACE_SECONDS, collect, garbage, lineage, nearest, reachable
from deepspec.store.layout import Stat
from deepspec.store.lease import leased
from deepspec.store.records import seal
from tests.fixtures.refused import refused
from tests.fixtures.store import KEY, Around, ingredients, manifest_path, manifest_record, put

DAY = 24 * 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def pair(artifact: Artifact) -> tuple[str, str]:
    return artifact.kind, artifact.key


def pairs(artifacts: Iterable[Artifact]) -> set[tuple[str, str]]:
    return {pair(artifact) for artifact in artifacts}


def age(store: Store, seconds: float, prefix: str = "") -> None:
    """Date everything under a prefix back, in its order."""
    root = Path(store.backend.location)
    for path in store.backend.list(prefix):
        status = (root / path).stat()
        times = status.st_mtime_ns - int(seconds * 1e9)
        os.utime(root / path, ns=(times, times))


def chain(store: Store, name: str = "") -> list[Artifact]:
    """conversations -> tokens -> train, and a second parent of train."""
    conversations = put(store, ingredients("conversations", name=name))
    tokens = put(store, ingredients("tokens", name=name), conversations=conversations)
    states = put(store, ingredients("states", name=name), tokens=tokens)
    train = put(store, ingredients("train", name=name), tokens=tokens, states=states)
    return [train, tokens, states, conversations]


def test_a_root_keeps_all_that_it_was_made_from(store: Store) -> None:
    kept, dropped = chain(store, "kept"), chain(store, "dropped")
    age(store, 2 * DAY)
    assert reachable(store, [pair(kept[0])]) == pairs(kept)
    found = garbage(store, [pair(kept[0])])
    assert {item.name for item in found} == {"/".join(pair(item)) for item in dropped}
    assert collect(store, [pair(kept[0])]) == found
    assert pairs(store.artifacts()) == pairs(kept)
    assert all(artifact.directory() for artifact in store.artifacts())
    assert sum(item.size_bytes for item in found) > sum(item.size_bytes for item in dropped)
    assert garbage(store, [pair(kept[0])]) == []


def test_a_middle_artifact_as_root_keeps_what_is_before_it_only(store: Store) -> None:
    train, tokens, states, conversations = chain(store)
    collect(store, [pair(tokens)], grace_seconds=0.0)
    assert pairs(store.artifacts()) == pairs([tokens, conversations])
    assert {train.kind, states.kind} & {path.split("/")[0] for path in store.backend.list("")} == set()


def test_planning_removes_nothing(store: Store) -> None:
    chain(store)
    before = store.backend.list("")
    assert len(garbage(store, [], grace_seconds=0.0)) == 4
    assert store.backend.list("") == before


def test_nothing_younger_than_the_grace_period_goes(store: Store) -> None:
    artifact = put(store, ingredients(), {"a": b"1", "b": b"2"})
    age(store, DAY - 60)
    assert collect(store, []) == []
    age(store, 120)
    assert len(garbage(store, [])) == 1
    # One young file is enough: somebody is at work there.
    os.utime(artifact.directory() / "b")
    assert collect(store, []) == []
    assert GRACE_SECONDS == DAY


def test_the_age_is_measured_by_the_clock_of_the_place(store: Store) -> None:
    put(store, ingredients())

    class Ahead(Around):
        """The collector's own clock is days ahead; the place's is not."""

        def clock(self) -> float:
            return time.time() - 5

    assert garbage(Store(Ahead(store.backend)), []) == []


def test_what_a_live_run_leases_stays_with_all_that_it_was_made_from(store: Store) -> None:
    artifacts = chain(store)
    with leased(store.backend, "runs/1", keys=[list(pair(artifacts[0]))]) as lease:
        assert collect(store, [], grace_seconds=0.0) == []
        lease.note(keys=[])
        assert len(collect(store, [], grace_seconds=0.0)) == 4


def test_an_attempt_that_a_live_run_is_making_stays_however_old(store: Store) -> None:
    made_of = ingredients()
    with leased(store.backend, "runs/1", keys=[[made_of.stage, KEY]]):
        with store.write(made_of.stage, made_of) as writing:
            (writing.directory / "shard-0").write_bytes(b"1")
            age(store, 3 * DAY, "tokens")
            assert collect(store, []) == []
            assert collect(store, [(made_of.stage, KEY)]) == []
        assert writing.artifact.verify() == []


def test_an_orphaned_attempt_goes_after_the_grace_period_the_artifact_beside_it_stays(store: Store) -> None:
    artifact = put(store, ingredients())
    orphan = f"tokens/{KEY}/{'0' * 32}/half.parquet"
    alone = f"states/{KEY}/{'1' * 32}/half.parquet"
    for path in (orphan, alone):
        store.backend.create(path, b"half")
    assert collect(store, [pair(artifact)]) == []
    age(store, 2 * DAY)
    removed = collect(store, [pair(artifact)])
    assert [(item.name, item.paths) for item in removed] == [
        (f"states/{KEY}", (alone,)),
        (orphan.rpartition("/")[0], (orphan,)),
    ]
    assert store.get(*pair(artifact)).verify() == []


def test_each_orphaned_attempt_is_judged_by_its_own_age(store: Store) -> None:
    artifact = put(store, ingredients())
    for number in "01":
        store.backend.create(f"tokens/{KEY}/{number * 32}/half", b"half")
    age(store, 2 * DAY, f"tokens/{KEY}/{'0' * 32}")
    assert [item.name for item in collect(store, [pair(artifact)])] == [f"tokens/{KEY}/{'0' * 32}"]


def test_what_a_rebuilt_artifact_replaced_goes(store: Store) -> None:
    old = put(store, ingredients(), {"data": b"old"})
    old.condemn("test")
    new = put(store, ingredients(), {"data": b"new"})
    age(store, 2 * DAY)
    assert [item.name for item in collect(store, [pair(new)])] == [old.prefix]
    assert store.get(*pair(new)).number == 2


def test_a_damaged_artifact_that_is_needed_keeps_its_files_and_what_it_was_made_from(store: Store) -> None:
    artifacts = chain(store)
    artifacts[0].condemn("test")
    store.backend.delete(f"{artifacts[1].prefix}/data.json")
    age(store, 2 * DAY)
    before = store.backend.list("")
    assert collect(store, [pair(artifacts[0])]) == []
    assert before.keys() <= store.backend.list("").keys()


def test_a_damaged_manifest_that_is_needed_stops_the_collection(store: Store) -> None:
    artifacts, other = chain(store), put(store, ingredients("other"))
    root = Path(store.backend.location)
    (root / manifest_path(artifacts[1])).write_bytes(b"{}")
    age(store, 2 * DAY)
    before = store.backend.list("")
    with refused(ArtifactError, "manifest", where=f"tokens/{artifacts[1].key}"):
        collect(store, [pair(artifacts[0])])
    assert store.backend.list("") == before
    # Where it is not needed, it goes like anything else; and once it is made anew, all is known again.
    assert len(garbage(store, [pair(other)])) == 4
    rebuilt = put(store, ingredients("tokens", name=""), conversations=artifacts[3])
    assert rebuilt.key == artifacts[1].key
    assert "/".join(pair(other)) in {item.name for item in collect(store, [pair(artifacts[0])])}


def test_a_lease_that_cannot_be_understood_stops_the_collection(store: Store) -> None:
    put(store, ingredients())
    with leased(store.backend, "runs/1", keys=[["tokens", KEY]]) as lease:
        path = Path(store.backend.location, "leases/runs/1/000001.json")
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"tokens", b"tokens"[::-1]))
        with refused(ArtifactError, "lease", where="leases/runs/1"):
            collect(store, [], grace_seconds=0.0)
        path.write_bytes(whole)
        assert collect(store, [], grace_seconds=0.0) == []
        lease.note(keys=["tokens"])
        with refused(ArtifactError, "lists keys", where="leases/runs"):
            collect(store, [], grace_seconds=0.0)


def test_what_is_not_the_stores_own_is_never_touched(store: Store) -> None:
    """DEEPSPEC_STORE may point at a folder where other things live, too."""
    foreign = [
        "project/src/main.py",
        "tokens/notes/2024/a.txt",
        f"tokens/{KEY}/readme.md",
        f"tokens/{KEY}/backup/x/y.parquet",
        f"tokens/{KEY.upper()}/manifest.1.json",
        f".git/{KEY}/{'0' * 32}/x",
        "file",
        "registry/m/promotions/1.json",
        f"registry/{KEY}/{'0' * 32}/x",
        f"work/{KEY}/{'0' * 32}/step-1/x",
        f"work/{KEY}/manifest.1.json",
        "leases/train/x/000007.released",
    ]
    for path in foreign:
        store.backend.create(path, b"1")
    put(store, ingredients())
    age(store, 100 * DAY)
    assert len(collect(store, [])) == 1
    root = Path(store.backend.location)
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == set(foreign)


def test_what_is_registered_while_the_collector_works_stays(store: Store) -> None:
    """A run that hits on old artifacts registers what it made, then gives its lease back: in between two looks."""
    old = [put(store, ingredients(n=n)) for n in range(4)]
    looks: list[int] = []

    def roots() -> list[tuple[str, str]]:
        looks.append(1)
        return [pair(artifact) for artifact in old] if len(looks) > 2 else []

    assert len(garbage(store, [], grace_seconds=0.0)) == 4
    assert len(collect(store, roots, grace_seconds=0.0)) == 1
    assert len(list(store.artifacts())) == 3


def test_leases_are_read_before_roots(store: Store) -> None:
    order: list[str] = []

    class Watching(Around):
        def list(self, prefix: str) -> dict[str, Stat]:
            order.append(prefix)
            listing: dict[str, Stat] = self.inner.list(prefix)
            return listing

    def roots() -> list[tuple[str, str]]:
        order.append("roots")
        return []

    put(store, ingredients())
    collect(Store(Watching(store.backend)), roots, grace_seconds=0.0)
    asked = [name for name in order if name in ("leases/runs", "roots")]
    assert asked == ["leases/runs", "roots"] * 2


def test_what_was_published_since_the_plan_was_made_stays(store: Store) -> None:
    """A writer without a lease, whose old attempt becomes an artifact just now."""
    put(store, ingredients("other"))

    class Publishing(Around):
        done = False

        def delete(self, path: str) -> None:
            self.inner.delete(path)
            if not self.done:
                self.done = True
                put(store, ingredients("tokens", late=1))
                old.condemn("test")
                put(store, ingredients("train"))

    old = put(store, ingredients("train"))
    removed = collect(Store(Publishing(store.backend)), [], grace_seconds=0.0)
    assert [item.name.split("/")[0] for item in removed] == ["other"]
    assert {artifact.kind for artifact in store.artifacts()} == {"tokens", "train"}


@pytest.mark.parametrize("condemned", [False, True])
def test_a_reader_beside_the_collector_meets_the_whole_artifact_or_none(
    store: Store, condemned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = put(store, ingredients(), {"a": b"1", "b": b"2"})
    if condemned:
        artifact.condemn("damaged in a way that only readers notice")
    seen: list[Artifact | None] = []

    class Watching(Around):
        def delete(self, path: str) -> None:
            self.inner.delete(path)
            seen.append(store.find(*pair(artifact)))

    collect(Store(Watching(store.backend)), [], grace_seconds=0.0)
    assert seen == [None] * (4 if condemned else 3)
    assert "is damaged" not in caplog.text
    assert store.backend.list("tokens") == {}


def test_leases_of_ended_runs_go_after_a_day_live_ones_never(store: Store) -> None:
    with leased(store.backend, "runs/gone"):
        pass
    with leased(store.backend, "runs/live", keys=[]) as lease:
        assert collect(store, [], grace_seconds=0.0) == []
        age(store, 2 * DAY, "leases/runs/gone")
        assert [item.name for item in collect(store, [], grace_seconds=0.0)] == ["leases/runs/gone"]
        assert lease.held()


def test_lineage_is_a_walk_over_manifests_nearest_first(store: Store) -> None:
    artifacts = chain(store)
    found = lineage(artifacts[0], store.get)
    assert [item.kind for item in found] == ["train", "states", "tokens", "conversations"]
    assert pairs(found) == pairs(artifacts)


def test_of_two_ancestors_of_a_kind_the_nearer_one_counts(store: Store) -> None:
    """A draft that was started from another one has that one's states and conversations among its ancestors too."""
    earlier, own = chain(store, "earlier"), chain(store, "own")
    draft = put(store, ingredients("train", name="started"), init=earlier[0], states=own[2], tokens=own[1])
    found = lineage(draft, store.get)
    assert pairs(found) == pairs([draft, *earlier, *own[1:]])
    assert pairs(nearest(found).values()) == pairs([draft, *own[1:]])


def test_a_root_of_a_newer_deepspec_stops_the_collection(store: Store) -> None:
    artifact = put(store, ingredients())
    Path(store.backend.location, manifest_path(artifact)).write_bytes(seal(manifest_record(artifact) | {"format": 9}))
    with refused(ArtifactError, "format 9"):
        collect(store, [pair(artifact)], grace_seconds=0.0)
    assert artifact.verify() == []
