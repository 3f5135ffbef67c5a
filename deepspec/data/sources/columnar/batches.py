"""The rows of an Arrow batch, a few at once: memory is bounded by what a few of them take unpacked.

A struct of a table has every field of its column: a field that is null is one that the row has not, and is left out.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from deepspec.data.sources.columnar.columns import plain_schema, without_nulls
from deepspec.data.sources.rows import TOO_LONG, RowRejected

_UNPACKED_BYTES = 1 << 18
Rows = list[Any] | RowRejected
"""Some rows, or one that is rejected."""


def rows_of(batch: Any, max_row_bytes: int) -> Iterator[Rows]:
    """The rows of a batch, in order.

    Args:
        batch: an Arrow record batch, whose offsets can be relied on.
        max_row_bytes: rows that are much longer are rejected unread.
    """
    sizes = sum((_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, dtype=np.int64))
    start, size = 0, 0
    # What a row may hold is bounded where it is parsed; names of roles and of fields that are not kept come on top.
    most = 4 * max_row_bytes + (1 << 16)
    for row, row_size in enumerate(sizes.tolist()):
        if row_size > most:
            yield from _batch_rows(batch.slice(start, row - start))
            yield RowRejected(TOO_LONG)
            start, size = row + 1, 0
        elif size + row_size > _UNPACKED_BYTES:
            yield from _batch_rows(batch.slice(start, row - start))
            start, size = row, row_size
        else:
            size += row_size
    yield from _batch_rows(batch.slice(start))


def _sizes(array: Any) -> npt.NDArray[np.int64]:
    """Bytes that each row of an Arrow array takes when it is unpacked, about."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as arrow

    kind = array.type
    if arrow.is_dictionary(kind):
        values = _sizes(array.dictionary)
        indices = pc.fill_null(array.indices.cast(pa.int64()), len(values)).to_numpy()
        if len(indices) and not 0 <= indices.min() <= indices.max() <= len(values):
            raise pa.ArrowInvalid("a value is not in the dictionary of its column")
        found: npt.NDArray[np.int64] = np.append(values, 0)[indices]
        return found
    if arrow.is_map(kind):
        return _spans(array.offsets, _sizes(array.keys) + _sizes(array.items))
    if arrow.is_fixed_size_list(kind) or arrow.is_list_view(kind) or arrow.is_large_list_view(kind):
        array = array.cast(pa.large_list(kind.value_type))
        kind = array.type
    if arrow.is_list(kind) or arrow.is_large_list(kind):
        return _spans(array.offsets, _sizes(array.values))
    if arrow.is_struct(kind):
        found = np.full(len(array), 8, dtype=np.int64)
        for number in range(kind.num_fields):
            found = found + _sizes(array.field(number))
        return found
    try:
        lengths = pc.fill_null(pc.binary_length(array), 0)
    except pa.ArrowNotImplementedError:  # neither text nor bytes
        return np.full(len(array), 8, dtype=np.int64)
    return np.asarray(8 + lengths.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _spans(offsets: Any, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sums of the sizes between offsets."""
    sums = np.concatenate(([0], np.cumsum(sizes)))
    ends: npt.NDArray[np.int64] = sums[offsets.to_numpy()]
    return 8 + ends[1:] - ends[:-1]


def _batch_rows(batch: Any) -> Iterator[Rows]:
    """The rows of a batch, one by one where some string in it is not text."""
    plain = _plain(batch)
    try:
        rows = plain.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield RowRejected("not valid UTF-8", detail=str(error))
            return
        for row in range(batch.num_rows):
            yield from _batch_rows(batch.slice(row, 1))
    else:
        if rows:
            yield [without_nulls(row) for row in rows] if any(map(_has_nulls, plain.columns)) else rows


def _has_nulls(array: Any) -> bool:
    """Whether there may be a null anywhere in an Arrow array."""
    import pyarrow.types as arrow

    kind = array.type
    if array.null_count or arrow.is_dictionary(kind):
        return True
    if arrow.is_struct(kind):
        return any(_has_nulls(array.field(number)) for number in range(kind.num_fields))
    if arrow.is_list(kind) or arrow.is_large_list(kind):
        return _has_nulls(array.values)
    return bool(arrow.is_nested(kind))


def _plain(batch: Any) -> Any:
    """A batch with its dictionaries unpacked: to Python they are converted slowly."""
    import pyarrow as pa

    schema = plain_schema(batch.schema)
    if batch.schema.equals(schema):
        return batch
    try:
        # What is cast is all that the batch is a slice of; what is taken is the slice alone.
        return batch.take(pa.array(range(batch.num_rows), pa.int64())).cast(schema)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return batch
