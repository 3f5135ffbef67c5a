"""The process that reads Parquet and Arrow files for another one, and may be ended by one: `python -m` this.

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
from deepspec.data.sources.columnar.arrow import file_rows, one_schema, schema_of
from deepspec.data.sources.columnar.batches import Rows
from deepspec.data.sources.columnar.columns import columns_to_read
from deepspec.data.sources.columnar.hub_tables import load, loaded_rows
from deepspec.data.sources.columnar.parquet import empty_columns, opened_table, table_rows
from deepspec.data.sources.hub import HubPart
from deepspec.data.sources.rows import RowRejected
from deepspec.errors import DataError

PATIENCE_SECONDS = 600
"""Some rows, or the footer, that take longer end the process by SIGALRM."""
_IDLE_SECONDS = 5.0
Message = Mapping[str, Any]


def main() -> None:
    """Answer requests from standard input on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to handle
    said = frames.Writer(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no message
    logging.getLogger("deepspec").addHandler(_Passed(said))
    logging.getLogger("deepspec").propagate = False
    while select.select([sys.stdin.buffer], [], [], _IDLE_SECONDS)[0]:
        request = frames.read(sys.stdin.buffer)
        if request["folder"] is not None:
            os.chdir(request["folder"])
        answer = answers(request)
        while (message := _patiently(answer, request["patience"])) is not None:
            said.write(message)
        said.write({"end": True})
        said.flush()


def answers(request: Message) -> Iterator[Message]:
    """The answer to a request, and what went wrong as its last message."""
    try:
        yield from _ANSWERS[request["what"]](request)
    except DataError as error:
        yield {"refused": [error.what, error.where, error.remedy]}
    except OSError as error:
        yield {"failed": [error.errno, error.strerror or str(error)]}
    except Exception as error:  # noqa: BLE001  # whatever damaged bytes lead pyarrow to
        what = f"is not a readable {request['form']}: {type(error).__name__}: {error}."
        yield {"refused": [what, request["path"], "Copy or write it again."]}


def _size(request: Message) -> Iterator[Message]:
    """How much there is in a Parquet file."""
    with opened_table(request["path"]) as file:
        metadata = file.metadata
        num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        yield {"num_rows": metadata.num_rows, "num_bytes": num_bytes, "num_groups": metadata.num_row_groups}


def _parquet(request: Message) -> Iterator[Message]:
    """What is read of a Parquet file, then its rows, all or the first of some row groups."""
    path, groups, most = request["path"], request["groups"], request["rows_each"]
    with opened_table(path) as file:
        columns = columns_to_read(file.schema_arrow, path, request["wanted"])
        unread = sorted(set(file.schema_arrow.names) - {*columns, *empty_columns(file)})
        yield {"num_rows": file.metadata.num_rows, "unread": unread}
        for group in range(file.num_row_groups) if groups is None else groups:
            yield from _first(table_rows(file, columns, request["max_row_bytes"], group), most)


def _arrow(request: Message) -> Iterator[Message]:
    """What is read of a `datasets` folder, then its rows."""
    schemas = []
    for file in request["files"]:
        yield {"opens": file}
        schemas.append(schema_of(file))
    schema = one_schema(schemas, request["path"])
    columns, shown = columns_to_read(schema, request["path"], request["wanted"]), request["columns"]
    yield {"unread": sorted(set(schema.names) - set(columns))}
    columns = [name for name in columns if shown is None or name in shown]
    if not columns:
        what = f"was saved with a format that shows only the columns {', '.join(shown) or '(none)'}."
        raise DataError(what, where=request["path"], remedy="Save it again without a format.")
    for file in request["files"]:
        yield {"opens": file}
        yield from _first(file_rows(file, columns, request["max_row_bytes"]))


def _hub(request: Message) -> Iterator[Message]:
    """What is read of a data set on the hub, then its rows."""
    loaded, parts = load(request["path"], HubPart(request["config"], request["split"]), any_split=request["any_split"])
    columns = columns_to_read(loaded.features.arrow_schema, request["path"], request["wanted"])
    yield {"unread": sorted(set(loaded.features) - set(columns)), "parts": parts}
    yield from _first(loaded_rows(loaded, columns, request["max_row_bytes"]))


_ANSWERS = {"size": _size, "parquet": _parquet, "arrow": _arrow, "hub": _hub}


def _first(found: Iterator[Rows], most: int | None = None) -> Iterator[Message]:
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


def _patiently(answer: Iterator[Message], seconds: int) -> Message | None:
    """The next message, while a clock runs; it stands still while a message waits to be taken."""
    signal.alarm(seconds)
    try:
        return next(answer, None)
    finally:
        signal.alarm(0)


class _Passed(logging.Handler):
    """Warnings are the other process's to show."""

    def __init__(self, said: frames.Writer) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.write({"warning": record.getMessage()})


if __name__ == "__main__":
    with contextlib.suppress(frames.Broken, BrokenPipeError):
        main()
    os._exit(0)  # nothing is flushed into a pipe that no one reads
