"""The contract of the artifact store, asked of every kind of place."""

import copy
import errno
import logging
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import (
    ArtifactDamaged,
    ArtifactError,
    ArtifactMissing,
    ArtifactUnknown,
    RecordTooLarge,
    StoreFull,
    TransientError,
)
from deepspec.store import Backend, Ingredients, Parent, Store, artifact_key, open_store
from deepspec.store.backends.contract import MAX_RECORD_BYTES, created
from deepspec.store.copy_store import copy_store
from deepspec.store.gc import collect
from deepspec.store.layout import Stat
from deepspec.store.records import seal
from tests.fixtures.refused import refused
from tests.fixtures.store import (
    EVERY_PLACE,
    KEY,
    PLACES,
    Around,
    Place,
    contents,
    digest_by_hand,
    fill,
    ingredients,
    manifest_path,
    manifest_record,
    put,
)

KIND = "tokens"


@pytest.fixture(params=EVERY_PLACE)
def place(request: pytest.FixtureRequest) -> Place:
    return PLACES[request.param](request)


@pytest.fixture
def store(place: Place) -> Store:
    return place.store()


@pytest.fixture
def backend(store: Store) -> Backend:
    return store.backend


# --- the backend ---------------------------------------------------------------------------------------------------


def test_create_writes_once_and_never_overwrites(backend: Backend) -> None:
    assert backend.create("registry/a/1.json", b"first")
    assert not backend.create("registry/a/1.json", b"second")
    assert backend.read("registry/a/1.json") == b"first"


def test_of_many_creators_exactly_one_wins_and_its_bytes_stand(backend: Backend) -> None:
    for number in range(5):
        start = threading.Barrier(16)

        def race(who: int, number: int = number, start: threading.Barrier = start) -> bool:
            start.wait()
            return backend.create(f"registry/race/{number}.json", b"%d" % who * 1000)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(race, range(16)))
        assert won.count(True) == 1
        assert backend.read(f"registry/race/{number}.json") == b"%d" % won.index(True) * 1000


