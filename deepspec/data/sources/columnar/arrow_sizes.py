"""What the messages of an Arrow stream say that they stand for, read from their headers: nothing is unpacked.

A reader makes room for as much as a compressed buffer says that it unpacks to, and an array of nulls takes no bytes,
however long it says that it is.

Headers are FlatBuffers (Arrow's `Message`); only the fields that say sizes are read.
"""

import struct
from dataclasses import dataclass
from typing import Any

_HEADER_TYPE, _HEADER = 1, 2
_LENGTH, _NODES, _BUFFERS, _COMPRESSION = 0, 1, 2, 3
_DATA = 1
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_PAIR_BYTES = 16


@dataclass(frozen=True)
class BatchSize:
    """What a message stands for.

    Attributes:
        num_rows: of its table; of a dictionary 0.
        num_values: of its longest array, at any depth.
        packed, unpacked: bytes in the file and in memory.
        is_dictionary: whether it holds a dictionary's values, which are kept as long as the file is read.
    """

    num_rows: int
    num_values: int
    packed: int
    unpacked: int
    is_dictionary: bool


def size_of(message: Any) -> BatchSize | None:
    """What a message stands for; None if it holds no values, such as the schema.

    Args:
        message: pyarrow's `Message`.

    Raises:
        ValueError: its header is damaged.
    """
    data, body = memoryview(message.metadata), memoryview(message.body)
    try:
        root = _uint(data, 0)
        at = _field(data, root, _HEADER_TYPE)
        kind = data[at] if at else 0
        if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
            return None
        batch = _table(data, root, _HEADER)
        if kind == _DICTIONARY_BATCH:
            batch = _table(data, batch, _DATA)
        at = _field(data, batch, _LENGTH)
        length = struct.unpack_from("<q", data, at)[0] if at else 0
        nodes, buffers = _pairs(data, batch, _NODES), _pairs(data, batch, _BUFFERS)
        unpacked = len(body)
        if _field(data, batch, _COMPRESSION):
            unpacked = sum(_unpacked(body, offset, size) for offset, size in buffers)
    except (struct.error, IndexError) as error:
        raise ValueError("a message's header is damaged") from error
    lengths = [length, *(num_values for num_values, _ in nodes)]
    if min(lengths) < 0:
        raise ValueError("a message's header says a negative length")
    is_dictionary = kind == _DICTIONARY_BATCH
    return BatchSize(0 if is_dictionary else length, max(lengths), len(body), unpacked, is_dictionary)


def _unpacked(body: memoryview, offset: int, size: int) -> int:
    """What a compressed buffer unpacks to: it begins with that, or with -1 if it is not compressed."""
    if not size:
        return 0
    if offset < 0:
        raise ValueError("a buffer lies before its message")
    found: int = struct.unpack_from("<q", body, offset)[0]
    if found < -1:
        raise ValueError("a buffer unpacks to a negative size")
    return size if found == -1 else found


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table is; 0 if the table has it not."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise IndexError
    place = 4 + 2 * number
    if place + 2 > struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + place)[0]
    return table + offset if offset else 0


def _table(data: memoryview, table: int, number: int) -> int:
    at = _field(data, table, number)
    if not at:
        raise IndexError
    return at + _uint(data, at)


def _pairs(data: memoryview, table: int, number: int) -> list[tuple[int, int]]:
    """A vector of structs of two 64-bit integers."""
    if not _field(data, table, number):
        return []
    at = _table(data, table, number)
    count, start = _uint(data, at), at + 4
    return list(struct.iter_unpack("<qq", data[start : start + _PAIR_BYTES * count]))


def _uint(data: memoryview, at: int) -> int:
    found: int = struct.unpack_from("<I", data, at)[0]
    return found
