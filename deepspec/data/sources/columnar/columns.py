"""Which columns of a table hold conversations, by name and type; a data set's and a Parquet file's alike."""

import logging
from collections.abc import Sequence
from typing import Any

from deepspec.data.sources.forms import COLUMNS, FORMS, Form
from deepspec.errors import DataError

logger = logging.getLogger(__name__)


ALL_COLUMNS = ("*",)
"""As wanted columns: all there are, whatever they hold."""


def columns_to_read(schema: Any, path: str, wanted: Sequence[str] = ()) -> list[str]:
    """The columns of conversations or, in a table that has none, those of the wanted ones that there are."""
    schema = plain_schema(schema)
    if tuple(wanted) == ALL_COLUMNS:
        return list(schema.names)
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


def plain_schema(schema: Any) -> Any:
    """An Arrow schema without dictionaries."""
    import pyarrow as pa

    return pa.schema([field.with_type(_plain_type(field.type)) for field in schema])


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as arrow

    if arrow.is_dictionary(kind):
        return kind.value_type
    if arrow.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    if arrow.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if arrow.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if arrow.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind


def without_nulls(value: Any) -> Any:
    """A value of an Arrow table without the fields that are null: a row has every column, also those it has not."""
    if isinstance(value, dict):
        return {
            key: without_nulls(inner) if isinstance(inner, dict | list) else inner
            for key, inner in value.items()
            if inner is not None
        }
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
