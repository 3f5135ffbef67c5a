"""Reads conversations as they come: JSON, Parquet, or Hugging Face `datasets`, each row with its position.

A file that cannot be read raises; a row that cannot be read is yielded as rejected, so that it is quarantined and
counted like any other. Rows are streamed: no more than one row (JSON) or one batch (tables) is in memory. Not here:
which files there are (finding.py), what a row must contain (forms.py). `datasets` is imported only if a source needs
it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from deepspec.data.sources.account import Account
from deepspec.data.sources.columnar.columns import columns_to_read, without_nulls
from deepspec.data.sources.columnar.process import parquet_rows, table_size
from deepspec.data.sources.finding import FORMATS, Source, held_out_split, kind_of
from deepspec.data.sources.hub import HubPart, local_files, split_id
from deepspec.data.sources.json_rows import count_json, read_json
from deepspec.data.sources.rows import Position, RawRow
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
        max_row_bytes: longer lines of JSON, and rows of Parquet that are much longer, are rejected unread.
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
            case "folder" | "hub":
                yield from _read_datasets(source, columns, account)
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


def _read_datasets(source: Source, columns: Sequence[str], account: Account | None) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = _load_datasets(source)
    except (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError) as error:
        if source.kind == "folder":
            what, remedy = f"cannot be read as a `datasets` folder: {error}.", "Save it again with save_to_disk."
        else:
            what, remedy = f"is neither a file or folder nor a data set that can be loaded: {error}.", FORMATS
        raise DataError(what, where=source.path, remedy=remedy) from error
    if isinstance(loaded, datasets.DatasetDict):
        names = sorted(loaded)
        is_held_out = len(names) == 1 and held_out_split(names[0]) and not source.any_split
        if "train" not in names and (len(names) != 1 or is_held_out):
            raise DataError(
                f"has the parts {', '.join(names) or '(none)'} and none called train.",
                where=source.path,
                remedy="Point data.source at one part's folder.",
            )
        name = "train" if "train" in names else names[0]
        if account is not None:
            account.found_splits([name], [other for other in names if other != name])
        loaded = loaded[name]
    read = columns_to_read(loaded.features.arrow_schema, source.path, columns)
    unread = frozenset(set(loaded.features) - set(read))
    for number, value in enumerate(loaded.select_columns(read), start=1):
        yield RawRow(Position(source.path, number), without_nulls(value), unread=unread)


def _load_datasets(source: Source) -> Any:
    import datasets

    if source.kind == "folder":
        return datasets.load_from_disk(source.path)
    name, revision = split_id(source.path)
    part = source.part or HubPart()
    logger.info("loading the data set %s", source.path)
    return datasets.load_dataset(name, part.config, split=part.split, revision=revision)
