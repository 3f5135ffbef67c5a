"""A run's record: one line per stage, as data and as text."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from deepspec.record import StageEntry, StageStatus


@dataclass
class StageRecord:
    """One line of a run's record."""

    name: str
    status: StageStatus
    seconds: float = 0.0
    kind: str = ""
    key: str = ""
    why: str = ""
    algorithm: str | None = None

    def entry(self) -> StageEntry:
        """As in `run.json`, where only a run of several algorithms says whose a stage was."""
        content = asdict(self)
        if self.algorithm is None:
            del content["algorithm"]
        return StageEntry(**content)


MARKS = {
    "hit": ("=", "cyan"),
    "ran": ("+", "green"),
    "rebuilt": ("!", "yellow"),
    "failed": ("x", "red"),
    "skipped": ("-", "dim"),
    "would_run": ("?", "yellow"),
}


def line_of(record: StageRecord) -> str:
    """One stage in one line: mark, name, status, seconds and why."""
    mark, _ = MARKS[record.status]
    took = f"{record.seconds:7.1f} s" if record.status in ("ran", "rebuilt", "failed") else " " * 9
    # A failed stage's whole message stands at the end of the run.
    why = "" if record.status == "failed" else record.why
    return f"{mark} {record.name:<14} {record.status:<9} {took}  {why}".rstrip()


def lines_of(records: Iterable[StageRecord]) -> Iterator[str]:
    """All stages of a run; those of each algorithm under its name, where it has several."""
    algorithm = None
    for record in records:
        if record.algorithm not in (None, algorithm):
            yield str(record.algorithm)
            algorithm = record.algorithm
        yield line_of(record)
