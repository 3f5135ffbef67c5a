"""Opens a source's file, unpacked where its name ends with `.gz` or `.zst`. Memory does not grow with the file."""

import gzip
import io
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, cast

from deepspec.errors import DataError

COMPRESSED = (".gz", ".zst")
_SMALL_BYTES = 64 << 20
_MOST_RATIO = 100


def without_compression(path: PurePath) -> PurePath:
    """A path without the suffix of its compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def is_bomb(packed: int, unpacked: int) -> bool:
    """Whether data of this size unpack to more than data that mean something do; small sizes do no harm."""
    return unpacked > max(_SMALL_BYTES, _MOST_RATIO * packed)


def is_compressed(path: PurePath | str) -> bool:
    """Whether a file is one of `COMPRESSED`, by its name."""
    return PurePath(path).suffix.lower() in COMPRESSED


@contextmanager
def opened(path: Path | str) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The content of a file, and a function that says how many bytes of the file have been read for it.

    Raises:
        DataError: its compression is damaged.
        OSError: it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    with Path(path).open("rb") as file:
        if suffix not in COMPRESSED:
            yield file, file.tell
            return
        try:
            yield _unpacked(file, suffix), file.tell
        except _DAMAGED as error:
            # zstd's errors are OSErrors, too; those of the operating system have a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(
                f"cannot be unpacked: {error}.", where=str(path), remedy="Copy or write the file again."
            ) from error


_DAMAGED = (EOFError, zlib.error, OSError)


def head(path: Path, num_bytes: int) -> bytes:
    """The beginning of a file's content; raises what `opened` raises."""
    with opened(path) as (file, _):
        return file.read(num_bytes)


@contextmanager
def as_file(path: Path | str) -> Iterator[Any]:
    """A path whose file can be read in any order: the file itself, or an open copy that is unpacked.

    Raises:
        DataError: its compression is damaged.
        OSError: it cannot be read.
    """
    if not is_compressed(path):
        yield str(path)
        return
    with tempfile.TemporaryFile() as copy:
        with opened(path) as (file, position):
            while chunk := file.read(1 << 20):
                copy.write(chunk)
                if is_bomb(position(), copy.tell()):
                    raise DataError(
                        f"unpacks to more than {copy.tell():,} bytes.", where=str(path), remedy="Leave it out."
                    )
        copy.seek(0)
        yield copy


def _unpacked(file: IO[bytes], suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))
    import pyarrow as pa

    return cast("BinaryIO", io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")))
