"""Reads Arrow files of a `datasets` folder, in this process: on damaged bytes pyarrow may end it, as with Parquet.

pyarrow takes what stands in such a file as it is, and reads at whatever offset the file says. So every batch is checked
first, and what it stands for before that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deepspec.data.sources.columnar.arrow_sizes import BatchSize, size_of
from deepspec.data.sources.columnar.batches import Rows, rows_of
from deepspec.data.sources.columnar.columns import without_nulls
from deepspec.data.sources.opening import is_bomb
from deepspec.data.sources.rows import RowRejected
from deepspec.errors import DataError
from deepspec.foreign_json import parse

_MOST_VALUES = 1 << 20
_MOST_VALUES_IN_A_BYTE = 16
_SAVE_AGAIN = "Save it again with save_to_disk."


def schema_of(path: str) -> Any:
    """The Arrow schema of a file, after a look at what all of its messages stand for.

    Raises:
        DataError: it is damaged, or stands for much more than it holds.
        OSError: it cannot be read.
    """
    import pyarrow as pa

    with _mapped(path) as file:
        messages = pa.ipc.MessageReader.open_stream(file)
        sizes = [size for size in map(size_of, messages) if size is not None]
        _check(sizes, path)
        file.seek(0)
        return pa.ipc.open_stream(file).schema


def file_rows(path: str, columns: Sequence[str], max_row_bytes: int) -> Iterator[Rows]:
    """Rows of a file that `schema_of` has looked at, as dictionaries, or as rejected.

    Args:
        path: the file.
        columns: to read, one at least.
        max_row_bytes: rows that are much longer are rejected unread.

    Raises:
        DataError: it is damaged, or has not all of the columns.
        OSError: it cannot be read.
    """
    import pyarrow as pa

    with _mapped(path) as file:
        names = pa.ipc.open_stream(file).schema.names
        missing = [name for name in columns if names.count(name) != 1]
        if missing:
            raise DataError(f"has not one column {missing[0]}.", where=path, remedy=_SAVE_AGAIN)
        file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
        for batch in pa.ipc.open_stream(file, options=options):
            for column in batch.columns:
                column.view(_as_bytes(column.type)).validate(full=True)
            yield from with_json(rows_of(batch, max_row_bytes), batch.schema)


def one_schema(schemas: Sequence[Any], path: str) -> Any:
    """The schema of several files of one folder.

    Raises:
        DataError: they do not agree.
    """
    import pyarrow as pa

    try:
        return pa.unify_schemas(schemas, promote_options="default")
    except pa.ArrowException as error:
        raise DataError(f"has files that do not agree: {error}.", where=path, remedy=_SAVE_AGAIN) from error


def with_json(found: Iterator[Rows], schema: Any) -> Iterator[Rows]:
    """Rows whose values of the type JSON are read, as `datasets` does."""
    if not any(map(_holds_json, schema.types)):
        yield from found
        return
    for rows in found:
        for row in [rows] if isinstance(rows, RowRejected) else rows:
            try:
                yield row if isinstance(row, RowRejected) else [_with_json(row, schema)]
            except ValueError as error:
                yield RowRejected("malformed JSON", detail=str(error))


@contextmanager
def _mapped(path: str) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own have none
            raise
        what = str(error).rstrip(".")
        raise DataError(f"is not a readable Arrow file: {what}.", where=path, remedy=_SAVE_AGAIN) from error


def _check(sizes: Sequence[BatchSize], path: str) -> None:
    """Refuse a file that stands for much more than it holds.

    Raises:
        DataError: naming file and batch.
    """
    kept = kept_packed = num_rows = num_bytes = 0
    for number, size in enumerate(sizes):
        where = f"{path}, batch {number}"
        if size.is_dictionary:
            kept, kept_packed = kept + size.unpacked, kept_packed + size.packed
        if is_bomb(size.packed, size.unpacked) or is_bomb(kept_packed, kept):
            raise DataError(
                f"unpacks from {size.packed:,} to {size.unpacked:,} bytes.", where=where, remedy=_SAVE_AGAIN
            )
        num_rows, num_bytes = num_rows + size.num_rows, num_bytes + size.unpacked
        for found, held in ((size.num_values, size.unpacked), (num_rows, num_bytes)):
            if found > max(_MOST_VALUES, _MOST_VALUES_IN_A_BYTE * held):
                raise DataError(f"holds {found:,} values in {held:,} bytes.", where=where, remedy=_SAVE_AGAIN)


def _as_bytes(kind: Any) -> Any:
    """A type whose texts are bytes: a text that is no Unicode is a row's flaw, and not its batch's."""
    import pyarrow as pa
    import pyarrow.types as arrow

    if isinstance(kind, pa.BaseExtensionType):
        return _as_bytes(kind.storage_type)
    if arrow.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if arrow.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if arrow.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if arrow.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    texts = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return texts.get(kind, kind)


def _holds_json(kind: Any) -> bool:
    import pyarrow as pa

    return isinstance(kind, pa.JsonType) or any(
        _holds_json(kind.field(number).type) for number in range(kind.num_fields)
    )


def _with_json(row: dict[str, Any], schema: Any) -> Any:
    return without_nulls({name: _read(value, schema.field(name).type) for name, value in row.items()})


def _read(value: Any, kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as arrow

    if isinstance(kind, pa.JsonType) and value is not None:
        return parse(value.encode(), len(value.encode()))
    if arrow.is_struct(kind) and isinstance(value, dict):
        return {name: _read(inner, kind.field(name).type) for name, inner in value.items()}
    if isinstance(value, list) and kind.num_fields == 1:
        return [_read(item, kind.field(0).type) for item in value]
    return value
