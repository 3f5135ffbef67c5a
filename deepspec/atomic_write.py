"""Files that a reader sees whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file's path, in the folder of `path`, that takes the place of `path` when the block ends.

    If the block raises, or writes nothing there, `path` stays as it was. The folder must exist. It is not flushed to
    the disk: for what can be made again. Listings pass over names that begin with `.tmp-`, and the store removes them.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to a new file and flush it, so that it outlives a crash of the machine."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: renames and new files in it outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
