"""What a person sees while a run goes on: a line per stage, and between those what is being done.

On a terminal a bar with a clock, below the lines. Elsewhere (a log file, CI) plain lines, one every few seconds: a
reader can always see that work goes on.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deepspec.progress import Progress as Reported
from flows.cli import heartbeat
from tasks.runtime.records import MARKS, StageRecord, line_of

_STARTING = "starting"
_BETWEEN_STAGES = "between stages"
_LOOK_SECONDS = 0.25
_QUIET_SECONDS = 3.0  # of five: what is imported between the first line and the display takes up to two
_LONG_SECONDS, _LONG_QUIET_SECONDS = 1800.0, 15.0  # the log of a run of hours stays short


@contextmanager
def display_on(console: Console) -> "Iterator[TerminalDisplay | PlainDisplay]":
    """What shows a run on that console, for the block."""
    with heartbeat.elsewhere(), (_on_terminal if console.is_terminal else _on_lines)(console) as display:
        yield display


@contextmanager
def _on_terminal(console: Console) -> "Iterator[TerminalDisplay]":
    with _bar_of(console) as bar:
        yield TerminalDisplay(console, bar)


@contextmanager
def _on_lines(console: Console) -> "Iterator[PlainDisplay]":
    display = PlainDisplay(console)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            display.break_silence()

    watch = threading.Thread(target=look, name="deepspec-progress", daemon=True)
    watch.start()
    try:
        yield display
    finally:
        ended.set()
        watch.join()


@contextmanager
def progress_of(console: Console, name: str) -> Iterator[Reported]:
    """The progress of one piece of work that is no stage."""
    with display_on(console) as display:
        yield display.stage(name)


class TerminalDisplay:
    """Stages on a terminal, with a live progress bar below them."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._progress = bar
        self._task = self._begin(_STARTING)

    def stage(self, name: str) -> Reported:
        """A stage begins."""
        self._show(name)
        return _Bar(self._progress, self._task)

    def done(self, record: StageRecord) -> None:
        """A stage has ended."""
        _, style = MARKS[record.status]
        self._console.print(line_of(record), style=style, highlight=False, markup=False)
        self._show(_BETWEEN_STAGES)

    def say(self, text: str) -> None:
        """A line for the reader."""
        self._console.print(text, highlight=False, markup=False)

    def _show(self, name: str) -> None:
        self._progress.update(self._task, visible=False)
        self._task = self._begin(name)

    def _begin(self, name: str) -> TaskID:
        return self._progress.add_task(name, total=None, unit="")


def _bar_of(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,  # each refresh takes processor time from what is being waited for
    )


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def start(self, total: int, unit: str) -> None:
        self._progress.reset(self._task, total=total, unit=unit)

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)


class PlainDisplay:
    """Stages as plain lines, with one about progress whenever there was none for a while.

    Args:
        console: where.
        clock: seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._lock = threading.Lock()
        self._begun = self._said = clock()
        self._work = _Work(_STARTING, clock())

    def stage(self, name: str) -> Reported:
        """A stage begins."""
        self._work = _Work(name, self._clock())
        return self._work

    def done(self, record: StageRecord) -> None:
        """A stage has ended."""
        self._work = _Work(_BETWEEN_STAGES, self._clock())
        self.say(line_of(record))

    def say(self, text: str) -> None:
        """A line for the reader."""
        with self._lock:
            self._print(text)

    def break_silence(self) -> None:
        """Say what is being done, if nothing has been said for a while."""
        with self._lock:
            now = self._clock()
            is_long = now - self._begun >= _LONG_SECONDS
            if now - self._said >= (_LONG_QUIET_SECONDS if is_long else _QUIET_SECONDS):
                self._print(f"  {self._work.as_text(now)}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._said = self._clock()


class _Work:
    """What is being done, and how far it is."""

    def __init__(self, name: str, begun: float) -> None:
        self._name, self._begun = name, begun
        self._total, self._done, self._unit = 0, 0, ""

    def start(self, total: int, unit: str) -> None:
        self._total, self._done, self._unit = total, 0, unit

    def advance(self, amount: int = 1) -> None:
        self._done += amount

    def as_text(self, now: float) -> str:
        """As text."""
        if self._total:
            return f"{self._name}: {self._done} of {self._total} {self._unit}"
        return f"{self._name}: {now - self._begun:.0f} s"
