"""External inputs enter by content: fingerprints of local files and folders.

A fingerprint is a digest over file names and contents; the location is never part of it. Hashing is remembered by
(path, device, inode, size, times of last modification and change), as a memo only: losing it costs time, never
correctness. So it has no format version, and entries that are not understood are made again. A file that was modified
just now is not remembered: the next edit may fall into the same tick of the file system's clock.
"""

import contextlib
import logging
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deepspec.atomic_write import write_bytes
from deepspec.errors import DataError
from deepspec.store.keys import digest_of
from deepspec.store.reading.pieces import sha256_of
from deepspec.store.records import seal, unseal

logger = logging.getLogger(__name__)

_SETTLED_NS = 3_000_000_000
"""Above the coarsest clock of common file systems (2 s)."""


@dataclass(frozen=True)
class External:
    """An input that deepspec did not make.

    Attributes:
        name: what it is.
        fingerprint: a digest of what it contains; the only part that keys see.
        location: where it was found.
        again: takes the fingerprint once more, to notice an input that was edited while it was read.
    """

    name: str
    fingerprint: str
    location: str
    again: Callable[[], str] | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """The fingerprint, by the name that it has in an artifact."""
        return self.fingerprint

    def directory(self) -> Path:
        """Where it lies, as for an artifact; what is read from it is compared with the fingerprint afterwards."""
        return Path(self.location)


class Fingerprints:
    """Fingerprints with a memo file."""

    def __init__(self, memo: Path | None = None) -> None:
        self._memo_path = memo
        self._memo: dict[str, list[object]] = {}
        if memo is not None:
            with contextlib.suppress(OSError, ValueError):
                self._memo = unseal(memo.read_bytes())
        self._changed = False

    def file(self, path: Path) -> str:
        """SHA-256 of one file.

        Raises:
            DataError: it cannot be read, is no plain file, or changed while it was read.
        """
        name = str(path.absolute())
        try:
            identity = _identity(path)
            match self._memo.get(name):
                case [*remembered, str(digest)] if remembered == identity:
                    return digest
            asked_ns = time.time_ns()
            digest = sha256_of(path)
            unchanged = _identity(path) == identity
        except OSError as error:
            raise DataError(
                f"This input cannot be read: {error.strerror}.",
                where=str(path),
                remedy="Check the path and its rights.",
            ) from error
        if not unchanged:
            raise DataError(
                "This input changed while it was read.", where=str(path), remedy="Run again when it is complete."
            )
        if asked_ns - max(identity[-2:]) > _SETTLED_NS:
            self._memo[name] = [*identity, digest]
            self._changed = True
        return digest

    def files(self, paths: Iterable[Path], *, within: Path | None = None) -> str:
        """One digest over several files, in order.

        Args:
            paths: the files.
            within: the folder below which their names count (a model folder); None: only contents and order count (data
                files).
        """
        names = ((path, "" if within is None else path.relative_to(within).as_posix()) for path in paths)
        return digest_of([[name, self.file(path)] for path, name in names])

    def save(self) -> None:
        """Write the memo back; where that is not possible, the next run reads again."""
        if self._memo_path is None or not self._changed:
            return
        try:
            self._memo_path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._memo_path, seal(self._memo))
        except OSError as error:
            logger.warning("Fingerprints could not be remembered: %s", error)
        self._changed = False


_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}
_TEMPLATES_FOLDER = "additional_chat_templates"


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide what it computes: weights, configuration, tokenizer, chat templates.

    Raises:
        DataError: it is not a folder that can be read.
    """
    try:
        templates = (folder / _TEMPLATES_FOLDER).glob("*.jinja")
        return sorted(
            path for path in (*folder.iterdir(), *templates) if path.is_file() and path.suffix in _MODEL_SUFFIXES
        )
    except OSError as error:
        raise DataError(
            f"This model folder cannot be read: {error.strerror}.", where=str(folder), remedy="Check the path."
        ) from error


def _identity(path: Path) -> list[int]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError("This input is not a plain file.", where=str(path), remedy="Name a file.")
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
