"""Reads conversations as they come: JSON Lines, Parquet, or Hugging Face `datasets`, each row with its position.

A file that cannot be read raises; a row that cannot be read is yielded as rejected, so that it is quarantined and
counted like any other. Rows are streamed: no more than one row (JSON Lines) or one batch (Parquet) is in memory. Not
here: what a row must contain (conversations/build.py). `datasets` is imported only if a source needs it.
"""

import codecs
import glob
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from deepspec.data.sources.forms import COLUMNS, FORMS, Form
from deepspec.data.sources.hub import HubPart, local_files, split_id
from deepspec.data.sources.rows import TOO_LONG, Position, RawRow, RowRejected, excerpt_of
from deepspec.errors import DataError

logger = logging.getLogger(__name__)

Kind = Literal["jsonl", "parquet", "folder", "hub"]

_SUFFIXES: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_SEARCHED_SUFFIXES = (".jsonl", ".ndjson", ".parquet")  # a lone .json in a folder is more often a description
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_PARQUET_BATCH_ROWS = 1024
_FORMATS = "Give JSON Lines (.jsonl), Parquet (.parquet), a folder of these, or a `datasets` folder or id."


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to read.

    Attributes:
        path: file, folder, or data set id (`owner/name` or `owner/name@revision`).
        kind: how it is read.
        entry: index of its pattern in `data.source`, from 0.
        part: of a data set on the hub, what of it is read; None: `train`, or the only split.
    """

    path: str
    kind: Kind
    entry: int = field(default=0, compare=False)
    part: HubPart | None = None


def find_sources(patterns: Sequence[str | Path]) -> tuple[Source, ...]:
    """The sources that files, folders, globs and data set ids name; each file once, folders and globs in sorted order.

    Raises:
        DataError: a pattern names nothing that can be read.
    """
    found: dict[Path | str, Source] = {}
    for entry, pattern in enumerate(map(str, patterns)):
        for source in _find(pattern):
            identity = source.path if source.kind == "hub" else Path(source.path).resolve()
            found.setdefault(identity, replace(source, entry=entry))
    if not found:
        raise DataError("no source is given.", where="data.source", remedy=_FORMATS)
    return tuple(found.values())


def source_bytes(source: Source) -> int:
    """Bytes that reading a source goes through, as its rows' `num_bytes` add up to; 0 for `datasets`."""
    return Path(source.path).stat().st_size if source.kind in {"jsonl", "parquet"} else 0


def read_rows(source: Source, *, max_row_bytes: int, columns: Sequence[str] = ()) -> Iterator[RawRow]:
    """The rows of one source, in order.

    Args:
        source: from `find_sources`.
        max_row_bytes: longer lines of JSON are rejected unread.
        columns: read of a table that has no column of conversations; without them such a table is an error.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    try:
        match source.kind:
            case "jsonl":
                yield from _read_jsonl(source.path, max_row_bytes)
            case "parquet":
                yield from _read_parquet(source.path, columns)
            case "hub" if source.part is not None and source.part.files:
                yield from _read_hub_files(source, source.part, max_row_bytes, columns)
            case "folder" | "hub":
                yield from _read_datasets(source, columns)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot be read: {reason}.", where=source.path, remedy="Check the file.") from error


def _find(pattern: str) -> list[Source]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _find_in_folder(path)
    if path.is_file():
        return [Source(str(path), _kind_of(path))]
    if glob.has_magic(pattern):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - absolute patterns
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError("matches no file.", where=pattern, remedy="Check data.source.")
        return [Source(str(file), _kind_of(file)) for file in files]
    # In a folder that exists, a name that does not is a mistake, and not worth half a minute of asking the hub.
    if path.suffix.lower() not in _SUFFIXES and _HUB_ID.fullmatch(pattern) and not path.parent.is_dir():
        return [Source(pattern, "hub")]
    raise DataError("there is no such file or folder.", where=pattern, remedy="Check data.source.")


def _find_in_folder(folder: Path) -> list[Source]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return [Source(str(folder), "folder")]
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SEARCHED_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise DataError("holds no file that can be read.", where=str(folder), remedy=_FORMATS)
    return [Source(str(file), _kind_of(file)) for file in files]


def _kind_of(path: Path) -> Kind:
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"has the unknown suffix {path.suffix!r}.", where=str(path), remedy=_FORMATS)
    return kind


def _read_jsonl(path: str, max_row_bytes: int) -> Iterator[RawRow]:
    with Path(path).open("rb") as file:
        start = file.read(4)
        if start[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            raise DataError("is UTF-16, not UTF-8.", where=path, remedy="Convert it to UTF-8.")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        for number, (line, length) in enumerate(_lines(file, max_row_bytes), start=1):
            position = Position(path, number)
            if number == 1 and re.match(rb"\s*\[\s*(\{|$)", line):
                raise DataError(
                    "is one JSON array, not JSON Lines.", where=path, remedy="Write each row on a line of its own."
                )
            if length > max_row_bytes:
                excerpt = excerpt_of(line.decode("utf-8", errors="replace"))
                yield RawRow(position, None, RowRejected(TOO_LONG), excerpt, length)
            elif line.strip():
                yield _json_row(position, line)


def _lines(file: BinaryIO, max_row_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Each line and its length in bytes; of a line that is too long only the beginning, so that memory is bounded."""
    limit = max_row_bytes + 2  # with the end of the line
    while line := file.readline(limit):
        length = len(line.rstrip(b"\r\n"))
        piece = line
        while not piece.endswith(b"\n") and (piece := file.readline(limit)):
            length += len(piece)
        yield line, length


