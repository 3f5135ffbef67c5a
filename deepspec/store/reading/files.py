"""Reading an artifact's files where they are: from a folder, or by range from object storage, never as a whole.

    files = open_files(artifact.location())      # a folder, or the URL of a manifest
    table = files.parquet("states-00000.parquet")
    table.row_group(3, ["input_id"])             # one range of bytes, checked

Every byte is checked before it is used: small files and footers against the manifest's checksums, row groups by the
checksums of their Parquet pages, tensors by the manifest's. pyarrow does the reading, so that a training process needs
no boto3.
"""

import io
import json
import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from deepspec.errors import ArtifactDamaged, ArtifactError, DeepspecError, TransientError
from deepspec.store.backends.s3_location import SCHEME, Location, endpoint_url, region, shown
from deepspec.store.manifest import FileEntry, Manifest
from deepspec.store.reading.piece_cache import PieceCache
from deepspec.store.reading.pieces import row_group_range

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_ATTEMPTS = 5
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|INVALID_CLIENT_TOKEN|HTTP status 40[13]", re.IGNORECASE
)
_EXPIRED = re.compile(r"expired", re.IGNORECASE)
_DAMAGED = re.compile(r"CRC|checksum|corrupt|magic bytes|thrift|decompress|malformed", re.IGNORECASE)


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


class Files(Protocol):
    """The files of one artifact.

    Attributes:
        by_range: whether a row group comes as a whole, whichever of its columns are asked for.
    """

    by_range: bool

    @property
    def location(self) -> str:
        """Where they are, for people."""

    def read(self, name: str) -> bytes:
        """A small file as a whole.

        Raises:
            ArtifactError: it is missing or damaged (TransientError: the place does not answer).
        """

    def parquet(self, name: str) -> ParquetTable:
        """A Parquet file; errors as for `read`."""

    def tensors(self, name: str) -> "Iterator[tuple[str, torch.Tensor]]":
        """Name and value of each tensor of a safetensors file, in the file's order; errors as for `read`."""


def open_files(location: str | Path, *, disk: PieceCache | None = None) -> Files:
    """The files of the artifact at `location`: its folder, or the URL of its manifest.

    Args:
        location: see above.
        disk: keeps what comes from object storage.

    Raises:
        ArtifactError: the manifest cannot be read.
    """
    text = str(location)
    return StreamedFiles(text, disk) if text.startswith(SCHEME) else LocalFiles(Path(location))


class LocalFiles:
    """See `Files`; a folder whose bytes were checked when it was asked for. Files are mapped, not read."""

    by_range = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def location(self) -> str:
        """The folder."""
        return str(self._folder)

    def read(self, name: str) -> bytes:
        """A small file as a whole."""
        return _tried((self._folder / name).read_bytes, 1, self._named(name))

    def parquet(self, name: str) -> ParquetTable:
        """A Parquet file."""
        return _MappedTable(self._folder / name, self._named(name))

    def tensors(self, name: str) -> "Iterator[tuple[str, torch.Tensor]]":
        """Name and value of each tensor of a safetensors file."""
        with (self._folder / name).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for tensor, entry in _tensor_entries(file.read(length)):
                file.seek(8 + length + entry["data_offsets"][0])
                yield tensor, _tensor(tensor, entry, file.read(entry["data_offsets"][1] - entry["data_offsets"][0]))

    def _named(self, name: str) -> Callable[[Exception], DeepspecError]:
        return lambda error: ArtifactError(
            f"cannot be read: {error}.", where=str(self._folder / name), remedy="Check its permissions."
        )


