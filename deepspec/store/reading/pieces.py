"""Checksums of files piece by piece, so that a reader can check exactly what it reads.

A piece is a Parquet row group, a safetensors tensor, or a whole file of another kind; what is larger is cut every 64
MiB. What lies between (headers, footers) is a piece of its own, so that every byte of a file belongs to exactly one.
"""

import errno
import hashlib
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.errors import ArtifactError
from deepspec.store.manifest import FileEntry, Piece

if TYPE_CHECKING:
    from pyarrow.parquet import RowGroupMetaData

_PIECE_BYTES = 64 << 20


def describe(path: Path, name: str) -> FileEntry:
    """Size, SHA-256 and the pieces' checksums of the file at `path`, recorded as `name`; reads it once.

    Raises:
        ArtifactError: its content is not what its suffix says, or it is still being written.
    """
    size = path.stat().st_size
    whole = hashlib.sha256()
    pieces = []
    with path.open("rb") as file:
        for offset, length in _ranges(path, size, name):
            data = file.read(length)
            whole.update(data)
            pieces.append(Piece(offset=offset, length=len(data), crc32=zlib.crc32(data)))
        if file.tell() != size or file.read(1):
            raise ArtifactError(
                "This file changed while it was published.",
                where=name,
                remedy="Run again, and let nothing else write to the work folder.",
            )
    return FileEntry(path=name, size=size, sha256=whole.hexdigest(), pieces=tuple(pieces))


def damaged_piece(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with the file at `path`, or None if every piece is as recorded."""
    return _flaw(path, entry, _changed_piece)


def damaged_file(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with the file at `path`, or None if its SHA-256 is as recorded."""
    return _flaw(path, entry, _changed_file)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_group_range(group: "RowGroupMetaData", names: Collection[str] | None = None) -> tuple[int, int]:
    """Where a Parquet row group, or the columns `names` of it, begins and ends in its file, in bytes."""
    columns = [group.column(number) for number in range(group.num_columns)]
    columns = [column for column in columns if names is None or column.path_in_schema in names]
    offsets = [
        column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset for column in columns
    ]
    ends = [offset + column.total_compressed_size for offset, column in zip(offsets, columns, strict=True)]
    return min(offsets, default=0), max(ends, default=0)


def _flaw(path: Path, entry: FileEntry, changed: Callable[[Path, FileEntry], str | None]) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            return f"it has {size} bytes instead of {entry.size}"
        return changed(path, entry)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "it is missing"
    except OSError as error:
        if error.errno == errno.EIO:
            return "the disk cannot read it"
        raise ArtifactError(
            f"A file of an artifact cannot be read: {error.strerror}.", where=str(path), remedy="Check its permissions."
        ) from error


def _changed_piece(path: Path, entry: FileEntry) -> str | None:
    with path.open("rb") as file:
        for piece in entry.pieces:
            file.seek(piece.offset)
            if zlib.crc32(file.read(piece.length)) != piece.crc32:
                return f"the bytes {piece.offset}…{piece.offset + piece.length - 1} changed"
    return None


def _changed_file(path: Path, entry: FileEntry) -> str | None:
    return None if sha256_of(path) == entry.sha256 else "it does not match its SHA-256"


def _ranges(path: Path, size: int, name: str) -> list[tuple[int, int]]:
    """Contiguous (offset, length) pieces that cover a file of `size` bytes."""
    starts = {0}
    if path.suffix == ".parquet":
        starts.update(_row_group_starts(path, name))
    elif path.suffix == ".safetensors":
        starts.update(_tensor_starts(path, name))
    edges = [*sorted(start for start in starts if start < size), size]
    pieces = []
    for start, end in itertools.pairwise(edges):
        for offset in range(start, end, _PIECE_BYTES):
            pieces.append((offset, min(_PIECE_BYTES, end - offset)))
    return pieces


def _row_group_starts(path: Path, name: str) -> list[int]:
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ArtifactError(
            "This is not a whole Parquet file.", where=name, remedy="Run again: the stage writes it again."
        ) from error
    return [edge for index in range(metadata.num_row_groups) for edge in row_group_range(metadata.row_group(index))]


def _tensor_starts(path: Path, name: str) -> list[int]:
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            start = 8 + header_bytes
            if start > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for tensor, entry in header.items() if tensor != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            "This is not a whole safetensors file.", where=name, remedy="Run again: the stage writes it again."
        ) from error
    return [start] + [start + end for end in ends]
