"""How long work reports its progress: an object that library functions are given, never a global."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives what has been done; each implementation shows it in its own way."""

    def start(self, total: int, unit: str) -> None:
        """Announce that `total` units (e.g. "tokens") of work are to come."""

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done."""


class Silent:
    """Progress that is not shown."""

    def start(self, total: int, unit: str) -> None:
        """Nothing to show."""

    def advance(self, amount: int = 1) -> None:
        """Nothing to show."""


SILENT: Progress = Silent()

MetricSink = Callable[[int, str, float, str], None]
"""Where metrics go: (step, name, value, unit)."""
