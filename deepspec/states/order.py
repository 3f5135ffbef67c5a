"""In which order documents are trained on: a pure function of (seed, epoch) and of where documents lie.

Row groups are permuted, and documents are shuffled within windows of consecutive permuted row groups: close to a full
shuffle, while a reader holds only one window. The order goes on over epochs as one sequence without end, so that
the position of a training is one integer, whatever the number of ranks.

Numbers are drawn by hashing (seed, epoch, what is ordered): the same on every machine and with every library version.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

WINDOW_ROW_GROUPS = 16


class DataOrder:
    """The order of one data set.

    Args:
        row_groups: row group of each document, 0 … in the order of the files.
        seed: of the whole order.
        window_row_groups: row groups that are shuffled together.
    """

    def __init__(
        self, row_groups: npt.NDArray[np.integer[Any]], *, seed: int, window_row_groups: int = WINDOW_ROW_GROUPS
    ) -> None:
        self._row_groups = np.asarray(row_groups, dtype=np.int64)
        self._seed = seed
        self._window_row_groups = window_row_groups
        self._epochs: dict[int, Ints] = {}

    def epoch(self, epoch: int) -> Ints:
        """The documents of an epoch, each exactly once."""
        if epoch not in self._epochs:
            # A step may reach from one epoch into the next; more are never needed at a time.
            self._epochs = {number: order for number, order in self._epochs.items() if abs(number - epoch) <= 1}
            self._epochs[epoch] = self._make(epoch)
        return self._epochs[epoch]

    def documents(self, start: int, stop: int) -> Ints:
        """The documents at positions [start, stop) of the sequence over all epochs."""
        size = len(self._row_groups)
        pieces = []
        while start < stop:
            epoch, first = divmod(start, size)
            count = min(stop - start, size - first)
            pieces.append(self.epoch(epoch)[first : first + count])
            start += count
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def _make(self, epoch: int) -> Ints:
        num_row_groups = int(self._row_groups.max()) + 1
        group_order = np.argsort(_draws(self._seed, epoch, 0, np.arange(num_row_groups)), kind="stable")
        window_of_group = np.empty(num_row_groups, dtype=np.int64)
        window_of_group[group_order] = np.arange(num_row_groups) // self._window_row_groups
        draws = _draws(self._seed, epoch, 1, np.arange(len(self._row_groups)))
        return np.lexsort((draws, window_of_group[self._row_groups])).astype(np.int64)


def pack(num_tokens: Sequence[int], budget_tokens: int) -> list[range]:
    """Consecutive documents as micro-batches of at most `budget_tokens`; a longer document is alone.

    Args:
        num_tokens: length of each document.
        budget_tokens: most tokens of a micro-batch.
    """
    batches = []
    start, total = 0, 0
    for index, length in enumerate(num_tokens):
        if index > start and total + length > budget_tokens:
            batches.append(range(start, index))
            start, total = index, 0
        total += length
    if start < len(num_tokens):
        batches.append(range(start, len(num_tokens)))
    return batches


def _draws(seed: int, epoch: int, purpose: int, items: Ints) -> npt.NDArray[np.uint64]:
    """One 64-bit number per item."""
    key = np.uint64(0)
    for part in (seed, epoch, purpose):
        key = _mix(np.array([part], dtype=np.uint64) + key)[0]
    return _mix(items.astype(np.uint64) + key)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit numbers that looks random (SplitMix64: Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
