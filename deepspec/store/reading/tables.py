"""A Parquet file of an artifact, a row group at a time: mapped from a folder, or by ranges of bytes.

Not here: where the bytes come from, and what a failed read means (files.py).
"""

import io
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from deepspec.errors import DeepspecError
from deepspec.store.manifest import FileEntry
from deepspec.store.reading.attempts import tried
from deepspec.store.reading.pieces import row_group_range


class ParquetTable(Protocol):
    """A Parquet file of an artifact, read a row group at a time."""

    schema: pa.Schema
    num_row_groups: int

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """The file's own metadata."""

    def raw(self, index: int, columns: Sequence[str]) -> dict[str, memoryview]:
        """The bytes of columns of one row group as they lie in the file, headers of pages included.

        Raises:
            ArtifactError: it cannot be read (TransientError: the place does not answer).
        """

    def forget(self, index: int) -> None:
        """Say that a row group is not needed for now."""

    def row_group(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group.

        Raises:
            ArtifactError: it is damaged or cannot be read (TransientError: the place does not answer).
        """

    def read(self) -> pa.Table:
        """The whole table; errors as for `row_group`."""


class MappedTable:
    """See `ParquetTable`; a local file, mapped."""

    def __init__(self, path: Path, named: Callable[[Exception], DeepspecError]) -> None:
        self._named = named
        self._file = tried(
            lambda: pq.ParquetFile(path, memory_map=True, page_checksum_verification=True), 1, self._named
        )
        self.schema = self._file.schema_arrow
        self.num_row_groups = self._file.num_row_groups
        with path.open("rb") as file:
            # A private mapping, though nothing writes to it: on a read-only one, tensors cannot lie without a copy.
            self._mapped = tried(lambda: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), 1, self._named)

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """The file's own metadata."""
        return self._file.metadata.metadata or {}

    def raw(self, index: int, columns: Sequence[str]) -> dict[str, memoryview]:
        """The bytes of columns of one row group; they stay in the file until they are looked at."""
        group = self._file.metadata.row_group(index)
        # All of them are about to be looked at.
        self._advise(row_group_range(group, columns), "MADV_WILLNEED")
        view = memoryview(self._mapped)
        return {name: view[slice(*row_group_range(group, (name,)))] for name in columns}

    def forget(self, index: int) -> None:
        """Take no memory for it until it is looked at again."""
        self._advise(row_group_range(self._file.metadata.row_group(index)), "MADV_DONTNEED")

    def _advise(self, where: tuple[int, int], what: str) -> None:
        start = where[0] - where[0] % mmap.PAGESIZE
        if hasattr(mmap, what):
            self._mapped.madvise(getattr(mmap, what), start, where[1] - start)

    def row_group(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group."""
        return tried(lambda: self._file.read_row_group(index, columns=list(columns), use_threads=False), 1, self._named)

    def read(self) -> pa.Table:
        """The whole table."""
        return tried(self._file.read, 1, self._named)


class StreamedTable:
    """See `ParquetTable`; a row group is one range of bytes, parsed in memory.

    Args:
        get: the checked bytes of a range.
        entry: the file's in the manifest; its last piece is the footer.
        named: what a failure means.
    """

    def __init__(
        self, get: Callable[[int, int], bytes], entry: FileEntry, named: Callable[[Exception], DeepspecError]
    ) -> None:
        self._get = get
        self._last: tuple[int, bytes] | None = None
        self._entry = entry
        self._named = named
        footer = entry.pieces[-1]
        data = get(footer.offset, footer.offset + footer.length)
        # Parquet's magic bytes begin a file, too.
        self._metadata = tried(lambda: pq.read_metadata(pa.BufferReader(b"PAR1" + data)), 1, named)
        self.schema = self._metadata.schema.to_arrow_schema()
        self.num_row_groups = self._metadata.num_row_groups

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """The file's own metadata."""
        return self._metadata.metadata or {}

    def raw(self, index: int, columns: Sequence[str]) -> dict[str, memoryview]:
        """The bytes of columns of one row group; all of it is fetched."""
        group = self._metadata.row_group(index)
        start, _ = row_group_range(group)
        view = memoryview(self._fetched(index))
        ranges = {name: row_group_range(group, (name,)) for name in columns}
        return {name: view[first - start : last - start] for name, (first, last) in ranges.items()}

    def forget(self, index: int) -> None:
        """Nothing is kept but the last row group."""

    def _fetched(self, index: int) -> bytes:
        """The bytes of a row group; the last one is kept, since its columns are asked for in turn."""
        if self._last is None or self._last[0] != index:
            self._last = (index, self._get(*row_group_range(self._metadata.row_group(index))))
        return self._last[1]

    def row_group(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group; all of it is fetched."""
        start, _ = row_group_range(self._metadata.row_group(index))
        window = _Window(self._fetched(index), start, self._entry.size)

        def parse() -> pa.Table:
            file = pq.ParquetFile(window, metadata=self._metadata, page_checksum_verification=True)
            return file.read_row_group(index, columns=list(columns), use_threads=False)

        return tried(parse, 1, self._named)

    def read(self) -> pa.Table:
        """The whole table, a row group after the other."""
        groups = [self.row_group(index, self.schema.names) for index in range(self.num_row_groups)]
        return pa.concat_tables(groups) if groups else self.schema.empty_table()


class _Window(io.RawIOBase):
    """A file of `size` bytes, of which only those from `start` on can be read: `data`."""

    def __init__(self, data: bytes, start: int, size: int) -> None:
        super().__init__()
        self._data = memoryview(data)
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        first = self._position - self._start
        last = len(self._data) if size < 0 else first + size
        if not 0 <= first <= last <= len(self._data):
            raise OSError(f"the bytes {self._position}… are not part of this row group")
        self._position = self._start + last
        return bytes(self._data[first:last])
