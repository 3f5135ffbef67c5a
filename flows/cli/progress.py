"""What a person sees while a run goes on: a line per stage, and a bar for what takes longer than two seconds.

On a terminal with rich; elsewhere plain lines, so that a log file stays readable.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from deepspec.progress import Progress as Told
from tasks.runtime.records import MARKS, StageRecord, line_of

_PLAIN_EVERY_SECONDS = 15.0


class TerminalDisplay:
    """Stages on a terminal, with a live progress bar below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def stage(self, name: str) -> Told:
        """A stage begins."""
        self.close()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        return _Bar(self._progress, name)

    def done(self, record: StageRecord) -> None:
        """A stage has ended."""
        self.close()
        _, style = MARKS[record.status]
        self._console.print(line_of(record), style=style, highlight=False, markup=False)

    def say(self, text: str) -> None:
        """A line for the reader."""
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def display_on(console: Console) -> "TerminalDisplay | PlainDisplay":
    """What shows a run's stages on that console."""
    return TerminalDisplay(console) if console.is_terminal else PlainDisplay(console)


@contextmanager
def progress_of(console: Console, name: str) -> Iterator[Told]:
    """The progress of one piece of work that is no stage: a bar on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield _Lines(console, name)
        return
    display = TerminalDisplay(console)
    try:
        yield display.stage(name)
    finally:
        display.close()


class _Bar:
    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None, unit="")

    def start(self, total: int, unit: str) -> None:
        self._progress.reset(self._task, total=total, unit=unit)

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)


class PlainDisplay:
    """Stages as plain lines, with one about progress every quarter of a minute."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, name: str) -> Told:
        """A stage begins."""
        return _Lines(self._console, name)

    def done(self, record: StageRecord) -> None:
        """A stage has ended."""
        self.say(line_of(record))

    def say(self, text: str) -> None:
        """A line for the reader."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Lines:
    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._total, self._done, self._unit = 0, 0, ""
        self._said = time.monotonic()

    def start(self, total: int, unit: str) -> None:
        self._total, self._done, self._unit = total, 0, unit

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        if time.monotonic() - self._said >= _PLAIN_EVERY_SECONDS:
            self._said = time.monotonic()
            self._console.print(
                f"  {self._name}: {self._done} of {self._total} {self._unit}", highlight=False, markup=False
            )
