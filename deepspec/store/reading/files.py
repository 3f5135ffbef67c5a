"""Reading an artifact's files where they are: from a folder, or by range from object storage, never as a whole.

    files = open_files(artifact.location())      # a folder, or the URL of a manifest
    table = files.parquet("states-00000.parquet")
    table.row_group(3, ["input_id"])             # one range of bytes, checked

Every byte is checked before it is used: small files and footers against the manifest's checksums, row groups by the
checksums of their Parquet pages, tensors by the manifest's. pyarrow does the reading, so that a training process needs
no boto3.
"""

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from deepspec.errors import ArtifactDamaged, ArtifactError, DeepspecError, TransientError
from deepspec.store.backends.contract import MAX_RECORD_BYTES, refuse_large
from deepspec.store.backends.s3_location import SCHEME, Location, endpoint_url, region, shown
from deepspec.store.manifest import FileEntry, Manifest
from deepspec.store.reading.attempts import tried
from deepspec.store.reading.piece_cache import PieceCache
from deepspec.store.reading.tables import MappedTable, ParquetTable, StreamedTable
from deepspec.usage import count

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_ATTEMPTS = 5
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|INVALID_CLIENT_TOKEN|HTTP status 40[13]", re.IGNORECASE
)
_EXPIRED = re.compile(r"expired", re.IGNORECASE)
_DAMAGED = re.compile(r"CRC|checksum|corrupt|magic bytes|thrift|decompress|malformed", re.IGNORECASE)


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
        return tried((self._folder / name).read_bytes, 1, self._named(name))

    def parquet(self, name: str) -> ParquetTable:
        """A Parquet file."""
        return MappedTable(self._folder / name, self._named(name))

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
            with self._fs.open_input_file(f"{at.bucket}/{at.prefix}") as file:
                refuse_large(file.size(), at.prefix, f"s3://{at.bucket}", MAX_RECORD_BYTES)
                data = file.read(MAX_RECORD_BYTES)
            _count(data)
            try:
                return Manifest.from_bytes(data, where=url)
            except ValueError as error:
                raise OSError(f"corrupt manifest: {error}") from error

        self._manifest = tried(manifest, _ATTEMPTS, self._named("The manifest"))

    @property
    def location(self) -> str:
        """The manifest's URL."""
        return self._url

    def read(self, name: str) -> bytes:
        """A small file as a whole."""
        return self._bytes(name, 0, self._entry(name).size)

    def parquet(self, name: str) -> ParquetTable:
        """A Parquet file."""
        return StreamedTable(lambda start, end: self._bytes(name, start, end), self._entry(name), self._named(name))

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
        return tried(ask, _ATTEMPTS, self._named(name))

    def _range(self, path: str, start: int, end: int) -> bytes:
        with self._fs.open_input_file(path) as file:
            data = file.read_at(end - start, start)
        _count(data)
        if len(data) != end - start:
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


def _count(data: bytes) -> None:
    """Note what was read by range: pyarrow asks for the object's size first. What it repeats by itself is not seen."""
    count("get_requests", 2)
    count("bytes_read", len(data))


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
