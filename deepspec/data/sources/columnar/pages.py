"""What the pages of a Parquet file say that they unpack to, read from their headers without unpacking them.

A file's footer has totals for each column, and nothing makes them agree with the pages: 33 kB whose footer says 1,000
bytes were unpacked to 1 GB. A page's own header can be relied on: a decoder makes room for as much as it says, and
refuses a page that unpacks to anything else.

Headers are Thrift structs in the compact protocol (Parquet's `PageHeader`); only the fields that say sizes are kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

_MOST_DEPTH = 8
_MOST_BITS = 63
_MOST_SKIPPED = 1 << 31
_DATA_HEADERS = (5, 8)
_DICTIONARY_HEADER = 7
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
_WIDTHS = {_BYTE: 1, _DOUBLE: 8}


@dataclass(frozen=True)
class Page:
    """A page of a column.

    Attributes:
        packed, unpacked: its bytes in the file and in memory, without its header.
        num_values: how many it holds; of a page of another kind 0.
        holds_rows: whether they are rows' values, and not a dictionary's.
    """

    packed: int
    unpacked: int
    num_values: int
    holds_rows: bool


def pages(file: BinaryIO, start: int, size: int, num_values: int) -> Iterator[Page]:
    """The pages of a column in a row group: those that a decoder reads.

    Args:
        file: the Parquet file; is moved.
        start: where the first page's header is.
        size: bytes of them all.
        num_values: of the column.

    Raises:
        ValueError: what stands there is no page.
    """
    seen, place = 0, start
    while seen < num_values and place < start + size:
        if place < 0:
            raise ValueError("a page lies before the file")
        file.seek(place)
        page = _page(_struct(file, _MOST_DEPTH))
        place = file.tell() + page.packed
        seen += page.num_values if page.holds_rows else 0
        yield page


def _page(header: Mapping[int, object]) -> Page:
    unpacked, packed = header.get(2), header.get(3)
    if not isinstance(unpacked, int) or not isinstance(packed, int) or min(unpacked, packed) < 0:
        raise ValueError("a page's header says no size")
    for field in (*_DATA_HEADERS, _DICTIONARY_HEADER):
        inner = header.get(field)
        if isinstance(inner, dict):
            found = inner.get(1)
            if not isinstance(found, int) or found < 0:
                raise ValueError("a page's header says no number of values")
            return Page(packed, unpacked, found, holds_rows=field in _DATA_HEADERS)
    return Page(packed, unpacked, num_values=0, holds_rows=False)


def _struct(file: BinaryIO, depth: int) -> dict[int, object]:
    """Integers and structs of a struct, by number of their field; None for what else it has."""
    if not depth:
        raise ValueError("a page's header is nested too deeply")
    found: dict[int, object] = {}
    field = 0
    while head := _byte(file):
        field = field + (head >> 4) if head >> 4 else _integer(file)
        found[field] = _value(file, head & 15, depth)
    return found


def _value(file: BinaryIO, kind: int, depth: int) -> object:
    if kind in _INTEGERS:
        return _integer(file)
    if kind == _STRUCT:
        return _struct(file, depth - 1)
    if kind in _WIDTHS:
        _skip(file, _WIDTHS[kind])
    elif kind == _BINARY:
        _skip(file, _unsigned(file))
    elif kind in (_LIST, _SET):
        _skip_list(file, depth)
    elif kind not in (_TRUE, _FALSE):
        raise ValueError("a page's header is damaged")
    return None


def _skip_list(file: BinaryIO, depth: int) -> None:
    """Move over a list, in time that is bounded by the bytes that are there and not by its length."""
    head = _byte(file)
    length, kind = head >> 4 if head >> 4 < 15 else _unsigned(file), head & 15
    if kind in _WIDTHS:
        _skip(file, length * _WIDTHS[kind])
        return
    for _ in range(length):  # each of these takes a byte at least
        if kind in (_TRUE, _FALSE):
            _byte(file)
        else:
            _value(file, kind, depth - 1)


def _skip(file: BinaryIO, num_bytes: int) -> None:
    if num_bytes > _MOST_SKIPPED:
        raise ValueError("a page's header is damaged")
    file.seek(num_bytes, 1)


def _byte(file: BinaryIO) -> int:
    found = file.read(1)
    if not found:
        raise ValueError("the file ends within a page's header")
    return found[0]


def _unsigned(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, _MOST_BITS, 7):
        byte = _byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a page's header is damaged")


def _integer(file: BinaryIO) -> int:
    value = _unsigned(file)
    return (value >> 1) ^ -(value & 1)
