"""Artifacts under attack: writers at the same time, collectors beside runs, and damage of every kind.

What holds throughout: whatever is found and read is exactly what was written, or it is not found at all, and then it
can be made again.
"""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deepspec.errors import ArtifactDamaged, ArtifactError
from deepspec.store import Artifact, Store, artifact_key, open_store
from deepspec.store.gc import collect
from deepspec.store.lease import leased, live
from deepspec.store.manifest import Manifest
from tests.fixtures.refused import refused
from tests.fixtures.store import KEY, contents, fill, ingredients, manifest_path, put

BUSY = settings(deadline=None, max_examples=20)
"""A busy machine is no failure."""
KIND = "tokens"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


# --- damage --------------------------------------------------------------------------------------------------------


def make(store: Store) -> Artifact:
    """The artifact under attack."""
    with store.write(KIND, ingredients()) as writing:
        fill(writing.directory)
    return writing.artifact


@dataclass(frozen=True)
class Original:
    """A store with one artifact in it, to be copied and harmed."""

    root: Path
    artifact: Artifact
    files: dict[str, bytes]

    @contextmanager
    def copy(self) -> Iterator[Path]:
        """A copy with the same times of modification."""
        with tempfile.TemporaryDirectory() as folder:
            yield shutil.copytree(self.root, Path(folder) / "store")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    root = tmp_path_factory.mktemp("original") / "store"
    artifact = make(open_store(str(root)))
    return Original(root, artifact, contents(artifact.directory()))


def read(store: Store) -> dict[str, bytes] | None:
    """What a reader gets: None if there is nothing (or nothing whole)."""
    found = store.find(KIND, KEY)
    if found is None:
        return None
    try:
        return contents(found.directory())
    except ArtifactDamaged:
        return None


def overwrite(path: Path, data: bytes, *, keep_time: bool) -> None:
    """Change a file in place, as an accident would, with or without leaving a trace in its times."""
    status = path.stat()
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(path, ns=(status.st_atime_ns, time.time_ns()))


def check_rebuilt(root: Path, original: Original) -> None:
    """A harmed store gives nothing, and then what is made anew; a second run sees only that."""
    store = open_store(str(root))
    assert read(store) is None
    assert store.find(KIND, KEY) is None
    rebuilt = make(store)
    assert rebuilt.number == 2
    assert rebuilt.digest == original.artifact.digest
    assert read(open_store(str(root))) == original.files


Positions = Callable[[bytes], range]
PARTS: dict[str, tuple[str, Positions]] = {
    "parquet data": ("rows.parquet", lambda data: range(4, data.rindex(b"PAR1") - footer_bytes(data) - 4)),
    "parquet footer": ("rows.parquet", lambda data: range(data.rindex(b"PAR1") - footer_bytes(data) - 4, len(data))),
    "parquet magic": ("rows.parquet", lambda data: range(4)),
    "safetensors length": ("draft/model.safetensors", lambda data: range(8)),
    "safetensors header": ("draft/model.safetensors", lambda data: range(8, 8 + int.from_bytes(data[:8], "little"))),
    "safetensors tensors": (
        "draft/model.safetensors",
        lambda data: range(8 + int.from_bytes(data[:8], "little"), len(data)),
    ),
    "json": ("draft/config.json", lambda data: range(len(data))),
}


def footer_bytes(data: bytes) -> int:
    return int.from_bytes(data[-8:-4], "little")


@pytest.mark.parametrize("part", PARTS)
@BUSY
@given(st.data())
def test_a_bit_flipped_anywhere_is_never_read(original: Original, part: str, data: st.DataObject) -> None:
    name, positions = PARTS[part]
    content = bytearray(original.files[name])
    position = data.draw(st.sampled_from(positions(bytes(content))))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    keep_time = data.draw(st.booleans(), label="keep_time")
    with original.copy() as root:
        overwrite(root / original.artifact.prefix / name, bytes(content), keep_time=keep_time)
        store = open_store(str(root))
        assert keep_time or store.find(KIND, KEY) is None
        assert read(store) is None
        assert store.find(KIND, KEY) is None


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_after_a_flipped_bit_the_artifact_is_made_again(original: Original, part: str, keep_time: bool) -> None:
    name, positions = PARTS[part]
    content = bytearray(original.files[name])
    content[positions(bytes(content))[-1]] ^= 1
    with original.copy() as root:
        overwrite(root / original.artifact.prefix / name, bytes(content), keep_time=keep_time)
        check_rebuilt(root, original)


