"""A folder that holds one draft or another, never a mixture and never nothing.

DIR is a symbolic link to a folder that holds one draft and does not change; another draft gets another folder, and one
`rename` of a new link over the old one swaps them. (`renameat2` could exchange two plain folders, but not on every
file system.) Who opens files one by one may meet the swap in between: resolve DIR once (`realpath`), and open below
that. The folder before the present one is kept, so that what was resolved before a swap stays readable until the next.

Interrupted at any moment, by `kill -9` too, DIR leads where it led before or to the new draft; what an interrupted pull
left is removed by the next one.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock

from deepspec.atomic_write import sync_folder
from deepspec.errors import ArtifactError, BadArgument, StoreFull
from deepspec.file_lock import FileLock
from deepspec.file_system import is_out_of_room

_LOCK = "lock"
_PREVIOUS = "previous"
_DOWNLOAD = "download"


class Place:
    """DIR, and the folders next to it that it leads to.

    Args:
        link: DIR; made by the first pull. Its parent, too.

    Raises:
        BadArgument: something that no pull made is there.
    """

    def __init__(self, link: Path) -> None:
        self.link = Path(os.path.abspath(link))  # noqa: PTH100  # `resolve` would follow the link itself
        self.versions = self.link.with_name(f".{self.link.name}.versions")
        foreign = self.link.is_symlink() and self.held() is None and self.link.exists()
        if not self.link.is_symlink() and self.link.exists():
            foreign = not self.link.is_dir() or any(self.link.iterdir())
        if foreign:
            raise BadArgument(
                "there is something here that no pull made.", where=str(self.link), remedy="Name a new directory."
            )

    @property
    def download(self) -> Path:
        """Where copies of a bucket's files may lie during a pull."""
        return self.versions / _DOWNLOAD

    def held(self) -> Path | None:
        """The folder that DIR leads to; None: no draft was ever pulled."""
        return self._leads_to(self.link)

    def kept(self) -> list[Path]:
        """The folder that DIR leads to, then the one before."""
        found = (self.held(), self._leads_to(self.versions / _PREVIOUS))
        return list(dict.fromkeys(folder for folder in found if folder is not None))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other pulls into DIR away for the block, and remove what interrupted ones left.

        Raises:
            ArtifactError: another pull goes on, or the folder cannot be written.
            StoreFull: the disk is full.
        """
        lock = FileLock(self.versions / _LOCK)
        with self._named_errors():
            self.versions.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise ArtifactError(
                    "Another process is pulling into this directory.",
                    where=str(self.link),
                    remedy="Wait until it has ended, or name another directory.",
                ) from error
            try:
                self._tidy()
                yield
            finally:
                self._tidy()
                lock.release()

    def fresh(self, digest: str) -> Path:
        """A new, empty folder for a draft; it is removed unless DIR is switched to it."""
        folder = self.versions / f"{digest[:12]}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        return folder

    def switch(self, folder: Path) -> None:
        """Let DIR lead to a whole folder from one moment to the next."""
        for inner, _, _ in os.walk(folder):
            sync_folder(Path(inner))
        before = self.held()
        if before == folder:
            return
        if before is not None:
            _point(self.versions / _PREVIOUS, before.name)
        sync_folder(self.versions)
        if self.link.is_dir() and not self.link.is_symlink():
            self.link.rmdir()  # it was empty
        _point(self.link, f"{self.versions.name}/{folder.name}")
        sync_folder(self.link.parent)

    def _leads_to(self, link: Path) -> Path | None:
        try:
            folder = self.versions / Path(os.readlink(link)).name  # noqa: PTH115  # a text, not a path to be resolved
        except OSError:
            return None
        return folder if folder.is_dir() and link.resolve() == folder.resolve() else None

    def _tidy(self) -> None:
        """Remove every folder that neither DIR nor `previous` leads to."""
        kept = {_LOCK, _PREVIOUS, *(folder.name for folder in self.kept())}
        for entry in self.versions.iterdir():
            if entry.name in kept:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, StoreFull) as error:
            if isinstance(error, StoreFull) or is_out_of_room(error):
                raise StoreFull(
                    "No space left for the draft; what was there stays.",
                    where=str(self.link),
                    remedy="Free some space on this disk, and pull again.",
                ) from error
            raise ArtifactError(
                f"The directory cannot be written: {error.strerror}.",
                where=str(error.filename or self.link),
                remedy="Check its permissions, or name another directory.",
            ) from error


def _point(link: Path, target: str) -> None:
    """Make `link` lead to `target`, whether it is there or not."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
