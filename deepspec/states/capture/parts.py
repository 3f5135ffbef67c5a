"""A capture in parts: workers that share a disk, each with a device of its own, make some of the shards each.

What a shard holds does not depend on who makes it, so the files are the same with any number of workers. On a CPU each
worker uses as many threads as one alone would, since the number of threads decides how sums are rounded: there, more
workers make nothing faster.

Not here: how workers are started (a task runner does that).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepspec.states.capture.finished_shards import is_finished
from deepspec.states.capture.survey import Survey
from deepspec.states.capture.writer import RunTarget, write_shards
from deepspec.states.config import Config


@dataclass(frozen=True)
class TargetPlace:
    """A target that a worker can load.

    Args:
        path: its directory.
        layer_ids: layers to capture.
        device: "cpu", or "cuda": then worker i takes GPU i, modulo their number.
        dtype: what it computes in.
        num_threads: CPU threads of each worker; None: one per core.
    """

    path: Path
    layer_ids: tuple[int, ...]
    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int | None = None


@dataclass(frozen=True)
class Part:
    """The shards that one worker makes; it can be sent to another process or machine.

    Args:
        survey, work, numbers, config: see `write_shards`.
        target: what the worker loads.
        index: which of the workers it is.
        batch_tokens: tokens per forward, padding included.
    """

    survey: Survey
    work: Path
    numbers: tuple[int, ...]
    target: TargetPlace
    index: int
    config: Config
    batch_tokens: int


def parts_of(
    survey: Survey, work: Path, *, target: TargetPlace, num_workers: int, config: Config, batch_tokens: int
) -> list[Part]:
    """The shards that are not finished yet, dealt to at most `num_workers`; see `Part` for the arguments."""
    shards = range(survey.places.num_shards)
    missing = [number for number in shards if not is_finished(work, survey.shard(number))]
    dealt: Sequence[tuple[int, ...]] = [tuple(missing[index::num_workers]) for index in range(num_workers)]
    return [
        Part(survey, work, numbers, target, index, config, batch_tokens)
        for index, numbers in enumerate(dealt)
        if numbers
    ]


def capture_part(part: Part) -> None:
    """Load the target and make a part's shards, here.

    Raises:
        DeepspecError: see `write_shards`; finished shards stay in `part.work`.
    """
    import torch

    from deepspec.targets.model import Target

    place = part.target
    torch.set_num_threads(place.num_threads or os.cpu_count() or 1)
    device = f"cuda:{part.index % torch.cuda.device_count()}" if place.device == "cuda" else place.device
    target = Target.load(place.path, device=device, dtype=place.dtype, layer_ids=place.layer_ids)
    write_shards(part.survey, part.work, part.numbers, origin=RunTarget(target, part.batch_tokens), config=part.config)
