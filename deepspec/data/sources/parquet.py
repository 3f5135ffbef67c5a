"""Rows of tables: Parquet files, and what `datasets` reads. Columns are chosen by the forms that read them (forms.py).

A struct of a table has every field of its column: a field that is null is one that the row has not, and is left out.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deepspec.data.sources.forms import COLUMNS, FORMS, Form
from deepspec.data.sources.opening import as_file
from deepspec.data.sources.rows import Position, RawRow, RowRejected
from deepspec.errors import DataError

logger = logging.getLogger(__name__)

_BATCH_ROWS = 1024


@contextmanager
def opened_table(path: str) -> Iterator[Any]:
    """A Parquet file, plain or compressed, as pyarrow's `ParquetFile`.

    Raises:
        DataError: it is damaged.
        OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with as_file(path) as found, pq.ParquetFile(found) as file:
            yield file
    except pa.ArrowException as error:
        raise DataError(
            f"is not a readable Parquet file: {error}.", where=path, remedy="Copy or write the file again."
        ) from error


def count_parquet(path: str) -> tuple[int, int]:
    """Rows of a Parquet file, and their bytes unpacked; raises what `opened_table` raises."""
    with opened_table(path) as file:
        metadata = file.metadata
        return metadata.num_rows, sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def read_parquet(path: str, size: int, wanted: Sequence[str]) -> Iterator[RawRow]:
    """The rows of a Parquet file.

    Args:
        path: plain or compressed.
        size: of the file.
        wanted: read of a table that has no column of conversations.

    Raises:
        DataError: it is damaged, or has none of the columns.
    """
    number = 0
    with opened_table(path) as file:
        columns = columns_to_read(file.schema_arrow, path, wanted)
        num_bytes = size // max(file.metadata.num_rows, 1)
        unread = frozenset(set(file.schema_arrow.names) - {*columns, *_empty_columns(file)})
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            for row in _batch_rows(batch):
                number += 1
                rejection = row if isinstance(row, RowRejected) else None
                value = None if rejection else row
                yield RawRow(Position(path, number), value, rejection, num_bytes=num_bytes, unread=unread)


def _empty_columns(file: Any) -> set[str]:
    """Columns of nothing but nulls, as far as the file says so."""
    import pyarrow.types as arrow

    metadata = file.metadata
    found: dict[str, bool] = {}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            known = column.statistics
            is_empty = known is not None and known.has_null_count and known.null_count == column.num_values
            name = column.path_in_schema.partition(".")[0]
            found[name] = found.get(name, True) and is_empty
    nulls = {field.name for field in file.schema_arrow if arrow.is_null(field.type)}
    return nulls | {name for name, is_empty in found.items() if is_empty}


def _batch_rows(batch: Any) -> Iterator[object]:
    """The rows of a batch, one by one where some string in it is not text."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield RowRejected("not valid UTF-8", detail=str(error))
            return
        for row in range(batch.num_rows):
            yield from _batch_rows(batch.slice(row, 1))
    else:
        yield from map(without_nulls, rows)


def without_nulls(value: Any) -> Any:
    """A value of an Arrow table without the fields that are null: a row has every column, also those it has not."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def columns_to_read(schema: Any, path: str, wanted: Sequence[str]) -> list[str]:
    """The columns of conversations or, in a table that has none, those of the wanted ones that there are."""
    if not any(name in schema.names and _fits(schema.field(name).type, _FORMS[name]) for name in COLUMNS):
        there = [name for name in wanted if name in schema.names]
        if there:
            return there
    return _conversation_columns(schema, path, wanted)


def _conversation_columns(schema: Any, path: str, wanted: Sequence[str] = ()) -> list[str]:
    """The columns that the forms of conversations read, by name and type.

    A column of another type next to a good one (a number of `turns`, say) is not read.

    Args:
        schema: Arrow schema of the file or data set.
        path: for messages.
        wanted: what could have been there instead, for messages.

    Raises:
        DataError: there is no such column, or none has the type that it has to have.
    """
    named = [form for form in FORMS if form.column in schema.names]
    if not named:
        accepted = ", ".join((*_FORMS, *wanted))
        raise DataError(
            f"has the columns {', '.join(schema.names) or '(none)'}, but none of {accepted}.",
            where=path,
            remedy="Rename the column that holds the conversations.",
        )
    good = [form for form in named if _fits(schema.field(form.column).type, form)]
    if good:
        read = {name for form in good for name in form.fields}
        bad = {form.column: schema.field(form.column).type for form in named if form not in good}
        for name, kind in bad.items():
            logger.warning("%s: the column %s is %s and is not read", path, name, kind)
        return [name for name in schema.names if name in read and name not in bad]
    wrong = "; ".join(
        f"the column {form.column} is {schema.field(form.column).type}, but has to be {_TYPES[form.column]}"
        for form in named
    )
    raise DataError(f"{wrong}.", where=path, remedy="Write it again with a column of that type.")


_FORMS = {form.column: form for form in FORMS}
_TYPES = {
    "messages": "list<struct<role: string, content: string>>",
    "conversations": "list<struct<from: string, value: string>>",
    "turns": "list<string>",
    "instruction": "string",
    "prompt": "string",
}


def _fits(kind: Any, form: Form) -> bool:
    """Whether an Arrow type can hold what a form's column must hold. Nulls can: their rows are refused later."""
    import pyarrow.types as arrow

    if arrow.is_null(kind):
        return True
    if form.holds in ("text", "prompt") and _is_text(kind):
        return True
    if form.holds == "text":
        return False
    lists = (
        arrow.is_list,
        arrow.is_large_list,
        arrow.is_fixed_size_list,
        arrow.is_list_view,
        arrow.is_large_list_view,
    )
    if not any(is_list(kind) for is_list in lists):
        return False
    item = kind.value_type
    if form.holds == "texts" or arrow.is_null(item):
        return _is_text(item)
    if not arrow.is_struct(item):
        return False
    fields = {item.field(number).name: item.field(number).type for number in range(item.num_fields)}
    return any(_is_text(fields[name]) for name in ("role", "from") if name in fields) and any(
        _is_text(fields[name]) or _holds_parts(fields[name]) for name in ("content", "value") if name in fields
    )


def _holds_parts(kind: Any) -> bool:
    """Whether an Arrow type is a list of parts of a content, each with its text."""
    import pyarrow.types as arrow

    if not (arrow.is_list(kind) or arrow.is_large_list(kind)) or not arrow.is_struct(kind.value_type):
        return False
    index = kind.value_type.get_field_index("text")
    return index >= 0 and _is_text(kind.value_type.field(index).type)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as arrow

    if arrow.is_dictionary(kind):
        kind = kind.value_type
    is_text = (arrow.is_string, arrow.is_large_string, arrow.is_string_view, arrow.is_null)
    return any(is_kind(kind) for is_kind in is_text)
