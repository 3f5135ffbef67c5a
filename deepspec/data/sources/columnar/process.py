"""Parquet files, read by a process that they may end: the file is then named as damaged, and this process goes on."""

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from deepspec.data.sources.columnar import frames, worker
from deepspec.data.sources.rows import Position, RawRow, RowRejected, excerpt_of
from deepspec.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableSize:
    """How much there is in a Parquet file.

    Attributes:
        num_rows: in all.
        num_bytes: unpacked.
        num_groups: row groups.
    """

    num_rows: int
    num_bytes: int
    num_groups: int


def table_size(path: str) -> TableSize:
    """How much there is in a Parquet file.

    Raises:
        DataError: it is damaged, or a column unpacks to too much.
        OSError: it cannot be read.
    """
    (found,) = _answers(path, what="size")
    return TableSize(**found)


def parquet_rows(path: str, size: int, max_row_bytes: int, wanted: Sequence[str]) -> Iterator[RawRow]:
    """The rows of a Parquet file.

    Args:
        path: plain or compressed.
        size: of the file.
        max_row_bytes: rows that are much longer are rejected unread.
        wanted: read of a table that has no column of conversations.

    Raises:
        DataError: it is damaged, has none of the columns, or a column unpacks to too much.
        OSError: it cannot be read.
    """
    answers = _rows(path, max_row_bytes, wanted)
    about = next(answers)
    num_bytes, unread = size // max(about["num_rows"], 1), frozenset(about["unread"])
    for number, found in enumerate(_found(answers), start=1):
        rejection = found if isinstance(found, RowRejected) else None
        value = None if rejection else found
        yield RawRow(Position(path, number), value, rejection, num_bytes=num_bytes, unread=unread)


def rows_of_groups(path: str, max_row_bytes: int, groups: Sequence[int], rows_each: int) -> Iterator[object]:
    """The first rows of some row groups, as values or as rejected; raises what `parquet_rows` raises."""
    answers = _rows(path, max_row_bytes, (), groups=groups, rows_each=rows_each)
    next(answers)
    yield from _found(answers)


def end_processes() -> None:
    """End the processes that wait for a next file, so that their processor time counts as this process's."""
    while _idle:
        _idle.pop().end()


def _rows(path: str, max_row_bytes: int, wanted: Sequence[str], **groups: Any) -> Iterator[Mapping[str, Any]]:
    asked = {"max_row_bytes": max_row_bytes, "wanted": list(wanted), "groups": None, "rows_each": None, **groups}
    return _answers(path, what="rows", **asked)


def _found(answers: Iterator[Mapping[str, Any]]) -> Iterator[object]:
    """The rows that messages hold, one by one."""
    for answer in answers:
        match answer:
            case {"rejected": [reason, detail]}:
                yield RowRejected(reason, detail=detail)
            case {"values": [*values]}:
                yield from values


def _answers(path: str, **asked: Any) -> Iterator[Mapping[str, Any]]:
    """What a process answers; it waits for a next file if it came to the end.

    Raises:
        DataError: the file is refused, or has ended the process.
        OSError: it cannot be read.
    """
    process, message = _asked({"path": path, "folder": None if Path(path).is_absolute() else str(Path.cwd()), **asked})
    is_done = False
    try:
        while not (is_done := "end" in message):
            match message:
                case {"refused": [what, where, remedy]}:
                    raise DataError(what, where=where, remedy=remedy)
                case {"failed": [number, reason]}:
                    raise OSError(number, reason)
                case {"warning": text}:
                    logger.warning("%s", text)
                case _:
                    yield message
            message = process.next()
    except frames.Broken:
        raise process.ended(path) from None
    finally:
        if is_done:
            _idle.append(process)
        else:
            process.end()


def _asked(request: Mapping[str, Any]) -> "tuple[_Process, Mapping[str, Any]]":
    """A process that was asked, and its first message; one that had waited may have ended itself."""
    while _idle:
        process = _idle.pop()
        with contextlib.suppress(frames.Broken, BrokenPipeError):
            return process, process.ask(request)
        process.end()
    process = _Process()
    try:
        return process, process.ask(request)
    except (frames.Broken, BrokenPipeError):
        raise process.ended(request["path"]) from None


class _Process:
    """A process that reads, one file after the other."""

    def __init__(self) -> None:
        # Its modules are found where this process found them, whatever lies in the folder that this one runs in.
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._input = cast("BinaryIO", self._process.stdin)
        self._requests = frames.Writer(self._input)
        self._messages = cast("BinaryIO", self._process.stdout)

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a request; return the first message of the answer.

        Raises:
            Broken, BrokenPipeError: it has ended.
        """
        self._requests.write(request)
        self._requests.flush()
        return self.next()

    def next(self) -> Mapping[str, Any]:
        """The next message.

        Raises:
            Broken: it has ended.
        """
        return frames.read(self._messages)

    def ended(self, path: str) -> DataError:
        """What is said of a file that has ended it."""
        code = self._process.wait()
        self._words.seek(0)
        words = self._words.read()[-2000:].decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGALRM:
            what = f"is damaged: a row takes more than {worker.PATIENCE_SECONDS} s."
        else:
            last = f", after {excerpt_of(words[-1])!r}" if words else ""
            what = f"is not a readable Parquet file: pyarrow ended the process that read it ({how}{last})."
        self.end()
        return DataError(what, where=path, remedy="Copy or write the file again.")

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Close what leads to it."""
        for file in (self._input, self._messages, self._words):
            with contextlib.suppress(BrokenPipeError):
                file.close()


_idle: list[_Process] = []


def _forget() -> None:
    """A forked process leaves the processes to the one that started them."""
    while _idle:
        _idle.pop().close()


os.register_at_fork(after_in_child=_forget)
atexit.register(end_processes)