@BUSY
@given(st.data())
def test_a_file_that_was_cut_lengthened_exchanged_or_removed_is_never_read(
    original: Original, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(original.files)))
    content = original.files[name]
    harm = data.draw(st.sampled_from(["cut", "lengthened", "filled", "swapped", "removed", "a folder"]))
    with original.copy() as root:
        path = root / original.artifact.prefix / name
        if harm in ("removed", "a folder"):
            path.unlink()
            if harm == "a folder":
                path.mkdir()
        else:
            assume(content or harm == "lengthened")
            changed = {
                "cut": lambda: content[: data.draw(st.integers(0, len(content) - 1))],
                "lengthened": lambda: content + data.draw(st.binary(min_size=1, max_size=9)),
                "filled": lambda: bytes(len(content)),
                "swapped": lambda: content[1:] + content[:1],
            }[harm]()
            overwrite(path, changed, keep_time=data.draw(st.booleans()))
        assert read(open_store(str(root))) is None
        assert open_store(str(root)).find(KIND, KEY) is None


@BUSY
@given(st.data())
def test_a_harmed_manifest_is_never_believed(original: Original, data: st.DataObject) -> None:
    path = manifest_path(original.artifact)
    content = bytearray((original.root / path).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="cut"):
        content = content[:position]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):
        Manifest.from_bytes(bytes(content), path)
    with original.copy() as root:
        overwrite(root / path, bytes(content), keep_time=data.draw(st.booleans()))
        assert read(open_store(str(root))) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"manifest"])
def test_after_a_harmed_manifest_the_artifact_is_made_again(original: Original, content: bytes) -> None:
    with original.copy() as root:
        overwrite(root / manifest_path(original.artifact), content, keep_time=True)
        check_rebuilt(root, original)


@BUSY
@given(st.binary(max_size=60))
def test_anything_at_all_in_place_of_a_manifest_is_never_believed(original: Original, content: bytes) -> None:
    with original.copy() as root:
        overwrite(root / manifest_path(original.artifact), content, keep_time=True)
        assert read(open_store(str(root))) is None


def test_without_its_manifest_an_artifact_does_not_exist(original: Original) -> None:
    with original.copy() as root:
        (root / manifest_path(original.artifact)).unlink()
        store = open_store(str(root))
        assert read(store) is None
        assert make(store).number == 1
        assert read(store) == original.files


@pytest.mark.parametrize("harm", ["flipped", "emptied", "removed"])
def test_a_harmed_condemnation_brings_nothing_damaged_back(original: Original, harm: str) -> None:
    with original.copy() as root:
        name = original.artifact.prefix + "/rows.parquet"
        overwrite(root / name, bytes(len(original.files["rows.parquet"])), keep_time=True)
        store = open_store(str(root))
        assert read(store) is None
        marker = root / KIND / KEY / "condemned.1.json"
        data = bytearray(marker.read_bytes())
        data[3] ^= 4
        if harm == "removed":
            marker.unlink()
        else:
            marker.write_bytes(bytes(data) if harm == "flipped" else b"")
        assert read(open_store(str(root))) is None
        assert make(open_store(str(root))).number == 2
        marker.unlink(missing_ok=True)
        assert read(open_store(str(root))) == original.files


