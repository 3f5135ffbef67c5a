"""Loading what stages decode with: the target, and a draft for it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.recipe import Recipe
from tasks.runtime.job import Job

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer
    from deepspec.drafts.algorithm import Drafter
    from deepspec.targets.model import Target


@dataclass(frozen=True)
class LoadedPair:
    """A target, a draft that proposes for it, and the target's chat template."""

    target: "Target"
    drafter: "Drafter"
    renderer: "Renderer"


def load_target(folder: Path, config: Recipe, job: Job, layer_ids: tuple[int, ...] = ()) -> "Target":
    """The target in `folder` on the job's device, in the recipe's dtype, capturing `layer_ids`."""
    from deepspec.targets.model import Target

    _use_threads(job.execution.num_threads)
    return Target.load(folder, device=job.device, dtype=config.target.dtype, layer_ids=layer_ids)


def load_pair(target_folder: Path, draft_folder: Path, config: Recipe, job: Job) -> LoadedPair:
    """The target, and the draft in `draft_folder`, both in the recipe's dtype.

    Raises:
        IncompatibleDraft: the draft does not fit the target.
    """
    from deepspec.data.chat.renderer import Renderer
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.drafts import algorithm_of
    from deepspec.targets.directory import read_spec

    algorithm = algorithm_of(draft_folder)
    draft = algorithm.load(draft_folder, read_spec(target_folder), device=job.device, dtype=config.target.dtype)
    drafter = algorithm.drafter(draft, algorithm.read_config(draft_folder))
    target = load_target(target_folder, config, job, drafter.layer_ids)
    _use_threads(job.execution.num_decoding_threads or job.execution.num_threads)
    renderer = Renderer(load_tokenizer(target_folder), target.family.chat, thinking=config.data.thinking)
    return LoadedPair(target, drafter, renderer)


def _use_threads(count: int | None) -> None:
    """Let torch use `count` CPU threads, or one per core."""
    import torch

    torch.set_num_threads(count or os.cpu_count() or 1)
