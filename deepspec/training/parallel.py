"""The few things that training processes have to agree on; each does nothing with one process.

Gradients are added, not averaged: every micro-batch's loss is already divided by the totals of the whole step.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
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


def add_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers by name, added over all processes; a name that a process lacks counts as 0 there."""
    if is_alone():
        return dict(numbers)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, dict(numbers))
    total: dict[str, float] = {}
    for part in gathered:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


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
    value = torch.tensor(number, device=_device())
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
    """Part from the other processes, once all have come here: one that leaves early takes the others down with it."""
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
    """A way for threads beside the training to agree, on the CPU; all processes have to ask for it together."""
    return None if is_alone() else dist.new_group(backend="gloo", timeout=TIMEOUT)


def _device() -> str:
    return "cuda" if "nccl" in dist.get_backend() else "cpu"
