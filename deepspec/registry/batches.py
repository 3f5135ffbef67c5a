"""Entries of a promotion log that count together: all of them, or none.

A copy of a log (publishing.py) may have several entries to write, and a reader must not see a champion from between
them: its draft need not be there, and it may have been rolled back long ago. So a record
`registry/<model>/promotions/0.<after>-<until>.json` is created first: the entries after number `after` count once
`until` is there. The name says all; a listing of the log shows it, and in it it comes before the entries.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

_NAME = re.compile(r"0\.([0-9]{1,9})-([1-9][0-9]{0,8})\.json")


class Batch(NamedTuple):
    """The numbers of the entry before a batch (0: none), and of its last entry."""

    after: int
    until: int

    @property
    def name(self) -> str:
        """Of its record."""
        return f"0.{self.after}-{self.until}.json"


def batches(names: Iterable[str]) -> set[Batch]:
    """The batches whose records are among the names of a log's files."""
    return {Batch(int(match[1]), int(match[2])) for match in map(_NAME.fullmatch, names) if match}


def in_force(written: int, known: Iterable[Batch]) -> int:
    """The number of the last entry that counts; 0: none does.

    An entry does not count where it lies inside a batch, unless another batch ends with it: a record that comes late
    takes back nothing that counted.

    Args:
        written: how many entries there are.
        known: all batches of the log.
    """
    known = set(known)
    ends = {batch.until for batch in known}

    return next(number for number in range(written, -1, -1) if number in ends or not inside(number, known))


def inside(number: int, known: Iterable[Batch]) -> bool:
    """Whether an entry lies inside a batch: it does not end one."""
    return any(batch.after < number < batch.until for batch in known)
