"""Artifacts in a local folder.

Durability: files are fsynced before their manifest is created, the manifest is written to a temporary name, fsynced
and hard-linked to its own name (which fails if it exists: that is the atomic create), then its folder is fsynced.
"""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deepspec.account import Actor, local_user
from deepspec.atomic_write import sync_folder, write_durably
from deepspec.errors import ArtifactError
from deepspec.file_system import link, readable_as_its_folder
from deepspec.store.backends.contract import MAX_RECORD_BYTES, full_disk, refuse_large
from deepspec.store.layout import KIND, Stat, inside, is_plain, listing

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}")
_MAX_PRUNED = 100
"""How often in a row another process may prune a folder just made before that is taken for a fault."""


class LocalBackend:
    """A folder that holds artifacts; see `Backend` for the contract of each method."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.root)

    def actor(self) -> Actor:
        """The account that the operating system runs this process as."""
        return local_user()

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` durably if nothing is at `path`; return whether this call created it."""
        refuse_large(len(data), path, self.location)
        target = self._at(path)
        with _named_errors(self.root, "written"), _temporary(target.parent, data) as temporary:
            if not _link(temporary, target, data):
                return False
            _sync_folders(target.parent, self.root)
        return True

    def put(self, path: str, data: bytes) -> None:
        """Write or overwrite a small record."""
        refuse_large(len(data), path, self.location)
        target = self._at(path)
        with _named_errors(self.root, "written"), _temporary(target.parent, data) as temporary:
            temporary.replace(target)

    def read(self, path: str, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        """The whole content of `path`; FileNotFoundError if no file is there."""
        target = self._at(path)
        missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
        with _named_errors(self.root, "read"), contextlib.suppress(*missing):
            with target.open("rb") as file:
                refuse_large(os.fstat(file.fileno()).st_size, path, self.location, max_bytes)
                data = file.read(max_bytes + 1)  # it may grow meanwhile, and a device has no size
            refuse_large(len(data), path, self.location, max_bytes)
            return data
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))

    def list(self, prefix: str) -> dict[str, Stat]:
        """Every file under the folder `prefix`, by full relative path."""
        if prefix and not is_plain(prefix):
            return {}
        return dict(sorted(listing(self._files(prefix), self.location).items()))

    def _files(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        folders = [self._at(prefix) if prefix else self.root]
        with _named_errors(self.root, "read"):
            while folders:
                try:
                    entries = list(os.scandir(folders.pop()))
                except (FileNotFoundError, NotADirectoryError):
                    continue
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        # What cannot be a part of the store (`lost+found`) may not even be readable.
                        if KIND.fullmatch(entry.name) or Path(entry.path).parent != self.root:
                            folders.append(Path(entry.path))
                    elif entry.is_file() and not _TEMPORARY.fullmatch(entry.name):
                        # A collector may remove a file between the listing and the look at it.
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat()
                            name = Path(entry.path).relative_to(self.root).as_posix()
                            yield name, Stat(status.st_size, status.st_mtime)

    def delete(self, path: str) -> None:
        """Remove the file `path`, and the folders that this leaves empty."""
        target = self._at(path)
        if target.is_dir():
            return
        with _named_errors(self.root, "written"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                target.unlink()
            for folder in target.parents:
                if folder == self.root:
                    return
                try:
                    folder.rmdir()
                except OSError:
                    return

    def staging(self, prefix: str) -> Path:
        """The final folder itself: attempts are unique, and nothing looks there before the manifest exists."""
        folder = self._at(prefix)
        with _named_errors(self.root, "written"):
            unpruned(lambda: folder.mkdir(parents=True))
        return folder

    def publish(self, prefix: str, staging: Path) -> None:
        """Flush every file and folder of the attempt to the disk; who may read the folder may read the files."""
        with _named_errors(self.root, "written"):
            for folder, _, names in os.walk(staging):
                for name in names:
                    readable_as_its_folder(Path(folder) / name)
                    sync_folder(Path(folder) / name)
                sync_folder(Path(folder))
            _sync_folders(self._at(prefix).parent, self.root)

    def fetch(self, prefix: str, names: Sequence[str], *, refetch: bool = False) -> Path:
        """The attempt's own folder."""
        del names, refetch
        return self._at(prefix)

    def clock(self) -> float:
        """The file system's clock (a file server's may differ from ours), read off the root folder."""
        with _named_errors(self.root, "written"):
            self.root.mkdir(parents=True, exist_ok=True)
            os.utime(self.root)
            return self.root.stat().st_mtime

    def sweep(self, older_than_seconds: float) -> None:
        """Remove temporary files of writers that were killed."""
        with _named_errors(self.root, "written"):
            now = self.clock()
            for folder, _, names in os.walk(self.root):
                for temporary in (Path(folder) / name for name in names if _TEMPORARY.fullmatch(name)):
                    with contextlib.suppress(FileNotFoundError):
                        if now - temporary.stat().st_mtime >= older_than_seconds:
                            self.delete(temporary.relative_to(self.root).as_posix())

    def _at(self, path: str) -> Path:
        return inside(self.root, path)


@contextlib.contextmanager
def _named_errors(root: Path, verb: str) -> Iterator[None]:
    """Turn the operating system's refusals into errors that name the store and the remedy."""
    try:
        yield
    except OSError as error:
        full = full_disk(error, str(root))
        if full is not None:
            raise full from error
        raise ArtifactError(
            f"The artifact store cannot be {verb}: {error.strerror}.",
            where=str(error.filename or root),
            remedy="Check its permissions, or point DEEPSPEC_STORE elsewhere.",
        ) from error


def unpruned(make: Callable[[], None]) -> None:
    """Call `make`, which makes a folder and something in it; again if a collector pruned the folder in between.

    `mkdir` also says "exists" of a folder that went just before it had a second look.
    """
    for _ in range(_MAX_PRUNED):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            make()
            return
    make()


@contextlib.contextmanager
def _temporary(folder: Path, data: bytes) -> Iterator[Path]:
    """A file with `data` in `folder`, flushed to the disk; removed in the end."""
    path = folder / f".tmp-{uuid.uuid4().hex}"

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)

    try:
        unpruned(write)
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def _link(temporary: Path, target: Path, data: bytes) -> bool:
    """Give a finished file its name, unless the name is taken; return whether it was free."""
    try:
        return link(temporary, target) or _write_exclusively(target, data)
    except FileExistsError:
        return False


def _write_exclusively(target: Path, data: bytes) -> bool:
    """The atomic create of file systems without hard links: a reader may meet it half-written, and then passes over."""
    try:
        write_durably(target, data)
    except FileExistsError:
        return False
    except OSError:
        target.unlink(missing_ok=True)
        raise
    return True


def _sync_folders(folder: Path, root: Path) -> None:
    """Flush the entries of `folder` and of every folder above it up to `root`."""
    while True:
        # Another process may have removed what was made, and its folder with it.
        with contextlib.suppress(FileNotFoundError):
            sync_folder(folder)
        if folder == root or root not in folder.parents:
            return
        folder = folder.parent
