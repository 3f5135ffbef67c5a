"""Parquet files whose sizes are lies: what the pages say counts, and no memory is taken for what they do not hold."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.sources.columnar.pages import pages
from deepspec.data.sources.finding import find_sources
from deepspec.data.sources.readers import count_rows
from deepspec.errors import DataError
from tests.fixtures.refused import refused
from tests.unit.test_data_sources import read


def varint(number: int, length: int = 0) -> bytes:
    """An integer as Thrift's compact protocol writes it, in `length` bytes if it fits into fewer."""
    rest, found = 2 * number, []
    while rest > 127 or len(found) + 1 < length:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*found, rest])


def patched(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of a file that stand in it once or more."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def plain_table(path: Path, turns: list[list[str]], **options: Any) -> pq.ColumnChunkMetaData:
    options = {"use_dictionary": False, "compression": "zstd", **options}
    pq.write_table(pa.table({"turns": turns}), path, store_schema=False, write_statistics=False, **options)
    return pq.read_metadata(path).row_group(0).column(0)


def test_a_parquet_file_whose_footer_belies_its_pages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    column = plain_table(path, [["a" * (65 << 20)]])
    said = varint(column.total_uncompressed_size)
    patched(path, said, varint(1000, len(said)))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1000
    for question in (read, lambda given: count_rows(find_sources([given])[0])):
        with refused(DataError, "1,000", where=f"{path}, row group 0"):
            question(path)


@pytest.mark.parametrize("absurd", [(1 << 31) - 1, 10**9])
@pytest.mark.parametrize("field", ["unpacked", "values"])
def test_a_page_that_claims_an_absurd_size_gets_no_memory(tmp_path: Path, field: str, absurd: int) -> None:
    """pyarrow would make room for as much as the header says: 2 GB, or 16 bytes a value."""
    path = tmp_path / "rows.parquet"
    column = plain_table(path, [["hello", "you"]] * 300)
    (page,) = pages(io.BytesIO(path.read_bytes()), 4, column.total_compressed_size, column.num_values)
    assert (page.num_values, page.holds_rows) == (600, True)
    unpacked, packed = (b"\x15" + varint(size) for size in (page.unpacked, page.packed))
    values = b"\x2c\x15" + varint(600)
    header = {
        "unpacked": (unpacked + packed, b"\x15" + varint(absurd) + packed),
        "values": (values, values[:2] + varint(absurd)),
    }[field]
    longer = len(header[1]) - len(header[0])
    content = path.read_bytes()
    assert content[4 : 4 + 64].count(header[0]) == 1
    size = varint(column.total_compressed_size)
    grown = varint(column.total_compressed_size + longer, len(size))
    end = 4 + column.total_compressed_size
    assert len(grown) == len(size)
    assert size in content[end:]
    path.write_bytes(content[:end].replace(*header, 1) + content[end:].replace(size, grown))
    with refused(DataError, f"{absurd:,}", where=f"{path}, row group 0"):
        read(path)


@pytest.mark.parametrize("kind", [1, 3, 5, 7, 8, 9, 12])
def test_a_long_list_in_a_header_takes_no_time(kind: int) -> None:
    """A field of a header, a list of 2^60 items of each kind: bytes could be skipped for years."""
    length = b"\x80" * 8 + b"\x10"
    with pytest.raises(ValueError, match="header"):
        list(pages(io.BytesIO(b"\x19" + bytes([0xF0 | kind]) + length + b"\x01" * 50), 0, 100, 1))


def test_a_parquet_value_outside_its_dictionary_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    plain_table(path, [["hello"], ["you"]] * 300, use_dictionary=True)
    patched(path, b"\x4c\x15" + varint(2), b"\x4c\x15" + varint(0))
    with refused(DataError, "dictionary", where=str(path)):
        read(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_pages_of_parquet_say_what_the_footer_does(tmp_path: Path, version: str, compression: str) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"turns": [[f"turn {n % 50}", f"and {n}"] for n in range(3000)], "n": range(3000)})
    pq.write_table(table, path, compression=compression, data_page_version=version, data_page_size=2000,
                   row_group_size=1700, write_page_index=True, write_page_checksum=True)  # fmt: skip
    metadata = pq.read_metadata(path)
    for group in range(2):
        for index in range(2):
            column = metadata.row_group(group).column(index)
            start = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
            with path.open("rb") as file:
                found = list(pages(file, start, column.total_compressed_size, column.num_values))
                assert file.tell() + found[-1].packed == start + column.total_compressed_size
            assert sum(page.num_values for page in found if page.holds_rows) == column.num_values
            headers = column.total_compressed_size - sum(page.packed for page in found)
            assert sum(page.unpacked for page in found) + headers == column.total_uncompressed_size
    assert len(read(path)) == 3000