def _json_row(position: Position, line: bytes) -> RawRow:
    cut = "" if line.endswith(b"\n") else " in the last line (a truncated file?)"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        excerpt = excerpt_of(line.decode("utf-8", errors="replace"))
        return RawRow(position, None, RowRejected("not valid UTF-8" + cut, detail=str(error)), excerpt, len(line))
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except RowRejected as rejection:
        return RawRow(position, None, rejection, excerpt_of(text), len(line))
    except (ValueError, RecursionError) as error:
        # Not only JSONDecodeError: numbers of thousands of digits and deep nesting end here too.
        malformed = RowRejected("malformed JSON" + cut, detail=str(error))
        return RawRow(position, None, malformed, excerpt_of(text), len(line))
    return RawRow(position, value, num_bytes=len(line))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that stands twice is refused, because which of the two is meant cannot be known."""
    keyed = dict(pairs)
    if len(keyed) < len(pairs):
        raise RowRejected("a key stands twice in one JSON object")
    return keyed


def _read_parquet(path: str, wanted: Sequence[str]) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = _columns_to_read(file.schema_arrow, path, wanted)
            num_bytes = Path(path).stat().st_size // max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=columns):
                for row in _batch_rows(batch):
                    number += 1
                    rejection = row if isinstance(row, RowRejected) else None
                    value = None if rejection else row
                    yield RawRow(Position(path, number), value, rejection, num_bytes=num_bytes)
    except pa.ArrowException as error:
        raise DataError(
            f"is not a readable Parquet file: {error}.", where=path, remedy="Copy or write the file again."
        ) from error


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
        yield from map(_without_nulls, rows)


def _without_nulls(value: Any) -> Any:
    """A value of an Arrow table without the fields that are null: a row has every column, also those it has not."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _columns_to_read(schema: Any, path: str, wanted: Sequence[str]) -> list[str]:
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


def _read_hub_files(source: Source, part: HubPart, max_row_bytes: int, columns: Sequence[str]) -> Iterator[RawRow]:
    for name, path in local_files(source.path, part):
        for row in read_rows(Source(path, _kind_of(Path(name))), max_row_bytes=max_row_bytes, columns=columns):
            yield replace(row, position=Position(f"{source.path}/{name}", row.position.row))


def _read_datasets(source: Source, columns: Sequence[str]) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = _load_datasets(source)
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        if source.kind == "folder":
            what, remedy = f"cannot be read as a `datasets` folder: {error}.", "Save it again with save_to_disk."
        else:
            what, remedy = f"is neither a file or folder nor a data set that can be loaded: {error}.", _FORMATS
        raise DataError(what, where=source.path, remedy=remedy) from error
    if isinstance(loaded, datasets.DatasetDict):
        names = sorted(loaded)
        if "train" not in names and len(names) != 1:
            raise DataError(
                f"has the parts {', '.join(names) or '(none)'} and none called train.",
                where=source.path,
                remedy="Point data.source at one part's folder.",
            )
        loaded = loaded["train" if "train" in names else names[0]]
    rows = loaded.select_columns(_columns_to_read(loaded.features.arrow_schema, source.path, columns))
    for number, value in enumerate(rows, start=1):
        yield RawRow(Position(source.path, number), _without_nulls(value))


def _load_datasets(source: Source) -> Any:
    import datasets

    if source.kind == "folder":
        return datasets.load_from_disk(source.path)
    name, revision = split_id(source.path)
    part = source.part or HubPart()
    logger.info("loading the data set %s", source.path)
    return datasets.load_dataset(name, part.config, split=part.split, revision=revision)
