"""Where stages and their progress are shown: the contract, and displays that show nothing."""

from typing import Protocol

from deepspec.progress import SILENT, Progress
from tasks.runtime.records import StageRecord


class Display(Protocol):
    """Shows stages and their progress to a person."""

    def stage(self, name: str) -> Progress:
        """A stage begins; its progress is reported to what is returned."""

    def done(self, record: StageRecord) -> None:
        """A stage has ended."""

    def say(self, text: str) -> None:
        """A line for the reader."""


class Hidden:
    """A display that shows nothing."""

    def stage(self, name: str) -> Progress:
        """Nothing to show."""
        del name
        return SILENT

    def done(self, record: StageRecord) -> None:
        """Nothing to show."""

    def say(self, text: str) -> None:
        """Nothing to show."""


class Sayings(Hidden):
    """A display that shows no stages, but passes on what is said to the reader."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def say(self, text: str) -> None:
        """A line for the reader."""
        self._display.say(text)
