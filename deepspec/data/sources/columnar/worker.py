"""The process that reads Parquet files for another one, and may be ended by one: `python -m` this.

It answers one request after the other, and ends when the other process has, or has asked nothing for a while.
"""

import contextlib
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from deepspec.data.sources.columnar import frames
from deepspec.data.sources.columnar.batches import Rows
from deepspec.data.sources.columnar.columns import columns_to_read
from deepspec.data.sources.columnar.parquet import empty_columns, opened_table, table_rows
from deepspec.data.sources.rows import RowRejected
from deepspec.errors import DataError

PATIENCE_SECONDS = 600
"""A row, or the footer, that takes longer ends the process by SIGALRM."""
_IDLE_SECONDS = 5.0
Message = Mapping[str, Any]


def main() -> None:
    """Answer requests from standard input on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to handle
    logging.getLogger("deepspec").addHandler(_Passed())
    logging.getLogger("deepspec").propagate = False
    while select.select([sys.stdin.buffer], [], [], _IDLE_SECONDS)[0]:
        request = frames.read(sys.stdin.buffer)
        if request["folder"] is not None:
            os.chdir(request["folder"])
        answer = _safely(request["path"], size(request) if request["what"] == "size" else rows(request))
        while (message := _patiently(answer)) is not None:
            _said.write(message)
        _said.write({"end": True})
        _said.flush()


def size(request: Message) -> Iterator[Message]:
    """How much there is in a table."""
    with opened_table(request["path"]) as file:
        metadata = file.metadata
        num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        yield {"num_rows": metadata.num_rows, "num_bytes": num_bytes, "num_groups": metadata.num_row_groups}


def rows(request: Message) -> Iterator[Message]:
    """What is read of a table, then its rows, all or the first of some row groups."""
    path, groups, most = request["path"], request["groups"], request["rows_each"]
    with opened_table(path) as file:
        columns = columns_to_read(file.schema_arrow, path, request["wanted"])
        unread = sorted(set(file.schema_arrow.names) - {*columns, *empty_columns(file)})
        yield {"num_rows": file.metadata.num_rows, "unread": unread}
        for group in range(file.num_row_groups) if groups is None else groups:
            yield from _first(table_rows(file, columns, request["max_row_bytes"], group), most)


def _first(found: Iterator[Rows], most: int | None) -> Iterator[Message]:
    """The first rows, or all."""
    left = sys.maxsize if most is None else most
    for rows in found:
        if isinstance(rows, RowRejected):
            yield {"rejected": [rows.reason, rows.detail]}
            left -= 1
        else:
            yield {"values": rows[:left]}
            left -= len(rows)
        if left <= 0:
            return


def _safely(path: str, answer: Iterator[Message]) -> Iterator[Message]:
    """The answer, and what went wrong as its last message."""
    try:
        yield from answer
    except DataError as error:
        yield {"refused": [error.what, error.where, error.remedy]}
    except OSError as error:
        yield {"failed": [error.errno, error.strerror or str(error)]}
    except Exception as error:  # noqa: BLE001  # whatever damaged bytes lead pyarrow to
        what = f"is not a readable Parquet file: {type(error).__name__}: {error}."
        yield {"refused": [what, path, "Copy or write the file again."]}


def _patiently(answer: Iterator[Message]) -> Message | None:
    """The next message, while a clock runs; it stands still while a message waits to be taken."""
    signal.alarm(PATIENCE_SECONDS)
    try:
        return next(answer, None)
    finally:
        signal.alarm(0)


class _Passed(logging.Handler):
    """Warnings are the other process's to show."""

    def emit(self, record: logging.LogRecord) -> None:
        _said.write({"warning": record.getMessage()})


_said = frames.Writer(sys.stdout.buffer)


if __name__ == "__main__":
    with contextlib.suppress(frames.Broken, BrokenPipeError):
        main()
    os._exit(0)  # nothing is flushed into a pipe that no one reads
