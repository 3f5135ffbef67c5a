"""Pieces of artifacts' files on a local disk, up to a given number of bytes, for the processes of one machine.

The ranks of a training read the same pieces, and each epoch reads them again: where there is room, each is fetched
once. A piece is named after the content of its file, so that artifacts with equal files share it and none goes stale.

Not here: which pieces are read, and whether their bytes are right (the caller hands in the check).
"""

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from deepspec.atomic_write import write_bytes
from deepspec.errors import ArtifactError
from deepspec.file_lock import FileLock

logger = logging.getLogger(__name__)

_SUFFIX = ".block"  # like the home's folder `cache/blocks`, named when pieces were called blocks: its older files count
_LOCKS = 64  # files that processes queue at while one of them fetches; two pieces that share one only wait
_POLL_SECONDS = 0.005


class PieceCache:
    """Bytes by name; the least recently used ones are removed first.

    Args:
        folder: holds them; made if it is missing, and shared by any number of processes of one machine.
        max_bytes: most bytes of pieces in the folder, at every moment; larger pieces are not kept. 0 keeps nothing.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._full = False

    def get(self, name: str, size: int, fetch: Callable[[], bytes], is_right: Callable[[bytes], bool]) -> bytes:
        """The piece `name`: from the folder if it is there and right, else fetched, and kept.

        A disk that takes no more is no error: the piece is returned and not kept. Processes that ask for one piece at
        the same time fetch it once.

        Args:
            name: says what is in it, once and for all.
            size: its bytes.
            fetch: gets it from where it comes from; its errors pass through.
            is_right: whether bytes that were found in the folder are the piece.
        """
        if size > self._max_bytes:
            return fetch()
        path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}{_SUFFIX}"
        found = self._read(path, is_right)
        if found is not None:
            return found
        with self._alone(f"fetch-{int(path.name[:8], 16) % _LOCKS}"):
            found = self._read(path, is_right)
            if found is None:
                found = fetch()
                self._keep(path, found)
        return found

    def _read(self, path: Path, is_right: Callable[[bytes], bool]) -> bytes | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None  # not there, or removed this moment
        if not is_right(data):
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of the last use: the order of removal
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            with self._alone("room"):
                self._make_room(len(data))
                write_bytes(path, data)
        except OSError as error:
            if not self._full:
                logger.warning("pieces are not kept in %s: %s", self._folder, os.strerror(error.errno or errno.EIO))
            self._full = True

    def _make_room(self, num_bytes: int) -> None:
        """Remove what was used longest ago, until `num_bytes` more fit."""
        pieces = []
        for entry in os.scandir(self._folder):
            if entry.name.startswith(".tmp-") or entry.name.endswith(".new"):
                Path(entry.path).unlink(missing_ok=True)  # of a process that was killed: we are alone here
            elif entry.name.endswith(_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    pieces.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in pieces)
        for _, size, path in sorted(pieces):
            if total + num_bytes <= self._max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= size

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold off the other processes; a place that cannot be locked is used without."""
        lock = FileLock(self._folder / f"{name}.lock", poll_interval=_POLL_SECONDS)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, ArtifactError):
            yield
            return
        try:
            yield
        finally:
            lock.release()
