"""The few things that training processes have to agree on; each does nothing with one process.

Gradients are added, not averaged: every micro-batch's loss is already divided by the totals of the whole step.
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=6)
"""The others wait while the first process validates, which may take long; of its death torchrun tells them."""


def is_alone() -> bool:
    """Whether this is the only training process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def rank() -> int:
    """This process's number among the training processes."""
    return 0 if is_alone() else dist.get_rank()


def all_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names that any process has, in one order on all of them; an exchange of objects: not for every step."""
    if is_alone():
        return tuple(names)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, list(names))
    return tuple(dict.fromkeys(name for part in gathered for name in part))


class NamedSums:
    """Adds numbers by name over all processes, one small tensor at a time.

    The names are agreed on by the first call and are the same ever after. A process that lacks one counts as 0 there.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] | None = None

    def add(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums by name, on every process; the numbers stay on the host.

        Raises:
            ValueError: a name that was not among the first call's on any process.
        """
        names = self._agreed(numbers)
        if is_alone():
            return dict(numbers)
        totals = torch.tensor([numbers.get(name, 0.0) for name in names], dtype=torch.float64)
        add_tensors([totals])
        return dict(zip(names, totals.tolist(), strict=True))

    def add_rows(
        self, rows: Mapping[str, Tensor], *, width: int, device: torch.device
    ) -> tuple[tuple[str, ...], Tensor]:
        """The names and their sums [names, width], fp64 on `device`; nothing waits for it.

        Args:
            rows: [width] by name.
            width, device: of the rows, where a process has none.

        Raises:
            ValueError: a name that was not among the first call's on any process.
        """
        names = self._agreed(rows)
        none = torch.zeros(width, dtype=torch.float64, device=device)
        sums = torch.stack([rows.get(name, none) for name in names])
        add_tensors([sums])
        return names, sums

    def _agreed(self, given: Iterable[str]) -> tuple[str, ...]:
        if self._names is None:
            self._names = all_names(given)
        unknown = [name for name in given if name not in self._names]
        if unknown:
            raise ValueError(f"{unknown[0]} is not one of the names that were agreed on: {', '.join(self._names)}")
        return self._names


def add_tensors(tensors: Sequence[Tensor]) -> None:
    """Add up each tensor over all processes, in place."""
    if is_alone():
        return
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in works:
        if work is not None:
            work.wait()


def from_first(value: Any) -> Any:
    """Rank 0's value, on every process."""
    if is_alone():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def most(number: int) -> int:
    """The largest of all processes' numbers."""
    if is_alone():
        return number
    value = torch.tensor(number)  # on the CPU, where agreeing waits for no GPU
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


def any_of(flag: bool) -> bool:  # noqa: FBT001  the one thing it is about
    """Whether `flag` is true on any process."""
    return bool(most(int(flag)))


def wait_for_all(group: Any = None) -> None:
    """Return only when every process has come here; `group`: from `side_group`, in another thread."""
    if not is_alone():
        dist.barrier(group)


def leave_group() -> None:
    """Leave the process group once all processes are here: one that leaves early takes the others down with it."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End a training process whose work is written, without taking the interpreter apart.

    Gloo keeps threads until its last object is gone; now and then one outlives the group and aborts the process while
    Python is being taken apart, and torchrun then reports a training that was finished as failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def side_group() -> Any:
    """A process group for threads that run during training, on the CPU; all processes have to ask for it together."""
    return None if is_alone() else dist.new_group(backend="gloo", timeout=TIMEOUT)
