"""Reads conversations as they come: JSON, Parquet, or Hugging Face `datasets`, each row with its position.

A file that cannot be read raises; a row that cannot be read is yielded as rejected, so that it is quarantined and
counted like any other. Rows are streamed: no more than one row (JSON) or one batch (tables) is in memory. Tables are
opened by the reading process (columnar) and nowhere else. Not here: which files there are (finding.py), what a row must
contain (forms.py).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from deepspec.data.sources.account import Account
from deepspec.data.sources.columnar.process import hub_rows, parquet_rows, saved_rows, table_size
from deepspec.data.sources.finding import Source, kind_of
from deepspec.data.sources.hub import HubPart, local_files
from deepspec.data.sources.json_rows import count_json, read_json
from deepspec.data.sources.rows import Position, RawRow
from deepspec.data.sources.saved import read_saved
from deepspec.errors import DataError

logger = logging.getLogger(__name__)


def source_bytes(source: Source) -> int:
    """Bytes that reading a source goes through, as its rows' `num_bytes` add up to; 0 for `datasets`."""
    return Path(source.path).stat().st_size if source.kind in {"jsonl", "parquet"} else 0


def read_rows(
    source: Source, *, max_row_bytes: int, columns: Sequence[str] = (), account: Account | None = None
) -> Iterator[RawRow]:
    """The rows of one source, in order.

    Args:
        source: from `find_sources`.
        max_row_bytes: longer lines of JSON, and rows of tables that are much longer, are rejected unread.
        columns: read of a table that has no column of conversations; without them such a table is an error.
        account: gets the splits of a data set.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    try:
        match source.kind:
            case "jsonl":
                yield from read_json(source.path, max_row_bytes)
            case "parquet":
                yield from parquet_rows(source.path, source_bytes(source), max_row_bytes, columns)
            case "hub" if source.part is not None and source.part.files:
                yield from _read_hub_files(source, source.part, max_row_bytes, columns)
            case "folder":
                saved = read_saved(source.path, any_split=source.any_split)
                if saved.parts is not None:
                    _found_parts(account, *saved.parts)
                yield from saved_rows(source.path, saved, max_row_bytes, columns)
            case "hub":
                yield from _read_hub(source, max_row_bytes, columns, account)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot be read: {reason}.", where=source.path, remedy="Check the file.") from error


def count_rows(source: Source) -> tuple[int, int]:
    """Rows of a source, about, and the bytes that they are unpacked; none of a data set.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if source.kind == "jsonl":
            return count_json(source.path)
        if source.kind != "parquet":
            return 0, 0
        size = table_size(source.path)
        return size.num_rows, size.num_bytes
    except OSError as error:
        raise DataError(f"cannot be read: {error}.", where=source.path, remedy="Check the file.") from error


def _read_hub_files(source: Source, part: HubPart, max_row_bytes: int, columns: Sequence[str]) -> Iterator[RawRow]:
    for name, path in local_files(source.path, part):
        for row in read_rows(Source(path, kind_of(PurePosixPath(name))), max_row_bytes=max_row_bytes, columns=columns):
            yield replace(row, position=Position(f"{source.path}/{name}", row.position.row))


def _read_hub(source: Source, max_row_bytes: int, columns: Sequence[str], account: Account | None) -> Iterator[RawRow]:
    logger.info("loading the data set %s", source.path)
    yield from hub_rows(
        source.path,
        source.part or HubPart(),
        max_row_bytes,
        columns,
        any_split=source.any_split,
        found_parts=partial(_found_parts, account),
    )


def _found_parts(account: Account | None, read: str, others: Sequence[str]) -> None:
    if account is not None:
        account.found_splits([read], others)
