"""How a night ended, as it is shown: a word, and the name of its sign and colour."""

from collections.abc import Mapping

from deepspec.record import RunStatus

ROLLBACK = "rollback"
WORDS: Mapping[RunStatus, str] = {
    "promoted": "promoted",
    "refused": "refused",
    "no_change": "no change",
    "awaiting_approval": "awaiting approval",
    "budget_exhausted": "budget exhausted",
    "interrupted": "interrupted",
    "failed": "failed",
}
"""In the order of the legend."""
MEANINGS: Mapping[str, str] = {
    "promoted": "a new champion",
    "refused": "the gate kept the champion",
    "no_change": "nothing new to train on",
    "awaiting_approval": "a person has to say yes",
    "budget_exhausted": "it would have cost too much, or did",
    "interrupted": "killed, or stopped by hand",
    "failed": "something is wrong",
    ROLLBACK: "a person went back to an earlier champion",
}
BROKEN: tuple[RunStatus, ...] = ("failed", "interrupted")
"""Nights that somebody has to look at."""
_TELLING: tuple[RunStatus, ...] = (
    "failed",
    "interrupted",
    "no_change",
    "budget_exhausted",
    "refused",
    "awaiting_approval",
    "promoted",
)


def telling(status: RunStatus) -> int:
    """Of several runs in one day the one with the highest stands for the day."""
    return _TELLING.index(status)
