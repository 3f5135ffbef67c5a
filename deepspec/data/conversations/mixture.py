"""How many conversations of each source are taken, and which: weights, limits, and samples by content.

Rows are left out, never repeated: more epochs are set in `train`. The source with the fewest rows for its weight is
used up, and decides how many rows the others give.

A hash of the prompt, then of the conversation, decides which rows are taken. The choice depends on neither the order of
rows nor on their answers, and a smaller sample is part of a larger one. Memory: 0.5 MB a source, and one in 65,536 of
the rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deepspec.data.config import SourceEntry
from deepspec.keyed_random import fraction

Key = tuple[float, str, str]
"""Rows with the smallest keys are chosen: a hash of the prompt as a number in [0, 1), the prompt's id, the row's id."""

_NUM_BUCKETS = 1 << 16
_NOTHING: Key = (-1.0, "", "")


def is_mixture(entries: Sequence[SourceEntry]) -> bool:
    """Whether it matters which source a row came from."""
    return any(entry.weight is not None or entry.max_rows is not None for entry in entries)


def ranks_of(entries: Sequence[SourceEntry]) -> list[int]:
    """The rank of each source, by name and then by order in the recipe: the smallest keeps a row that several hold."""
    if not is_mixture(entries):
        return [0] * len(entries)
    order = sorted(range(len(entries)), key=lambda entry: (entries[entry].name or "", entry))
    return [order.index(entry) for entry in range(len(entries))]


def quotas(available: Sequence[int], entries: Sequence[SourceEntry], max_rows: int | None) -> list[int]:
    """How many rows of each source are taken.

    Args:
        available: rows that each has.
        entries: the sources; all have a weight or none.
        max_rows: of all of them together; where there are no weights, no source's part of it is fixed here.
    """
    limits = [min(count, entry.max_rows or count) for count, entry in zip(available, entries, strict=True)]
    weights = [Fraction(entry.weight) for entry in entries if entry.weight is not None]
    if not weights:
        return limits
    total = sum(weights)
    size = min(limit * total / weight for limit, weight in zip(limits, weights, strict=True))
    if max_rows is not None:
        size = min(size, Fraction(max_rows))
    return [int(size * weight / total) for weight in weights]


def fraction_of(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) drawn by hash: the same on every machine, and independent of every other draw."""
    return fraction(f"{purpose}/{seed}/{name}", bits=48)


def sample_key(seed: int, row: Mapping[str, Any]) -> Key:
    """The row's key; the prompt comes first, so that answers do not decide which prompts stay."""
    return fraction_of(seed, "sample", row["prompt_id"]), row["prompt_id"], row["id"]


class Sample:
    """Which rows are taken of each group.

    Args:
        last: group -> the last key that is taken; of a group that is not named all are.
    """

    def __init__(self, last: Mapping[int, Key] | None = None) -> None:
        self._last = last or {}

    def admits(self, group: int, key: Key) -> bool:
        """Whether a row is taken."""
        last = self._last.get(group)
        return last is None or key <= last


def sample(
    rows: Callable[[], Iterable[tuple[int, Key]]],
    num_groups: int,
    wanted: Callable[[Sequence[int]], Sequence[int]],
) -> Sample:
    """Choose the rows with the smallest keys of each group, in two passes over them.

    Args:
        rows: a pass over (group, key) of all rows.
        num_groups: groups are 0 … num_groups - 1.
        wanted: how many of each are wanted, given how many there are.
    """
    histograms = np.zeros((num_groups, _NUM_BUCKETS), dtype=np.int64)
    for group, key in rows():
        histograms[group, _bucket(key)] += 1
    available = [int(count) for count in histograms.sum(axis=1)]
    counts = wanted(available)
    # The bucket in which the last row lies that is taken, and how many of its rows are.
    edges: dict[int, tuple[int, int]] = {}
    last: dict[int, Key] = {}
    for group, count in enumerate(counts):
        if count <= 0 < available[group]:
            last[group] = _NOTHING
        elif count < available[group]:
            edges[group] = _edge(histograms[group], count)
    if edges:
        pending: dict[int, list[Key]] = {group: [] for group in edges}
        for group, key in rows():
            if group in edges and _bucket(key) == edges[group][0]:
                pending[group].append(key)
        last |= {group: sorted(keys)[edges[group][1] - 1] for group, keys in pending.items()}
    return Sample(last)


def _bucket(key: Key) -> int:
    return int(key[0] * _NUM_BUCKETS)


def _edge(histogram: npt.NDArray[np.int64], count: int) -> tuple[int, int]:
    up_to = np.cumsum(histogram)
    bucket = int(np.searchsorted(up_to, count))
    before = int(up_to[bucket - 1]) if bucket else 0
    return bucket, count - before
