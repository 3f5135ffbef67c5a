"""Parquet files of rows: written so that equal rows give equal bytes, read with their checksums verified.

Not here: what the rows mean. Rows are dictionaries; no more than one row group of them is in memory.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from deepspec.errors import ArtifactError

ROWS_PER_GROUP = 1024

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_WITH_TOOLS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")
MESSAGES_WITH_TOOLS = pa.list_(pa.struct([(name, pa.string()) for name in _WITH_TOOLS]))
MESSAGES_WITH_WEIGHTS = pa.list_(pa.struct([(name, pa.string()) for name in (*_WITH_TOOLS, "weight")]))
IDS = pa.list_(pa.int32())

PRIVATE = "private"
"""In a folder's summary.json: its texts may stand nowhere else."""
TOOLS = "tools"
"""The column of what a conversation's assistant may call: a JSON list, or null."""
_MAKE_AGAIN = "Make the artifact again: `deepspec run` with the same recipe."


class TableWriter:
    """Writes rows to one Parquet file; the file is whole after `close`.

    Row groups are cut by count alone, so that how the rows arrive changes no byte.

    Args:
        path: the file, replaced if it exists.
        schema: its columns; none may be missing in a row.
        rows_per_group: rows that are held in memory until they are written together.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, rows_per_group: int = ROWS_PER_GROUP) -> None:
        self.path = path
        self.num_rows = 0
        self._schema = schema
        self._rows_per_group = rows_per_group
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
        self._pending: list[Mapping[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self._pending.append(row)
        self.num_rows += 1
        if len(self._pending) == self._rows_per_group:
            self._flush()

    def close(self) -> None:
        """Write what is pending and end the file."""
        try:
            if self._pending:
                self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        columns = [pa.array([row[field.name] for row in self._pending], field.type) for field in self._schema]
        self._pending = []
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file that a `TableWriter` wrote, in order.

    Args:
        path: the file.
        columns: which of its columns.

    Raises:
        ArtifactError: the file is missing, damaged, or has other columns.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise ArtifactError(
                    f"has no column {', '.join(missing)}.",
                    where=str(path),
                    remedy=_MAKE_AGAIN,
                )
            for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=list(columns)):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"cannot be read: {error}.",
            where=str(path),
            remedy=_MAKE_AGAIN,
        ) from error


def with_tools(schema: pa.Schema, *, weights: bool = False) -> pa.Schema:
    """A schema with `messages`, with columns for thoughts, tool calls and tools, and for weights of answers if wanted.

    Files of conversations without any keep the plain schema, and so the bytes that they had before these columns.
    """
    index = schema.get_field_index("messages")
    messages = MESSAGES_WITH_WEIGHTS if weights else MESSAGES_WITH_TOOLS
    return schema.set(index, pa.field("messages", messages)).append(pa.field(TOOLS, pa.string()))


def has_tools(path: Path) -> bool:
    """Whether a file's schema is one of `with_tools`.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return TOOLS in _schema_of(path).names


def has_column(path: Path, name: str) -> bool:
    """Whether a file has a column.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return name in _schema_of(path).names


def has_weights(path: Path) -> bool:
    """Whether a file's schema is one of `with_tools` that has weights.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return bool(_schema_of(path).field("messages").type.value_type.get_field_index("weight") >= 0)


def _schema_of(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"cannot be read: {error}.",
            where=str(path),
            remedy=_MAKE_AGAIN,
        ) from error


def read_conversations(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with `messages` as they were written, and `tools`, in order; see `read_table`."""
    names = [*(name for name in columns if name != TOOLS), *([TOOLS] if has_tools(path) else [])]
    for row in read_table(path, names):
        messages = [{name: value for name, value in one.items() if value is not None} for one in row["messages"]]
        yield {TOOLS: None, **row, "messages": messages}


def count_rows(path: Path) -> int:
    """How many rows a file has.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"cannot be read: {error}.",
            where=str(path),
            remedy=_MAKE_AGAIN,
        ) from error


def is_private(folder: Path) -> bool:
    """Whether texts of a folder's rows may stand nowhere else: not in a quarantine, nor in a page or message."""
    try:
        return bool(json.loads((folder / "summary.json").read_bytes()).get(PRIVATE))
    except (OSError, ValueError, AttributeError):
        return False


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write counts as JSON with sorted keys."""
    path.write_text(json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
