"""What only a local folder does, and the sealed records that every place holds."""

import errno
import os
from pathlib import Path

import pytest

from deepspec.errors import ArtifactError, RecipeError, RecordTooLarge, StoreFull
from deepspec.store import Store, open_store
from deepspec.store.reading import pieces
from deepspec.store.records import seal, unseal
from tests.fixtures.refused import refused
from tests.fixtures.store import KEY, ingredients, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EROFS, ArtifactError)]
)
def test_no_room_and_no_right_are_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[ArtifactError]
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    for call in (store.backend.create, store.backend.put):
        with refused(expected, where=store.backend.location) as caught:
            call("registry/a", b"1")
        assert "DEEPSPEC_STORE" in str(caught.value.remedy)
    assert store.backend.list("") == {}


def test_a_file_where_a_folder_should_be_is_named(store: Store) -> None:
    store.backend.create("tokens", b"")
    with refused(ArtifactError, "written", where=store.backend.location):
        put(store, ingredients())
    with refused(ArtifactError, "written", where=store.backend.location):
        store.backend.create("tokens/a", b"")


def test_file_systems_without_hard_links_create_exclusively(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert store.backend.create("registry/a", b"first")
    assert not store.backend.create("registry/a", b"second")
    assert store.backend.read("registry/a") == b"first"
    assert put(store, ingredients()).verify() == []


def test_a_huge_record_is_refused_before_it_is_read(store: Store) -> None:
    store.backend.create("registry/a.json", b"")
    os.truncate(Path(store.backend.location) / "registry/a.json", 1 << 40)  # more than any memory
    with refused(RecordTooLarge, f"{1 << 40:,}", where="registry/a.json"):
        store.backend.read("registry/a.json")


def test_temporary_files_of_killed_writers_are_swept_after_the_grace_period(store: Store) -> None:
    root = Path(store.backend.location)
    names = [root / "tokens" / KEY / f".tmp-{'0' * 32}", root / "leases" / f".tmp-{'1' * 32}"]
    for path in names:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    os.utime(names[0], (0, 0))
    assert store.backend.list("") == {}
    store.backend.sweep(3600.0)
    assert [path.exists() for path in names] == [False, True]


def test_a_block_that_fails_leaves_not_even_folders(store: Store) -> None:
    for names in ([], ["half"], ["a/half"], ["a/b/half", "half"]):
        with pytest.raises(StoreFull), store.write("tokens", ingredients()) as writing:
            fill_the_disk(writing.directory, names)
        assert list(Path(store.backend.location).iterdir()) == []


def fill_the_disk(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "empty").mkdir()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("said", [FileNotFoundError, FileExistsError])
def test_a_folder_that_is_pruned_while_it_is_made_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, said: type[OSError]
) -> None:
    mkdir = Path.mkdir
    failures = [said(), said(), said()]

    def pruned(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        mkdir(self, mode, parents, exist_ok)
        if failures:
            self.rmdir()
            raise failures.pop()

    monkeypatch.setattr(Path, "mkdir", pruned)
    assert store.backend.create("registry/a", b"1")
    failures.append(said())
    store.backend.put("leases/a", b"1")
    failures.append(said())
    assert store.backend.staging(f"tokens/{KEY}/{'0' * 32}").is_dir()
    assert failures == []


@pytest.mark.parametrize("how", ["grows", "shrinks"])
def test_a_file_that_is_still_being_written_is_not_published(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ranges = pieces._ranges

    def meanwhile(path: Path, size: int, name: str) -> list[tuple[int, int]]:
        found = ranges(path, size, name)
        path.write_bytes(b"0123456789" if how == "grows" else b"01")
        return found

    monkeypatch.setattr(pieces, "_ranges", meanwhile)
    with refused(ArtifactError, "changed", where="data"):
        put(store, ingredients(), {"data": b"01234"})
    assert store.backend.list("") == {}


def test_files_are_flushed_before_their_manifest_appears(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power may fail at any moment: a manifest on the disk must mean that everything it names is there."""
    order: list[str] = []
    fsync, link = os.fsync, os.link

    def flush(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def name(source: Path, target: Path) -> None:
        order.append(f"-> {target.name}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "link", name)
    artifact = put(store, ingredients(), {"a/data": b"1", "b": b"2"})
    visible = order.index("-> manifest.1.json")
    for needed in ("data", "a", "b", artifact.manifest.attempt, artifact.key, artifact.kind, "store"):
        assert needed in order[:visible]
    assert order[visible - 1].startswith(".tmp-")
    assert order[visible + 1] == artifact.key


def test_a_folder_that_cannot_be_a_part_of_the_store_is_not_even_looked_into(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may be a whole file system with its `lost+found`, which only root may read."""
    artifact = put(store, ingredients())
    root = Path(store.backend.location)
    (root / "lost+found").mkdir()
    scandir = os.scandir

    def guarded(folder: Path) -> object:
        if folder == root / forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    forbidden = "lost+found"
    assert [found.key for found in store.artifacts()] == [artifact.key]
    forbidden = artifact.kind
    with refused(ArtifactError, "read", "Permission denied", where="tokens"):
        list(store.artifacts())


def test_a_folder_with_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/store").backend.location == str(tmp_path / "store")


def test_other_places_are_refused_by_name() -> None:
    with refused(RecipeError, "gopher", where="DEEPSPEC_STORE"):
        open_store("gopher://example/store")


def test_a_sealed_record_comes_back_as_json_and_only_unchanged() -> None:
    sealed = seal({"a": 1, "b": [1.0, "é"], "c": {9: 1, 10: 2}})
    assert unseal(sealed) == {"a": 1, "b": [1.0, "é"], "c": {"9": 1, "10": 2}}
    assert unseal(sealed.replace(b"\n", b"")) == unseal(sealed)
    with pytest.raises(ValueError, match="checksum"):
        unseal(sealed.replace(b"1.0", b"1.5"))
