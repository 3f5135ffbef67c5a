"""Reads a Parquet file, in this process: on damaged bytes pyarrow may end it, which is why others call `process`.

Not here: what rows are in a batch of a table (batches.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from deepspec.data.sources.columnar.batches import Rows, rows_of
from deepspec.data.sources.columnar.pages import pages
from deepspec.data.sources.opening import as_file, is_bomb
from deepspec.errors import DataError

_BATCH_ROWS = 1024
_BATCH_BYTES = 64 << 20
_MOST_VALUES = 1 << 24
"""Of a column in a row group, where a million rows have sixteen messages each."""
_MOST_ROWS_IN_A_BYTE = 16
_TEXT = "BYTE_ARRAY"
_WRITE_AGAIN = "Write the file again, with smaller row groups; or leave it out."


@contextmanager
def opened_table(path: str) -> Iterator[Any]:
    """A Parquet file, plain or compressed, as pyarrow's `ParquetFile`, whose texts are read as dictionaries.

    A few hundred bytes can stand for gigabytes: a value that is written once and repeated a million times. Read as a
    dictionary it stays one value.

    Raises:
        DataError: it is damaged, or a column unpacks to too much.
        OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with as_file(path) as found, pq.ParquetFile(found) as plain:
            metadata = plain.metadata
            _check_sizes(metadata, path)
            _check_pages(found, metadata, path)
            columns = range(metadata.num_columns)
            texts = [plain.schema.column(i).path for i in columns if plain.schema.column(i).physical_type == _TEXT]
            with pq.ParquetFile(found, metadata=metadata, read_dictionary=texts) as file:
                yield file
    except pa.ArrowException as error:
        raise DataError(
            f"is not a readable Parquet file: {error}.", where=path, remedy="Copy or write the file again."
        ) from error


def _check_sizes(metadata: Any, path: str) -> None:
    """Refuse a file that stands for much more than it holds.

    Raises:
        DataError: naming file and row group.
    """
    num_rows = num_bytes = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        where = f"{path}, row group {group}"
        columns = [rows.column(index) for index in range(rows.num_columns)]
        packed = sum(column.total_compressed_size for column in columns)
        num_rows, num_bytes = num_rows + rows.num_rows, num_bytes + packed
        for found, held in ((rows.num_rows, packed), (num_rows, num_bytes)):
            if found > max(_MOST_VALUES, _MOST_ROWS_IN_A_BYTE * held):
                raise DataError(f"holds {found:,} rows in {held:,} bytes.", where=where, remedy=_WRITE_AGAIN)
        for column in columns:
            size, unpacked = column.total_compressed_size, column.total_uncompressed_size
            if is_bomb(size, unpacked) or column.num_values > _MOST_VALUES:
                raise DataError(
                    f"unpacks the column {column.path_in_schema} from {size:,} to {unpacked:,} bytes with"
                    f" {column.num_values:,} values.",
                    where=where,
                    remedy=_WRITE_AGAIN,
                )


def _check_pages(found: Any, metadata: Any, path: str) -> None:
    """Refuse a file whose pages stand for more than its footer says: by that, batches of rows are cut.

    Raises:
        DataError: naming file and row group.
        pa.ArrowInvalid: it is damaged.
    """
    import pyarrow as pa

    with Path(found).open("rb") if isinstance(found, str) else nullcontext(found) as file:
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group)
            for column in (rows.column(index) for index in range(rows.num_columns)):
                try:
                    flaw = _flaw_of_pages(file, column)
                except (ValueError, OverflowError, OSError) as error:
                    raise pa.ArrowInvalid(str(error)) from error
                if flaw is not None:
                    where = f"{path}, row group {group}"
                    raise DataError(f"{flaw} in the column {column.path_in_schema}.", where=where, remedy=_WRITE_AGAIN)


def _flaw_of_pages(file: BinaryIO, column: Any) -> str | None:
    start, dictionary = column.data_page_offset, column.dictionary_page_offset
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    said, unpacked = column.total_uncompressed_size, 0
    for page in pages(file, start, column.total_compressed_size, column.num_values):
        unpacked += page.unpacked
        if page.num_values > _MOST_VALUES:
            return f"has a page of {page.num_values:,} values"
        if unpacked > max(_BATCH_BYTES, 2 * said):
            return f"has pages that unpack to {unpacked:,} bytes or more, where its footer says {said:,},"
    return None


def table_rows(file: Any, columns: Sequence[str], max_row_bytes: int, group: int) -> Iterator[Rows]:
    """Rows of a row group as dictionaries, or as rejected. Memory: a batch as it is packed, a few rows unpacked.

    Args:
        file: from `opened_table`.
        columns: to read.
        max_row_bytes: rows that are much longer are rejected unread.
        group: the row group's number.
    """
    found = file.metadata.row_group(group)
    total = sum(found.column(index).total_uncompressed_size for index in range(found.num_columns))
    mean = max(1, total // max(found.num_rows, 1))
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // mean))
    for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=list(columns)):
        yield from rows_of(batch, max_row_bytes)


def empty_columns(file: Any) -> set[str]:
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
