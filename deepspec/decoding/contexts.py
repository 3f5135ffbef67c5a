"""The drafter's context of each row, kept up to date: at once while it drafts, later while it does not.

Steps that don't draft need no context. The states they commit wait, and go to the drafter in one piece when drafting
continues; a row that ends before that has cost nothing. The number of waiting positions is bounded.

Legend: R rows, Q positions, L captured layers, D hidden.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deepspec.drafts.algorithm import Drafter

MOST_WAITING = 4096
"""Positions that may wait, of all rows together: 210 MB of bf16 states at five layers of 5,120."""


_holders: WeakKeyDictionary[Drafter, "Contexts"] = WeakKeyDictionary()
"""Whose rows a drafter was last made room for: engines may take turns with one drafter, but not share its rows."""


class Contexts:
    """The contexts of a drafter's rows (`lanes`).

    Args:
        drafter: whose.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._waiting: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        self._num_waiting = 0

    def allocate(self, rows: int, capacity: int) -> None:
        """Make room; forgets everything."""
        self._drafter.allocate(rows, capacity)
        _holders[self._drafter] = self
        self._waiting, self._num_waiting = {}, 0

    @property
    def are_held(self) -> bool:
        """Whether the drafter's rows are still these: another engine may have used it in between."""
        return _holders.get(self._drafter) is self

    def reset(self, lanes: Sequence[int]) -> None:
        """New requests start in these rows."""
        for lane in lanes:
            self.drop(lane)
            self._drafter.reset(lane)

    def drop(self, lane: int) -> None:
        """Discard what waits for a row whose request has ended."""
        for _, ids_N, _ in self._waiting.pop(lane, ()):
            self._num_waiting -= len(ids_N)

    def extend(
        self,
        lanes: Sequence[int],
        states_RQLD: Tensor,
        ids_RQ: Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        *,
        at_once: bool,
    ) -> None:
        """Take in committed positions; arguments as in `Drafter.advance`.

        Args:
            lanes, states_RQLD, ids_RQ, starts, counts: what was committed.
            at_once: whether the next step drafts; otherwise it may wait.
        """
        if at_once and not any(lane in self._waiting for lane in lanes):
            self._drafter.advance(lanes, states_RQLD, ids_RQ, starts, counts)
            return
        for index, (lane, start, count) in enumerate(zip(lanes, starts, counts, strict=True)):
            part = (start, ids_RQ[index, :count], states_RQLD[index, :count])
            self._waiting.setdefault(lane, []).append(part)
            self._num_waiting += count
        if at_once:
            self.catch_up(lanes)
        elif self._num_waiting > MOST_WAITING:
            self.catch_up(list(self._waiting))

    def catch_up(self, lanes: Sequence[int]) -> None:
        """Hand the drafter what waits for these rows."""
        behind = [lane for lane in lanes if lane in self._waiting]
        if not behind:
            return
        parts = [self._waiting[lane] for lane in behind]
        ids = [torch.cat([ids_N for _, ids_N, _ in of_row]) for of_row in parts]
        states = [torch.cat([states_NLD for _, _, states_NLD in of_row]) for of_row in parts]
        counts = [len(ids_N) for ids_N in ids]
        ids_RQ = ids[0].new_zeros(len(behind), max(counts))
        states_RQLD = states[0].new_zeros(len(behind), max(counts), *states[0].shape[1:])
        for index, count in enumerate(counts):
            ids_RQ[index, :count] = ids[index]
            states_RQLD[index, :count] = states[index]
        self._drafter.advance(behind, states_RQLD, ids_RQ, [of_row[0][0] for of_row in parts], counts)
        for lane in behind:
            self.drop(lane)