def test_put_overwrites_and_is_never_seen_half_written(backend: Backend) -> None:
    bodies = [bytes([letter]) * 50_000 for letter in b"ab"]
    backend.put("leases/x", bodies[0])
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(backend.read("leases/x"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(30):
        backend.put("leases/x", bodies[turn % 2])
    stop.set()
    watcher.join()
    assert seen
    assert set(seen) <= set(bodies)
    assert backend.read("leases/x") == bodies[1]


@pytest.mark.parametrize("path", ["registry/none", "registry", "registry/a/below", "none/at/all"])
def test_reading_what_is_no_file_says_that_nothing_is_there(backend: Backend, path: str) -> None:
    backend.create("registry/a", b"")
    with pytest.raises(FileNotFoundError):
        backend.read(path)


def test_no_more_of_a_record_is_read_than_a_record_may_have(place: Place) -> None:
    backend = place.store().backend
    for size in (100, 101, 3 << 20):
        backend.create(f"registry/{size}.json", b"")
        place.overwrite(f"registry/{size}.json", b"x" * size)
    assert len(backend.read("registry/100.json", max_bytes=100)) == 100
    for size in (101, 3 << 20):
        with refused(RecordTooLarge, "100", where=f"{backend.location}/registry/{size}.json"):
            backend.read(f"registry/{size}.json", max_bytes=100)
    assert len(backend.read(f"registry/{3 << 20}.json")) == 3 << 20


def test_a_record_that_could_not_be_read_back_is_not_written(backend: Backend) -> None:
    too_large = bytes(MAX_RECORD_BYTES + 1)
    for write in (backend.create, backend.put):
        with refused(RecordTooLarge, f"{len(too_large):,}", where="registry/a.json"):
            write("registry/a.json", too_large)
    assert not backend.list("registry")


def test_a_manifest_that_is_too_large_is_no_artifact_and_is_named(place: Place) -> None:
    artifact = put(place.store(), ingredients())
    place.overwrite(manifest_path(artifact), b" " * (MAX_RECORD_BYTES + 1))
    with refused(RecordTooLarge, f"{MAX_RECORD_BYTES:,}", where=manifest_path(artifact)):
        place.store().find(KIND, KEY)


def test_list_names_every_file_under_a_folder_and_no_other(backend: Backend) -> None:
    sizes = {"a/1": 3, "a/b/2": 0, "ab/3": 5, "a.json": 7}
    for path, size in sizes.items():
        backend.create(path, b"x" * size)
    assert {path: stat.size for path, stat in backend.list("").items()} == sizes
    assert {path: stat.size for path, stat in backend.list("a").items()} == {"a/1": 3, "a/b/2": 0}
    assert list(backend.list("a")) == ["a/1", "a/b/2"]
    assert backend.list("none") == {}
    assert backend.list("a/1") == {}


def test_odd_names_come_back_as_they_were(backend: Backend) -> None:
    paths = {"odd/a b.json", "odd/ü%20+&=.txt", "odd/-._~'()!", "odd/.hidden", 'odd/tab\tquote"', "odd/日本"}
    for path in paths:
        assert backend.create(path, path.encode())
    assert set(backend.list("odd")) == paths
    assert all(backend.read(path) == path.encode() for path in paths)


def test_times_are_measured_by_the_clock_of_the_place(place: Place) -> None:
    backend = place.store().backend
    before = backend.clock()
    backend.put("leases/x", b"1")
    first = backend.list("leases")["leases/x"].modified
    time.sleep(place.tick_seconds)
    backend.put("leases/x", b"2")
    second = backend.list("leases")["leases/x"].modified
    after = backend.clock()
    assert before - place.tick_seconds <= first < second <= after + place.tick_seconds
    assert after - before < 10


def test_delete_removes_one_file_and_minds_no_absence(backend: Backend) -> None:
    for path in ("a/b/1", "a/b/2", "a/3"):
        backend.create(path, b"")
    backend.delete("a/b/1")
    backend.delete("a/b/1")
    backend.delete("a/b")
    backend.delete("none/at/all")
    assert set(backend.list("")) == {"a/b/2", "a/3"}
    backend.delete("a/b/2")
    backend.delete("a/3")
    assert backend.list("") == {}
    assert backend.create("a/b/1", b"again")


def test_creating_beside_somebody_who_deletes_never_fails(backend: Backend) -> None:
    """Folders that a removal leaves empty go, also while somebody is about to write there."""

    def come_and_go(who: int) -> None:
        for number in range(25):
            assert backend.create(f"leases/shared/{who}", b"x")
            backend.delete(f"leases/shared/{who}")
            prefix = f"shared/{KEY}/{who:016}{number:016}"
            folder = backend.staging(prefix)
            (folder / "x").touch()
            backend.publish(prefix, folder)
            backend.delete(f"{prefix}/x")
            backend.put(f"shared/{who}", b"")
            backend.delete(f"shared/{who}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert backend.list("") == {}


def test_staged_files_are_published_and_fetched_back(backend: Backend) -> None:
    prefix = f"tokens/{KEY}/{'0' * 32}"
    staging = backend.staging(prefix)
    assert staging.is_dir()
    assert not any(staging.iterdir())
    fill(staging)
    expected = contents(staging)
    backend.publish(prefix, staging)
    listed = {path.removeprefix(f"{prefix}/"): stat.size for path, stat in backend.list(prefix).items()}
    assert listed == {name: len(data) for name, data in expected.items()}
    some = backend.fetch(prefix, ["draft/config.json"])
    assert (some / "draft" / "config.json").read_bytes() == expected["draft/config.json"]
    folder = backend.fetch(prefix, sorted(expected))
    assert folder == some
    assert contents(folder) == expected


def test_fetching_leaves_out_what_is_not_there(backend: Backend) -> None:
    prefix = f"tokens/{KEY}/{'0' * 32}"
    staging = backend.staging(prefix)
    (staging / "there").write_bytes(b"1")
    backend.publish(prefix, staging)
    folder = backend.fetch(prefix, ["there", "not there"])
    assert (folder / "there").read_bytes() == b"1"
    assert not (folder / "not there").exists()


def test_a_sweep_takes_nothing_that_is_listed(store: Store) -> None:
    artifact = put(store, ingredients())
    store.backend.put("leases/x", b"1")
    before = store.backend.list("")
    store.backend.sweep(0.0)
    assert store.backend.list("") == before
    assert artifact.verify() == []


class LosesAnswers(Around):
    """Creates, and then the answer is lost: the caller hears False (a retry found the object) or an error."""

    def __init__(self, inner: Backend, answer: Exception | None) -> None:
        super().__init__(inner)
        self.answer = answer

    def create(self, path: str, data: bytes) -> bool:
        self.inner.create(path, data)
        if self.answer is not None:
            raise self.answer
        return False


LOST_ANSWERS = [None, TransientError("Read timed out."), ArtifactError("fsync failed.")]


@pytest.mark.parametrize("answer", LOST_ANSWERS, ids=str)
def test_a_lost_answer_is_resolved_by_reading_back(backend: Backend, answer: Exception | None) -> None:
    lossy = LosesAnswers(backend, answer)
    assert created(lossy, "registry/1", b"mine")
    if answer is None:
        assert not created(lossy, "registry/1", b"another's")
    else:
        with pytest.raises(type(answer)):
            created(lossy, "registry/1", b"another's")
    assert backend.read("registry/1") == b"mine"


# --- writing -------------------------------------------------------------------------------------------------------


def test_what_was_written_is_found_with_everything_that_made_it(place: Place) -> None:
    store = place.store()
    store.code["deepspec"] = "1.2.3"
    source = put(store, ingredients("responses"))
    made_of = ingredients(parents={"responses": source.digest, "target": "f" * 64}, max_length=4096)
    parents = {
        "responses": Parent(kind="responses", key=source.key, digest=source.digest),
        "target": Parent(kind="external", digest="f" * 64),
    }
    with store.write(KIND, made_of, parents) as writing:
        fill(writing.directory)
        expected = contents(writing.directory)
        # Numbers as names (a histogram) sort otherwise than their texts do.
        writing.counts = {"rows": 300, "lengths": {9: 1, 10: 2}, "share": 0.5}
    found = place.store().find(KIND, artifact_key(made_of))
    assert found is not None
    assert found.manifest == writing.artifact.manifest
    assert contents(found.directory()) == expected
    assert found.digest == digest_by_hand(expected)
    assert found.size_bytes == sum(map(len, expected.values()))
    assert found.json("draft/config.json") == {"layers": [1, 2, 3], "name": "tiny"}
    assert found.verify() == []
    manifest = found.manifest
    assert (manifest.kind, manifest.key, found.number) == (KIND, artifact_key(made_of), 1)
    assert manifest.ingredients == made_of.canonical()
    assert manifest.parents == parents
    assert manifest.counts == {"rows": 300, "lengths": {"9": 1, "10": 2}, "share": 0.5}
    assert manifest.code == {"deepspec": "1.2.3"}
    assert manifest.cost["bytes_written"] == found.size_bytes
    assert [entry.path for entry in manifest.files] == sorted(expected)
    assert all(set(entry) == {"path", "size", "sha256", "blocks"} for entry in manifest_record(found)["files"])


def test_nothing_is_visible_before_the_block_ends(place: Place) -> None:
    store = place.store()
    with store.write(KIND, ingredients()) as writing:
        fill(writing.directory)
        assert place.store().find(KIND, KEY) is None
        assert list(place.store().artifacts()) == []
        with pytest.raises(ArtifactMissing):
            place.store().get(KIND, KEY)
        with pytest.raises(ArtifactError):
            _ = writing.artifact
    assert place.store().get(KIND, KEY).directory()


@pytest.mark.parametrize("error", [ValueError("stage"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_block_that_raises_leaves_nothing(store: Store, error: BaseException) -> None:
    folders: list[Path] = []

    def stage(folder: Path) -> None:
        folders.append(folder)
        fill(folder)
        raise error

    with pytest.raises(type(error)) as caught, store.write(KIND, ingredients()) as writing:
        stage(writing.directory)
    assert caught.value is error
    assert store.find(KIND, KEY) is None
    assert store.backend.list("") == {}
    assert not folders[0].exists()


WRITER = """
import sys
from pathlib import Path
from deepspec.store import open_store
from tests.fixtures.store import fill, ingredients

store = open_store(sys.argv[1])
for number in range(int(sys.argv[2])):
    with store.write("tokens", ingredients(number=number)) as writing:
        fill(writing.directory)
        print("inside", number, flush=True)
        if sys.argv[3] == "wait":
            sys.stdin.read()
    print("done", number, flush=True)
"""


def writer(place: Place, number: int, mode: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, place.location, str(number), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_a_writer_killed_inside_its_block_leaves_nothing_visible_and_can_be_repeated(place: Place) -> None:
    with writer(place, 1, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside 0\n"
        process.send_signal(signal.SIGKILL)
    store = place.store()
    made_of = ingredients(number=0)
    orphans = store.backend.list(KIND)
    assert store.find(KIND, artifact_key(made_of)) is None
    assert list(store.artifacts()) == []
    artifact = put(store, made_of)
    assert artifact.number == 1
    assert artifact.directory()
    assert any(Path(place.disk).rglob("rows.parquet"))
    collect(store, [(KIND, artifact.key)], grace_seconds=-place.tick_seconds)
    assert not orphans.keys() & store.backend.list("").keys()
    assert store.get(KIND, artifact.key).verify() == []


def test_whenever_a_writer_is_killed_what_is_visible_is_whole(place: Place) -> None:
    dice = random.Random(7)
    with writer(place, 10_000, "on") as process:
        assert process.stdout is not None
        done = [line for _ in range(20) if (line := process.stdout.readline()).startswith("done")]
        time.sleep(dice.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        done += [line for line in process.stdout if line.startswith("done")]
    artifacts = list(place.store().artifacts())
    assert len(artifacts) in (len(done), len(done) + 1)
    for artifact in artifacts:
        assert artifact.verify() == []
        assert set(contents(artifact.directory())) == {entry.path for entry in artifact.manifest.files}
        assert len(artifact.manifest.files) == 4


def with_file_limit(limit_bytes: int, work: Callable[[], None]) -> None:
    """Run `work` where no file may grow beyond the limit: writes fail the way they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def by_hand(folder: Path) -> None:
    with (folder / "data.bin").open("wb") as file:
        file.write(b"x" * 100_000)


def by_pyarrow(folder: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"x": np.random.default_rng(0).integers(0, 1 << 60, 20_000)})
    pq.write_table(table, folder / "data.parquet")


def by_safetensors(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(50_000, np.float32)}, folder / "data.safetensors")


@pytest.mark.parametrize("write", [by_hand, by_pyarrow, by_safetensors])
def test_a_disk_that_fills_while_a_stage_writes_is_named(place: Place, write: Callable[[Path], None]) -> None:
    store = place.store()

    def work() -> None:
        with store.write(KIND, ingredients()) as writing:
            write(writing.directory)

    with pytest.raises(StoreFull) as caught:
        with_file_limit(50_000, work)
    assert place.disk in str(caught.value)
    assert "DEEPSPEC_STORE" in str(caught.value)
    assert store.backend.list("") == {}
    work()
    assert store.get(KIND, KEY).verify() == []


def test_an_error_that_is_not_about_room_stays_what_it_is(store: Store) -> None:
    with pytest.raises(PermissionError), store.write(KIND, ingredients()):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(ArtifactError, match="os error 28") as caught, store.write(KIND, ingredients()):
        raise ArtifactError("A typed error that quotes (os error 28).")
    assert not isinstance(caught.value, StoreFull)


class FullForManifests(Around):
    def create(self, path: str, data: bytes) -> bool:
        raise StoreFull("No space left for artifacts.", where=self.inner.location)


def test_a_disk_that_fills_when_the_manifest_is_due_leaves_nothing(place: Place) -> None:
    store = place.store()
    with pytest.raises(StoreFull):
        put(Store(FullForManifests(store.backend)), ingredients())
    assert store.backend.list("") == {}


class LandsLate(Around):
    """The manifest's request gets no answer, and is carried out only later."""

    late: tuple[str, bytes] | None = None

    def create(self, path: str, data: bytes) -> bool:
        self.late = (path, data)
        raise TransientError("No answer.")


def test_a_manifest_that_lands_after_its_writer_gave_up_is_a_whole_artifact(place: Place) -> None:
    store = place.store()
    slow = LandsLate(store.backend)
    with pytest.raises(TransientError):
        put(Store(slow), ingredients())
    assert store.find(KIND, KEY) is None
    assert slow.late is not None
    store.backend.create(*slow.late)
    assert store.get(KIND, KEY).verify() == []


@pytest.mark.parametrize("answer", LOST_ANSWERS, ids=str)
def test_a_lost_answer_to_the_manifest_does_not_lose_the_artifact(place: Place, answer: Exception | None) -> None:
    store = place.store()
    artifact = put(Store(LosesAnswers(store.backend, answer)), ingredients())
    assert artifact.number == 1
    found = place.store().get(KIND, KEY)
    assert found.manifest.attempt == artifact.manifest.attempt
    assert found.verify() == []


def test_who_comes_second_takes_the_first_ones_artifact(place: Place) -> None:
    store = place.store()
    with store.write(KIND, ingredients()) as slow:
        (slow.directory / "who").write_text("slow")
        fast = put(place.store(), ingredients(), {"who": b"fast"})
    assert slow.artifact.manifest == fast.manifest
    assert (slow.artifact.directory() / "who").read_text() == "fast"
    attempts = {path.split("/")[2] for path in store.backend.list(KIND) if path.count("/") > 2}
    assert attempts == {fast.manifest.attempt}


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_who_publishes_at_any_moment_of_anothers_publishing_is_alone_or_second(place: Place, moment: int) -> None:
    class Interrupted(Around):
        """Somebody else publishes right after the n-th listing that this writer makes."""

        listings = 0

        def list(self, prefix: str) -> dict[str, Stat]:
            listing: dict[str, Stat] = self.inner.list(prefix)
            self.listings += 1
            if self.listings == moment:
                put(place.store(), ingredients(), {"who": b"the other"})
            return listing

    interrupted = Interrupted(place.store().backend)
    artifact = put(Store(interrupted), ingredients(), {"who": b"this one"})
    store = place.store()
    assert store.numbers(KIND, KEY) == [1]
    assert store.get(KIND, KEY).manifest == artifact.manifest
    expected = b"the other" if interrupted.listings >= moment else b"this one"
    assert contents(artifact.directory()) == {"who": expected}


@pytest.mark.parametrize("kind", ["leases", "registry", "work", "", "a/b", "..", ".hidden"])
def test_a_kind_has_to_be_a_name_that_is_free(store: Store, kind: str) -> None:
    with refused(ArtifactError, "kind", repr(kind)), store.write(kind, ingredients()):
        pass
    assert store.backend.list("") == {}


@pytest.mark.parametrize(
    "recorded", [{}, {"a": "1", "b": "2"}, {"a": "2"}, {"b": "1"}], ids=["missing", "more", "other", "renamed"]
)
def test_recorded_parents_have_to_be_those_of_the_key(store: Store, recorded: dict[str, str]) -> None:
    parents = {name: Parent(kind="external", digest=digest) for name, digest in recorded.items()}
    with refused(ArtifactError, "parents", where=KIND), store.write(KIND, ingredients(parents={"a": "1"}), parents):
        pass


def test_a_link_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_text("may change")
    for target in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "data", tmp_path / "nowhere"):
        with refused(ArtifactError, where="link"), store.write(KIND, ingredients()) as writing:
            (writing.directory / "link").symlink_to(target)
    assert store.backend.list("") == {}
    assert (tmp_path / "elsewhere" / "data").read_text() == "may change"


@pytest.mark.parametrize("name", ["rows.parquet", "model.safetensors"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"], ids=len)
def test_a_file_that_is_not_what_its_suffix_says_is_refused(store: Store, name: str, data: bytes) -> None:
    with refused(ArtifactError, "Parquet" if name.endswith(".parquet") else "safetensors", where=name):
        put(store, ingredients(), {name: data})
    assert store.find(KIND, KEY) is None


def test_a_file_name_that_is_no_text_is_refused(store: Store) -> None:
    with refused(ArtifactError, "Unicode"), store.write(KIND, ingredients()) as writing:
        (writing.directory / "b\udcffd").touch()
    assert store.find(KIND, KEY) is None


def test_counts_that_are_no_json_are_refused_by_name(store: Store) -> None:
    with refused(ArtifactError, where="tokens.counts"), store.write(KIND, ingredients()) as writing:
        writing.counts = {"rows": object()}
    assert store.backend.list("") == {}


# --- finding -------------------------------------------------------------------------------------------------------


def test_finding_costs_one_listing_and_one_read(store: Store) -> None:
    artifact = put(store, ingredients())
    calls: list[str] = []

    class Counting(Around):
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return super().__getattr__(name)

    found = Store(Counting(store.backend)).find(KIND, KEY)
    assert found is not None
    assert found.manifest == artifact.manifest
    assert calls == ["list", "read"]


def test_the_latest_manifests_come_newest_first(place: Place) -> None:
    store = place.store()
    for number in range(3):
        put(store, ingredients(number=number))
        time.sleep(place.tick_seconds)
    put(store, ingredients("responses"))
    assert [manifest.ingredients["sections"]["number"] for manifest in store.latest(KIND, 2)] == [2, 1]
    assert list(store.latest("none", 2)) == []


def test_what_was_written_last_is_newest_whatever_the_writers_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three machines write, each with a clock an hour behind the one before; a copy has their order, too."""
    store = open_store(str(tmp_path / "store"))

    class Late(datetime):
        hours = 0

        @classmethod
        def now(cls, zone: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(zone) - timedelta(hours=cls.hours)

    monkeypatch.setattr("deepspec.store.artifacts.datetime", Late)
    keys = []
    for number in range(3):
        Late.hours = number
        keys.insert(0, put(store, ingredients("gate", number=number)).key)
        time.sleep(0.02)  # coarser than a file system's clock
    assert [item.key for item in store.newest_first("gate")] == keys
    assert [key for _, key in store.oldest_first()] == keys[::-1]
    copied = open_store(str(tmp_path / "copied"))
    copy_store(store, copied)
    assert [item.key for item in copied.newest_first("gate")] == keys


def test_one_file_is_fetched_without_the_others(store: Store) -> None:
    put(store, ingredients(), {"big": b"x" * 1000, "summary.json": b"{}"})
    fetched: list[str] = []

    class Recording(Around):
        def fetch(self, prefix: str, names: Sequence[str], *, refetch: bool = False) -> Path:
            fetched.extend(names)
            folder: Path = self.inner.fetch(prefix, names, refetch=refetch)
            return folder

    found = Store(Recording(store.backend)).get(KIND, KEY)
    assert found.json("summary.json") == {}
    assert fetched == ["summary.json"]
    with refused(ArtifactError, "'other'", where=KEY):
        found.path("other")


class Copying(Around):
    """Keeps local copies of what it fetched, as object storage has to."""

    def __init__(self, inner: Backend, folder: Path) -> None:
        super().__init__(inner)
        self.folder = folder

    def fetch(self, prefix: str, names: Sequence[str], *, refetch: bool = False) -> Path:
        source: Path = self.inner.fetch(prefix, names, refetch=refetch)
        for name in names:
            copied = self.folder / prefix / name
            if refetch or not copied.exists():
                copied.parent.mkdir(parents=True, exist_ok=True)
                copied.unlink(missing_ok=True)
                if (source / name).exists():
                    shutil.copyfile(source / name, copied)
        return self.folder / prefix


def test_a_damaged_copy_is_fetched_anew_and_condemns_nothing(store: Store, tmp_path: Path) -> None:
    copying = Store(Copying(store.backend, tmp_path / "copies"))
    put(copying, ingredients(), {"data": b"right"})
    folder = copying.get(KIND, KEY).directory()
    (folder / "data").write_bytes(b"wrong")
    assert (copying.get(KIND, KEY).directory() / "data").read_bytes() == b"right"
    (folder / "data").unlink()
    assert (copying.get(KIND, KEY).directory() / "data").read_bytes() == b"right"
    assert store.find(KIND, KEY) is not None


@pytest.mark.parametrize("use", ["a hit", "verify"])
def test_a_whole_copy_does_not_hide_that_the_original_changed(place: Place, tmp_path: Path, use: str) -> None:
    store = place.store()
    copying = Store(Copying(store.backend, tmp_path / "copies"))
    artifact = put(copying, ingredients(), {"data": b"right"})
    found = copying.get(KIND, KEY)
    assert found.directory()
    time.sleep(place.tick_seconds)
    place.overwrite(f"{artifact.prefix}/data", b"wrong")
    if use == "a hit":
        assert copying.find(KIND, KEY) is None
    else:
        assert found.verify() == ["data: it does not match its SHA-256"]


def test_a_condemned_artifact_is_replaced_by_the_next_number(place: Place) -> None:
    store = place.store()
    first = put(store, ingredients(), {"data": b"1"})
    first.condemn("looks wrong")
    assert store.find(KIND, KEY) is None
    second = put(place.store(), ingredients(), {"data": b"2"})
    assert (first.number, second.number) == (1, 2)
    assert place.store().get(KIND, KEY).manifest == second.manifest
    second.condemn("looks wrong too")
    assert place.store().find(KIND, KEY) is None
    assert put(store, ingredients()).number == 3


def test_the_highest_valid_number_wins(place: Place) -> None:
    store = place.store()
    first = put(store, ingredients(), {"data": b"1"})
    record = manifest_record(first)
    second = put(store, ingredients("responses"))
    store.backend.create(f"{KIND}/{KEY}/manifest.10.json", seal(record))
    store.backend.create(f"{KIND}/{KEY}/manifest.9.json", seal(record))
    assert store.get(KIND, KEY).number == 10
    store.condemn(KIND, KEY, 10, "test")
    assert store.get(KIND, KEY).number == 9
    assert second.number == 1


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"checksum": "0"}', b"null"])
def test_a_damaged_manifest_is_no_artifact(place: Place, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = place.store()
    first = put(store, ingredients())
    place.overwrite(manifest_path(first), data)
    with caplog.at_level(logging.WARNING):
        assert place.store().find(KIND, KEY) is None
    assert "manifest.1.json cannot be used" in caplog.text
    second = put(store, ingredients())
    assert second.number == 2
    assert place.store().get(KIND, KEY).verify() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("attempt", "../.."), ("attempt", "a"), ("key", "0" * 64), ("kind", "responses"), ("files", [{"path": "x"}])],
)
def test_a_manifest_about_something_else_is_no_artifact(place: Place, field: str, value: object) -> None:
    store = place.store()
    first = put(store, ingredients())
    place.overwrite(manifest_path(first), seal(manifest_record(first) | {field: value}))
    assert place.store().manifest(KIND, KEY, 1) is None
    assert place.store().find(KIND, KEY) is None
    assert put(store, ingredients()).number == 2


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "a/../../b", "", "a//b", "./a", "a/", "."])
def test_no_name_in_a_manifest_leads_out_of_its_folder(place: Place, path: str) -> None:
    store = place.store()
    first = put(store, ingredients())
    record = manifest_record(first)
    record["files"][0]["path"] = path
    place.overwrite(manifest_path(first), seal(record))
    assert place.store().manifest(KIND, KEY, 1) is None
    assert place.store().find(KIND, KEY) is None


def test_a_manifest_copied_to_another_key_harms_neither(place: Place) -> None:
    store = place.store()
    original = put(store, ingredients())
    other = artifact_key(ingredients(other=1))
    store.backend.create(f"{KIND}/{other}/manifest.1.json", store.backend.read(manifest_path(original)))
    assert store.find(KIND, other) is None
    assert place.store().get(KIND, KEY).manifest == original.manifest


@pytest.mark.parametrize("more", [{}, {"new": {"field": 1}, "files": "otherwise"}], ids=["alike", "otherwise"])
def test_a_manifest_of_a_newer_deepspec_is_refused_and_not_taken_for_damaged(
    place: Place, more: dict[str, object]
) -> None:
    store = place.store()
    first = put(store, ingredients())
    place.overwrite(manifest_path(first), seal(manifest_record(first) | {"format": 2} | more))
    before = store.backend.list("")
    for use in (
        lambda: store.find(KIND, KEY),
        lambda: store.get(KIND, KEY),
        lambda: list(store.artifacts()),
        lambda: store.resolve(KEY),
        lambda: put(store, ingredients()),
        lambda: collect(store, [(KIND, KEY)], grace_seconds=-place.tick_seconds),
    ):
        with refused(ArtifactError, "format 2", "up to 1"):
            use()
    assert store.backend.list("") == before


def test_a_manifest_with_fields_that_a_later_deepspec_added_is_read(place: Place) -> None:
    store = place.store()
    first = put(store, ingredients())
    place.overwrite(manifest_path(first), seal(manifest_record(first) | {"added_later": 1}))
    assert place.store().get(KIND, KEY).manifest == first.manifest


@pytest.mark.parametrize("harm", ["missing", "shorter", "longer"])
def test_a_hit_notices_a_file_that_is_missing_or_of_another_size(
    place: Place, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = place.store()
    first = put(store, ingredients(), {"a/data": b"12345", "b": b""})
    path = f"{first.prefix}/a/data"
    if harm == "missing":
        store.backend.delete(path)
    else:
        place.overwrite(path, {"shorter": b"1234", "longer": b"123456"}[harm])
    with caplog.at_level(logging.WARNING):
        assert place.store().find(KIND, KEY) is None
    said = {
        "missing": "it is missing",
        "shorter": "it has 4 bytes instead of 5",
        "longer": "it has 6 bytes instead of 5",
    }
    assert f"is damaged and will be rebuilt: a/data: {said[harm]}" in caplog.text
    second = put(store, ingredients(), {"a/data": b"12345", "b": b""})
    assert second.number == 2
    assert second.digest == first.digest
    assert place.store().get(KIND, KEY).verify() == []


class FirstListingIsEarly(Around):
    """The first listing shows the manifest, but not yet the files that were there before it."""

    early = True

    def list(self, prefix: str) -> dict[str, Stat]:
        listing: dict[str, Stat] = self.inner.list(prefix)
        if not self.early:
            return listing
        self.early = False
        return {path: stat for path, stat in listing.items() if path.count("/") == 2}


def test_a_listing_that_was_made_while_files_came_condemns_nothing(store: Store) -> None:
    put(store, ingredients())
    assert Store(FirstListingIsEarly(store.backend)).find(KIND, KEY) is not None
    assert not any("condemned" in path for path in store.backend.list(""))


def test_damage_met_by_a_reader_names_the_file_and_condemns(place: Place) -> None:
    store = place.store()
    first = put(store, ingredients(), {"a/data": b"12345"})
    found = place.store().get(KIND, KEY)
    place.overwrite(f"{first.prefix}/a/data", b"12x45")
    with pytest.raises(ArtifactDamaged) as caught:
        found.directory()
    error = copy.copy(caught.value)
    assert (error.kind, error.key, error.file) == (KIND, KEY, "a/data")
    assert store.find(KIND, KEY) is None
    assert put(store, ingredients(), {"a/data": b"12345"}).number == 2


def test_an_old_reference_does_not_condemn_what_was_made_anew_under_its_number(place: Place) -> None:
    store = place.store()
    old = put(store, ingredients(), {"data": b"old"})
    collect(store, [], grace_seconds=-place.tick_seconds)
    new = put(store, ingredients(), {"data": b"new"})
    assert new.number == old.number
    with pytest.raises(ArtifactDamaged):
        old.directory()
    assert store.get(KIND, KEY).manifest == new.manifest


def test_a_foreign_file_among_an_artifacts_files_is_no_part_of_it(place: Place) -> None:
    store = place.store()
    artifact = put(store, ingredients())
    folder = artifact.directory()
    (folder / "more.parquet").write_bytes(b"who am I")
    with refused(ArtifactError, where="more.parquet"):
        store.get(KIND, KEY).directory()
    (folder / "more.parquet").rename(folder / ".more")
    assert store.get(KIND, KEY).directory() == folder


def test_artifacts_are_listed_by_kind_and_key(store: Store) -> None:
    made = [put(store, ingredients(kind, n=n)) for kind in ("tokens", "tokens2", "responses") for n in range(3)]
    store.backend.create("registry/m/promotions/1.json", b"{}")
    store.backend.create(f"registry/{KEY}/manifest.1.json", b"{}")
    store.backend.create("work/x/manifest.1.json", b"{}")
    store.backend.create("notes.txt", b"")
    pairs = sorted((item.kind, item.key) for item in made)
    assert [(item.kind, item.key) for item in store.artifacts()] == pairs
    assert [(item.kind, item.key) for item in store.artifacts("tokens")] == [p for p in pairs if p[0] == "tokens"]
    assert list(store.artifacts("none")) == []
    assert list(store.artifacts("registry")) == []
    made[0].condemn("test")
    assert len(list(store.artifacts())) == len(made) - 1
    assert len(store.names()) == len(made)


def test_a_person_may_name_an_artifact_by_the_start_of_its_key(store: Store) -> None:
    made = [put(store, ingredients(n=n)) for n in range(20)]
    same = put(store, Ingredients("responses", 1, {"n": 0}))
    for artifact in made:
        assert store.resolve(artifact.key).manifest == artifact.manifest
        assert store.resolve(f"tokens/{artifact.key[:12]}").manifest == artifact.manifest
    assert store.resolve(f"responses/{same.key[0]}").manifest == same.manifest
    shared = next(a.key[0] for a in made for b in made if a.key != b.key and a.key[0] == b.key[0])
    for name, said in [(shared, "match "), ("tokens/", "No"), ("", "No"), ("none/0", "No")]:
        with refused(ArtifactUnknown, said, repr(name)):
            store.resolve(name)
    made[0].condemn("test")
    with pytest.raises(ArtifactMissing):
        store.resolve(made[0].key)


def test_files_about_an_artifact_are_checked_but_no_part_of_its_digest(store: Store, place: Place) -> None:
    found = []
    for turn, note in enumerate((b"from here", b"from there")):
        with store.write(KIND, ingredients(turn=turn), {}) as writing:
            (writing.directory / "about").mkdir()
            (writing.directory / "about" / "origin.txt").write_bytes(note)
            (writing.directory / "data.txt").write_bytes(b"the same")
        found.append(writing.artifact)
    assert found[0].digest == found[1].digest
    place.overwrite(f"{found[0].prefix}/about/origin.txt", b"from Mars")
    assert any("about/origin.txt" in flaw for flaw in found[0].verify())
