"""Tables of others, read by a process that they may end: the file is then named, and this process goes on."""

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from deepspec.data.sources.columnar import frames, worker
from deepspec.data.sources.hub import HubPart
from deepspec.data.sources.rows import Position, RawRow, RowRejected, excerpt_of
from deepspec.data.sources.saved import Saved
from deepspec.errors import DataError

logger = logging.getLogger(__name__)
_PARQUET = "Parquet file"


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
    (found,) = _answers(path, what="size", form=_PARQUET, asked={})
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
    answers = _parquet(path, max_row_bytes, wanted)
    about = next(answers)
    yield from _raw_rows(path, about, answers, num_bytes=size // max(about["num_rows"], 1))


def rows_of_groups(path: str, max_row_bytes: int, groups: Sequence[int], rows_each: int) -> Iterator[object]:
    """The first rows of some row groups, as values or as rejected; raises what `parquet_rows` raises."""
    answers = _parquet(path, max_row_bytes, (), groups=groups, rows_each=rows_each)
    next(answers)
    yield from _found(answers)


def saved_rows(folder: str, saved: Saved, max_row_bytes: int, wanted: Sequence[str]) -> Iterator[RawRow]:
    """The rows of a `datasets` folder.

    Args:
        folder: for positions and messages.
        saved: what is read of it.
        max_row_bytes: rows that are much longer are rejected unread.
        wanted: read of a table that has no column of conversations.

    Raises:
        DataError: it is damaged, has none of the columns, or stands for much more than it holds.
        OSError: it cannot be read.
    """
    asked = {"files": saved.files, "columns": saved.columns, **_rows(max_row_bytes, wanted)}
    answers = _answers(folder, what="arrow", form="`datasets` folder", asked=asked)
    yield from _raw_rows(folder, next(answers), answers)


def hub_rows(
    location: str,
    part: HubPart,
    max_row_bytes: int,
    wanted: Sequence[str],
    *,
    any_split: bool,
    found_parts: Callable[[str, Sequence[str]], None],
) -> Iterator[RawRow]:
    """The rows of a data set on the hub, which the `datasets` library fetches.

    Args:
        location: `owner/name` or `owner/name@revision`.
        part: of it.
        max_row_bytes: rows that are much longer are rejected unread.
        wanted: read of a table that has no column of conversations.
        any_split: whether the only split may be one that is held out from training by its name.
        found_parts: called with the name of the part that is read, and those of the others.

    Raises:
        DataError: it cannot be loaded, or has none of the columns.
    """
    asked = {"config": part.config, "split": part.split, "any_split": any_split, **_rows(max_row_bytes, wanted)}
    answers = _answers(location, what="hub", form="data set", asked=asked, fetches=True)
    about = next(answers)
    if about["parts"] is not None:
        found_parts(*about["parts"])
    yield from _raw_rows(location, about, answers)


def end_processes() -> None:
    """End the processes that wait for a next file, so that their processor time counts as this process's."""
    while _idle:
        _idle.pop().end()


def _parquet(path: str, max_row_bytes: int, wanted: Sequence[str], **groups: Any) -> Iterator[Mapping[str, Any]]:
    asked = {"groups": None, "rows_each": None, **groups, **_rows(max_row_bytes, wanted)}
    return _answers(path, what="parquet", form=_PARQUET, asked=asked)


def _rows(max_row_bytes: int, wanted: Sequence[str]) -> dict[str, Any]:
    return {"max_row_bytes": max_row_bytes, "wanted": list(wanted)}


def _raw_rows(
    path: str, about: Mapping[str, Any], answers: Iterator[Mapping[str, Any]], num_bytes: int = 0
) -> Iterator[RawRow]:
    unread = frozenset(about["unread"])
    for number, found in enumerate(_found(answers), start=1):
        rejection = found if isinstance(found, RowRejected) else None
        value = None if rejection else found
        yield RawRow(Position(path, number), value, rejection, num_bytes=num_bytes, unread=unread)


def _found(answers: Iterator[Mapping[str, Any]]) -> Iterator[object]:
    """The rows that messages hold, one by one."""
    for answer in answers:
        match answer:
            case {"rejected": [reason, detail]}:
                yield RowRejected(reason, detail=detail)
            case {"values": [*values]}:
                yield from values


def _answers(
    path: str, *, what: str, form: str, asked: Mapping[str, Any], fetches: bool = False
) -> Iterator[Mapping[str, Any]]:
    """What a process answers; it waits for a next file if it came to the end.

    Args:
        path: what is read.
        what: is asked.
        form: what is read, in words.
        asked: the rest of the request.
        fetches: whether it comes over the network: that takes its time, and shows its progress.

    Raises:
        DataError: the file is refused, or has ended the process.
        OSError: it cannot be read.
    """
    folder = None if Path(path).is_absolute() else str(Path.cwd())
    patience = 0 if fetches else worker.PATIENCE_SECONDS
    request = {"what": what, "path": path, "form": form, "patience": patience, "folder": folder, **asked}
    process, message = _asked(request, fetches=fetches)
    is_done, where = False, path
    try:
        while not (is_done := "end" in message):
            match message:
                case {"refused": [what, where, remedy]}:
                    raise DataError(what, where=where, remedy=remedy)
                case {"failed": [number, reason]}:
                    raise OSError(number, reason)
                case {"warning": text}:
                    logger.warning("%s", text)
                case {"opens": where}:
                    pass
                case _:
                    yield message
            message = process.next()
    except frames.Broken:
        raise process.ended(where, form) from None
    finally:
        if is_done and not fetches:
            _idle.append(process)
        else:
            process.end()


def _asked(request: Mapping[str, Any], *, fetches: bool) -> "tuple[_Process, Mapping[str, Any]]":
    """A process that was asked, and its first message; one that had waited may have ended itself."""
    while _idle and not fetches:
        process = _idle.pop()
        with contextlib.suppress(frames.Broken, BrokenPipeError):
            return process, process.ask(request)
        process.end()
    process = _Process(is_shown=fetches)
    try:
        return process, process.ask(request)
    except (frames.Broken, BrokenPipeError):
        raise process.ended(request["path"], request["form"]) from None


class _Process:
    """A process that reads, one file after the other.

    Args:
        is_shown: whether its stderr is this process's.
    """

    def __init__(self, *, is_shown: bool) -> None:
        # Its modules are found where this process found them, whatever lies in the folder that this one runs in.
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if is_shown else self._words,
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

    def ended(self, path: str, form: str) -> DataError:
        """What is said of a file that has ended it."""
        code = self._process.wait()
        self._words.seek(0)
        words = self._words.read()[-2000:].decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGALRM:
            what = f"is damaged: some rows take more than {worker.PATIENCE_SECONDS} s."
        else:
            last = f", after {excerpt_of(words[-1])!r}" if words else ""
            what = f"is not a readable {form}: pyarrow ended the process that read it ({how}{last})."
        self.end()
        return DataError(what, where=path, remedy="Copy or write it again.")

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
