"""What a file system may lack: another way is taken, or the error says what is missing."""

import errno
import os
import resource
import stat
from pathlib import Path

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import safetensors.torch
import torch

from deepspec import file_system
from deepspec.drafts.files.weights_file import WEIGHTS_FILE, write_tensors
from deepspec.errors import ArtifactError
from deepspec.file_lock import FileLock
from deepspec.store import open_store
from deepspec.store.reading.piece_cache import PieceCache
from deepspec.training.processes.lock import WorkLock
from tests.fixtures.refused import refused
from tests.fixtures.store import PLACES, ingredients


def lacking(number: int) -> object:
    """A system call that a file system does not offer."""

    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EINVAL]
)
def test_a_store_works_where_there_are_no_hard_links(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(file_system.os, "link", lacking(number))
    backend = PLACES["local"](request).store().backend
    assert backend.create("registry/1.json", b"first")
    assert not backend.create("registry/1.json", b"second")
    assert backend.read("registry/1.json") == b"first"
    (tmp_path / "source").write_bytes(b"x")
    assert not file_system.link(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_files_cannot_be_locked_the_error_says_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", lacking(number))
    with refused(ArtifactError, os.strerror(number), where=str(tmp_path)), FileLock(tmp_path / "lock"):
        pass
    with refused(ArtifactError, os.strerror(number), where=str(tmp_path)):
        WorkLock(tmp_path).acquire(0.1)
    # A cache only saves work: it goes on without.
    assert PieceCache(tmp_path / "cache", 100).get("a", 1, lambda: b"x", lambda data: data == b"x") == b"x"


def test_where_there_is_no_flock_at_all_the_file_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lacking(errno.ENOSYS))
    with (
        pytest.warns(UserWarning, match="flock"),
        FileLock(tmp_path / "lock"),
        pytest.raises(filelock.Timeout),
    ):
        FileLock(tmp_path / "lock").acquire(timeout=0)


def test_locks_and_links_are_asked_for_in_one_place() -> None:
    root = Path(file_system.__file__).parents[1]
    for folder in ("deepspec", "flows", "tasks"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert path.name == "file_system.py" or "os.link(" not in text, path
            assert path.name == "file_lock.py" or "filelock.FileLock" not in text, path
            assert "import FileLock" not in text.replace("from deepspec.file_lock import FileLock", ""), path


@pytest.mark.parametrize(("umask", "readers"), [(0o022, 0o044), (0o027, 0o040), (0o077, 0)])
def test_who_may_read_the_store_may_read_every_file_in_it(umask: int, readers: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        store = open_store(str(tmp_path / "store"))
        with store.write("draft", ingredients()) as writing:
            write_tensors({"a": torch.ones(1)}, writing.directory / WEIGHTS_FILE)
            (writing.directory / "sub").mkdir()
            private = writing.directory / "sub" / "private"  # as a library leaves what it wrote to a file of its own
            private.touch(0o600)
            private.write_bytes(b"x")
        out = tmp_path / "export"
        out.mkdir()
        write_tensors({"a": torch.ones(1)}, out / WEIGHTS_FILE)
    finally:
        os.umask(before)
    files = [path for path in [*writing.artifact.directory().rglob("*"), out / WEIGHTS_FILE] if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) & 0o044 for path in files} == {readers}


def test_a_full_disk_is_known_whichever_library_met_it(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, hard))  # writing beyond it fails like a full disk
    caught = []
    writers = (
        lambda: safetensors.torch.save_file(tensors, tmp_path / "a.safetensors"),
        lambda: pq.write_table(pa.table({"a": range(100_000)}), tmp_path / "a.parquet"),
        lambda: (tmp_path / "a").write_bytes(bytes(100_000)),
    )
    try:
        for write in writers:
            with pytest.raises((OSError, safetensors.SafetensorError)) as error:
                write()
            caught.append(error.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file_system.is_out_of_room(error) for error in caught] == [True, True, True]
    assert not file_system.is_out_of_room(ValueError("os error 2, errno 22"))
    assert not file_system.is_out_of_room(ArtifactError("os error 28", remedy="Read on."))