@BUSY
@given(st.data())
def test_a_harmed_lease_never_exposes_what_it_protects(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        artifact = put(store, ingredients())
        path = Path(folder, "leases/runs/1/000001.json")
        with leased(store.backend, "runs/1", 30.0, keys=[[KIND, KEY]]):
            content = bytearray(path.read_bytes())
            position = data.draw(st.integers(0, len(content) - 1))
            content[position] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(content)
            with pytest.raises(ArtifactError, match="lease"):
                collect(store, [], grace_seconds=0.0)
            assert artifact.verify() == []
        assert list(live(store.backend, "runs")) == []


def test_equal_content_written_again_is_accepted_and_read_in_full_only_once(
    original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspec.store.reading import pieces

    read_in_full: list[str] = []
    sha256_of = pieces.sha256_of

    def look(path: Path) -> str:
        read_in_full.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(pieces, "sha256_of", look)
    with original.copy() as root:
        store = open_store(str(root))
        assert store.find(KIND, KEY) is not None
        assert read_in_full == []
        path = root / original.artifact.prefix / "rows.parquet"
        time.sleep(0.02)
        path.write_bytes(original.files["rows.parquet"])
        time.sleep(0.02)
        assert read(store) == original.files
        assert read_in_full == ["rows.parquet"]
        assert read(open_store(str(root))) == original.files
        assert read_in_full == ["rows.parquet"]
        # That it was looked at once does not excuse it from then on.
        time.sleep(0.02)
        path.write_bytes(original.files["rows.parquet"][::-1])
        assert store.find(KIND, KEY) is None


def test_a_touched_and_changed_file_is_noticed_by_a_hit(original: Original) -> None:
    with original.copy() as root:
        path = root / original.artifact.prefix / "draft" / "config.json"
        content = original.files["draft/config.json"].replace(b"tiny", b"TINY")
        overwrite(path, content, keep_time=False)
        assert open_store(str(root)).find(KIND, KEY) is None
        check_rebuilt(root, original)


def test_a_change_without_a_trace_is_noticed_by_a_reader(original: Original) -> None:
    with original.copy() as root:
        path = root / original.artifact.prefix / "draft" / "config.json"
        content = original.files["draft/config.json"].replace(b"tiny", b"TINY")
        overwrite(path, content, keep_time=True)
        store = open_store(str(root))
        found = store.find(KIND, KEY)
        assert found is not None
        assert found.path("rows.parquet").read_bytes() == original.files["rows.parquet"]
        assert found.verify() == ["draft/config.json: it does not match its SHA-256"]
        for use in (lambda: found.json("draft/config.json"), found.directory):
            with refused(ArtifactDamaged, where="draft/config.json"):
                use()
        check_rebuilt(root, original)


def test_a_store_that_was_copied_without_its_times_is_believed_after_a_look(original: Original) -> None:
    with original.copy() as root:
        now = time.time_ns()
        for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
            os.utime(path, ns=(now, now - number * 1_000_000_000))
        store = open_store(str(root))
        assert read(store) == original.files
        assert not any("condemned" in path for path in store.backend.list(""))


@BUSY
@given(st.lists(st.sampled_from(["write", "flip", "remove", "condemn", "manifest", "collect"]), max_size=8), st.data())
def test_after_any_history_what_is_read_is_what_was_written(steps: list[str], data: st.DataObject) -> None:
    """Numbers only grow while the key is there, and no step brings anything wrong to light."""
    files = {"a": b"the content", "b/c": b"more of it"}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        numbers: list[int] = []
        for step in steps:
            found = store.find(KIND, KEY)
            if step == "write":
                numbers.append(put(store, ingredients(), files).number)
            elif step == "collect":
                # Where all manifests of what is needed are damaged, the collector refuses to guess.
                with contextlib.suppress(ArtifactError):
                    collect(store, [(KIND, KEY)] if data.draw(st.booleans()) else [], grace_seconds=0.0)
                numbers = numbers if store.numbers(KIND, KEY) else []
            elif found is not None:
                harm(Path(folder), found, step, data.draw(st.sampled_from(sorted(files))))
            try:
                assert read(store) in (None, files)
            except ArtifactError as error:
                raise AssertionError(f"after {step}") from error
        assert numbers == sorted(numbers)
        put(store, ingredients(), files)
        if read(store) is None:
            put(store, ingredients(), files)
        assert read(store) == files


def harm(root: Path, artifact: Artifact, how: str, name: str) -> None:
    path = root / artifact.prefix / name
    if how == "flip":
        overwrite(path, path.read_bytes()[::-1], keep_time=True)
    elif how == "remove":
        path.unlink()
    elif how == "condemn":
        artifact.condemn("test")
    elif how == "manifest":
        (root / manifest_path(artifact)).write_bytes(b"{")


# --- writers at the same time --------------------------------------------------------------------------------------


def check_one_artifact(store: Store, published: list[tuple[str, str]]) -> None:
    """All writers hold one and the same artifact, and nothing of the others is left."""
    assert len(set(published)) == 1
    digest, attempt = published[0]
    found = store.get(KIND, KEY)
    assert (found.digest, found.manifest.attempt, found.number) == (digest, attempt, 1)
    paths = {entry.path for entry in found.manifest.files}
    assert set(store.backend.list("")) == {f"{found.prefix}/{path}" for path in paths} | {manifest_path(found)}
    assert len(set(contents(found.directory()).values())) == 1


def publish(location: str, who: str, start: "threading.Barrier | None" = None) -> tuple[str, str]:
    store = open_store(location)
    with store.write(KIND, ingredients()) as writing:
        for name in ("a", "b/c"):
            (writing.directory / name).parent.mkdir(exist_ok=True)
            (writing.directory / name).write_text(who)
        if start is not None:
            start.wait()
    return writing.artifact.digest, writing.artifact.manifest.attempt


@pytest.mark.parametrize("number", [2, 8])
def test_of_many_threads_that_write_one_key_all_get_one_artifact(tmp_path: Path, number: int) -> None:
    for turn in range(5):
        location = str(tmp_path / str(turn))
        start = threading.Barrier(number)
        with ThreadPoolExecutor(number) as pool:
            futures = [pool.submit(publish, location, f"thread {who}", start) for who in range(number)]
        published = [future.result() for future in futures]
        check_one_artifact(open_store(location), published)


def _publish_when_told(location: str, who: str, start: "threading.Barrier", answers: "multiprocessing.Queue") -> None:  # type: ignore[type-arg]
    answers.put(publish(location, who, start))


@pytest.mark.parametrize("number", [2, 4])
def test_of_many_processes_that_write_one_key_all_get_one_artifact(tmp_path: Path, number: int) -> None:
    fork = multiprocessing.get_context("fork")
    location = str(tmp_path / "store")
    start, answers = fork.Barrier(number), fork.Queue()
    processes = [
        fork.Process(target=_publish_when_told, args=(location, f"process {who}", start, answers))
        for who in range(number)
    ]
    for process in processes:
        process.start()
    published = [answers.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    check_one_artifact(open_store(location), published)


def test_many_who_find_one_artifact_damaged_replace_it_once(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    first = open_store(location)
    publish(location, "first")
    old = first.get(KIND, KEY)
    overwrite(Path(location) / old.prefix / "a", b"FIRST", keep_time=False)
    start = threading.Barrier(6)

    def rebuild(who: int) -> tuple[int, str]:
        start.wait()
        store = open_store(location)
        found = store.find(KIND, KEY)
        if found is None:
            publish(location, f"thread {who}")
            found = store.get(KIND, KEY)
        return found.number, found.digest

    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(rebuild, range(6)))
    assert {number for number, _ in found} == {2}
    assert len(found) == 1


def test_readers_beside_a_writer_see_nothing_or_everything(store: Store) -> None:
    seen: list[dict[str, bytes] | None] = []
    stop = threading.Event()

    def watch() -> None:
        own = open_store(store.backend.location)
        while not stop.is_set():
            seen.append(read(own))

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    files = {f"part-{number}": os.urandom(1000) for number in range(20)}
    for _ in range(6):
        artifact = put(store, ingredients(), files)
        time.sleep(0.02)
        artifact.condemn("so that the next one is made")
    stop.set()
    for watcher in watchers:
        watcher.join()
    assert all(content is None or content == files for content in seen)
    assert None in seen
    assert files in seen


# --- collectors beside runs ----------------------------------------------------------------------------------------


@contextmanager
def collector(location: str) -> Iterator[list[int]]:
    """Somebody who collects all the time, without any grace, and knows no roots."""
    rounds: list[int] = []
    stop = threading.Event()
    errors: list[ArtifactError] = []

    def work() -> None:
        own = open_store(location)
        while not stop.is_set():
            try:
                rounds.append(len(collect(own, [], grace_seconds=0.0)))
            except ArtifactError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_a_collector_beside_a_live_run_takes_nothing_from_it(store: Store) -> None:
    old = put(store, ingredients("conversations"))
    with leased(store.backend, "runs/1", keys=[["conversations", old.key]]) as lease:
        with collector(store.backend.location) as rounds:
            keys = [["conversations", old.key]]
            parent = old
            for number in range(8):
                made_of = ingredients(KIND, {"parent": parent.digest}, number=number)
                keys.append([KIND, artifact_key(made_of)])
                lease.note(keys=keys)
                assert parent.directory()
                parent = put(store, ingredients(KIND, number=number), parent=parent)
                assert parent.key == keys[-1][1]
            assert all(store.get(kind, key).verify() == [] for kind, key in keys)
        assert sum(rounds) == 0
        assert rounds
    # The run has ended and registered nothing: now it may go.
    assert len(collect(store, [], grace_seconds=0.0)) == 9
    assert list(store.artifacts()) == []


def test_without_a_lease_the_same_collector_takes_everything(store: Store) -> None:
    """So the test above could fail."""
    old = put(store, ingredients("conversations"))
    with collector(store.backend.location) as rounds:
        end = time.monotonic() + 10
        while store.find("conversations", old.key) is not None and time.monotonic() < end:
            time.sleep(0.005)
    assert sum(rounds) == 1
    with pytest.raises(ArtifactDamaged):
        old.directory()


def test_a_writer_whose_files_are_taken_leaves_nothing_wrong(store: Store) -> None:
    """Without a lease and beyond any grace: what it publishes is found damaged, not half there."""
    with store.write(KIND, ingredients()) as writing:
        (writing.directory / "a").write_bytes(b"1")
        (writing.directory / "b").write_bytes(b"2")
        collect(store, [], grace_seconds=0.0)
        writing.directory.mkdir(parents=True, exist_ok=True)
        (writing.directory / "b").write_bytes(b"2")
    assert contents(store.get(KIND, KEY).directory()) == {"b": b"2"}