class StreamedFiles:
    """See `Files`; by range from object storage.

    Args:
        url: of the manifest, `s3://bucket/…/<kind>/<key>/manifest.<n>.json`.
        disk: keeps ranges once they have come.

    Raises:
        ArtifactError: the manifest cannot be read.
    """

    by_range = True

    def __init__(self, url: str, disk: PieceCache | None = None) -> None:
        self._disk = disk
        at = Location.parse(url, where="states")
        self._folder, _, _ = f"{at.bucket}/{at.prefix}".rpartition("/")
        self._url = url
        self._fs = _filesystem()

        def manifest() -> Manifest:
            data = self._range(f"{at.bucket}/{at.prefix}", 0, None)
            try:
                return Manifest.from_bytes(data, where=url)
            except ValueError as error:
                raise OSError(f"corrupt manifest: {error}") from error

        self._manifest = _tried(manifest, _ATTEMPTS, self._named("The manifest"))

    @property
    def location(self) -> str:
        """The manifest's URL."""
        return self._url

    def read(self, name: str) -> bytes:
        """A small file as a whole."""
        return self._bytes(name, 0, self._entry(name).size)

    def parquet(self, name: str) -> ParquetTable:
        """A Parquet file."""
        return _StreamedTable(lambda start, end: self._bytes(name, start, end), self._entry(name), self._named(name))

    def tensors(self, name: str) -> "Iterator[tuple[str, torch.Tensor]]":
        """Name and value of each tensor of a safetensors file, each a piece of its own."""
        start = self._entry(name).pieces[0].length
        for tensor, entry in _tensor_entries(self._bytes(name, 0, start)[8:]):
            first, last = entry["data_offsets"]
            yield tensor, _tensor(tensor, entry, self._bytes(name, start + first, start + last))

    def _bytes(self, name: str, start: int, end: int) -> bytes:
        """The bytes start … end-1 of a file, which are whole pieces of it, each compared with its checksum."""
        entry = self._entry(name)
        pieces = [piece for piece in entry.pieces if start <= piece.offset < end]

        def is_right(data: bytes) -> bool:
            view = memoryview(data)
            first = ((piece, piece.offset - start) for piece in pieces)
            return all(zlib.crc32(view[at : at + piece.length]) == piece.crc32 for piece, at in first)

        def get() -> bytes:
            data = self._range(self._path(name), start, end)
            if not is_right(data):
                raise OSError(f"checksum of {name} at {start}")
            return data

        if self._disk is None:
            return self._tried(name, get)
        range_name = f"{entry.sha256}/{start}-{end}"
        return self._disk.get(range_name, end - start, lambda: self._tried(name, get), is_right)

    def _tried(self, name: str, ask: Callable[[], T]) -> T:
        return _tried(ask, _ATTEMPTS, self._named(name))

    def _range(self, path: str, start: int, end: int | None) -> bytes:
        with self._fs.open_input_file(path) as file:
            data = file.read() if end is None else file.read_at(end - start, start)
        if end is not None and len(data) != end - start:
            raise OSError(f"{len(data)} bytes came instead of {end - start}")
        return bytes(data)

    def _entry(self, name: str) -> FileEntry:
        for entry in self._manifest.files:
            if entry.path == name:
                return entry
        raise ArtifactError(
            f"The artifact has no file {name!r}.", where=self._url, remedy="Run the recipe that makes it."
        )

    def _path(self, name: str) -> str:
        return f"{self._folder}/{self._manifest.attempt}/{name}"

    def _named(self, name: str) -> Callable[[Exception], DeepspecError]:
        """What a failed read means, without the server's own words (they may quote credentials)."""
        endpoint = endpoint_url()
        at = f" at {shown(endpoint)}" if endpoint else ""

        def named(error: Exception) -> DeepspecError:
            text = str(error)
            if isinstance(error, FileNotFoundError) or _DAMAGED.search(text):
                what = "it is missing" if isinstance(error, FileNotFoundError) else "its bytes changed"
                if not hasattr(self, "_manifest"):
                    return ArtifactError(f"{name} cannot be used: {what}.", where=self._url, remedy="Run again.")
                kind, key = self._manifest.kind, self._manifest.key
                return ArtifactDamaged(f"An artifact is damaged: {what}.", kind=kind, key=key, file=name)
            if _EXPIRED.search(text):
                return ArtifactError(
                    f"The credentials for the object storage{at} have expired.",
                    where=self._url,
                    remedy="Renew AWS_SESSION_TOKEN and its keys, and run again: what was finished is kept.",
                )
            if _REFUSED.search(text):
                return ArtifactError(
                    f"The object storage{at} does not allow reading.",
                    where=self._url,
                    remedy="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
                )
            return TransientError(
                f"The object storage{at} answered wrongly {_ATTEMPTS} times.",
                where=f"{self._url} ({name})",
                remedy="Run again when it is well: what was finished is kept.",
            )

        return named


class _MappedTable:
    """See `ParquetTable`; a local file, mapped."""

    def __init__(self, path: Path, named: Callable[[Exception], DeepspecError]) -> None:
        self._named = named
        self._file = _tried(
            lambda: pq.ParquetFile(path, memory_map=True, page_checksum_verification=True), 1, self._named
        )
        self.schema = self._file.schema_arrow
        self.num_row_groups = self._file.num_row_groups
        with path.open("rb") as file:
            # A private mapping, though nothing writes to it: on a read-only one, tensors cannot lie without a copy.
            self._mapped = _tried(lambda: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), 1, self._named)

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
        return _tried(
            lambda: self._file.read_row_group(index, columns=list(columns), use_threads=False), 1, self._named
        )

    def read(self) -> pa.Table:
        """The whole table."""
        return _tried(self._file.read, 1, self._named)


class _StreamedTable:
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
        self._metadata = _tried(lambda: pq.read_metadata(pa.BufferReader(b"PAR1" + data)), 1, named)
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

        return _tried(parse, 1, self._named)

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


def _tried(ask: Callable[[], T], attempts: int, named: Callable[[Exception], DeepspecError]) -> T:
    """Ask, again if that fails; in the end the last failure, named."""
    try:
        if attempts == 1:
            return ask()
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        again = Retrying(
            retry=retry_if_exception_type((OSError, pa.ArrowException)),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            stop=stop_after_attempt(attempts),
            reraise=True,
        )
        return again(ask)
    except (OSError, pa.ArrowException) as error:
        raise named(error) from error


def _filesystem() -> Any:
    """pyarrow's own S3 client, by the same variables as boto3's."""
    from pyarrow import fs

    endpoint = endpoint_url()
    settings: dict[str, Any] = {"region": region(), "connect_timeout": 10, "request_timeout": 60}
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        settings |= {"endpoint_override": host.rpartition("@")[2].rstrip("/"), "scheme": scheme}
    retry = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
    return fs.S3FileSystem(retry_strategy=retry, **{name: value for name, value in settings.items() if value})


def _tensor_entries(header: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Names and descriptions of the tensors in a safetensors header, in the order of their bytes."""
    entries = [(name, entry) for name, entry in json.loads(header).items() if name != "__metadata__"]
    return sorted(entries, key=lambda item: item[1]["data_offsets"])


def _tensor(name: str, entry: dict[str, Any], data: bytes) -> "torch.Tensor":
    """One tensor of a safetensors file: as the only one of a file of its own."""
    from safetensors.torch import load

    header = json.dumps({name: {**entry, "data_offsets": [0, len(data)]}}).encode()
    return load(struct.pack("<Q", len(header)) + header + data)[name]
