"""The trainer's numbers as lines of a file: `{"step", "name", "value", "unit"}`, written here and followed there.

A checkpoint remembers how long the file was; a resumed run cuts it back to that length, so the file holds every step
exactly once, however often the training was killed.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)


class MetricLog(Protocol):
    """A metric sink that can go back to an earlier moment."""

    def __call__(self, step: int, name: str, value: float, unit: str) -> None:
        """Record a number."""

    def flush(self) -> None:
        """Let readers see what was recorded."""

    def mark(self) -> int:
        """This moment, for `rewind`; everything before it survives a crash from now on."""

    def rewind(self, mark: int) -> None:
        """Forget everything recorded after `mark`."""


class MetricFile:
    """A `MetricLog` in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lines: list[bytes] = []

    def __call__(self, step: int, name: str, value: float, unit: str) -> None:
        content = {"step": step, "name": name, "value": value if math.isfinite(value) else None, "unit": unit}
        self._lines.append(json.dumps(content).encode() + b"\n")

    def flush(self) -> None:
        self._file.write(b"".join(self._lines))
        self._file.flush()
        self._lines.clear()

    def mark(self) -> int:
        self.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def rewind(self, mark: int) -> None:
        self._lines.clear()
        size = self._file.seek(0, os.SEEK_END)
        if size < mark:
            logger.warning("%d bytes of earlier metrics are lost: the curves have a gap.", mark - size)
            return
        self._file.truncate(mark)
        self._file.seek(mark)

    def close(self) -> None:
        """Write what is left and close the file."""
        self.flush()
        self._file.close()


class NoMetrics:
    """A `MetricLog` that keeps nothing: that of every process but the first."""

    def __call__(self, step: int, name: str, value: float, unit: str) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Nothing to show."""

    def mark(self) -> int:
        return 0

    def rewind(self, mark: int) -> None:
        """Nothing to forget."""


class MetricTail:
    """Reads the lines that are added to the file at `path`; a line still being written waits for the next call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[tuple[int, str, float, str]]:
        """The complete lines since the last call, as (step, name, value, unit)."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            content = json.loads(line)
            value = math.nan if content["value"] is None else float(content["value"])
            yield int(content["step"]), str(content["name"]), value, str(content["unit"])
