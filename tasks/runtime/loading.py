"""Loading what stages decode with: the target, and a draft beside it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer
    from deepspec.drafts.algorithm import Drafter
    from deepspec.targets.model import Target


@dataclass(frozen=True)
class Pair:
    """A target, a draft that proposes for it, and the target's chat template."""

    target: "Target"
    drafter: "Drafter"
    renderer: "Renderer"


def device_of(run: Run[Any]) -> str:
    """`run.device`, with "auto" resolved to a GPU if there is one; the stage's time on it is noted."""
    import torch

    device = str(run.section("run.device"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    run.num_gpus = max(run.num_gpus, int(device == "cuda"))
    return device


def load_target(run: Run[Any], folder: Path, layer_ids: tuple[int, ...] = ()) -> "Target":
    """The recipe's target, in the recipe's dtype, capturing `layer_ids`."""
    from deepspec.targets.model import Target

    _use_threads(run.section("run.num_threads"))
    return Target.load(folder, device=device_of(run), dtype=run.section("target.dtype"), layer_ids=layer_ids)


def load_pair(run: Run[Any], target_folder: Path, draft_folder: Path) -> Pair:
    """The target and the draft in `draft_folder`.

    Raises:
        IncompatibleDraft: the draft does not fit the target.
    """
    from deepspec.data.chat.renderer import Renderer
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.drafts import algorithm_of
    from deepspec.targets.directory import read_spec

    algorithm = algorithm_of(draft_folder)
    spec = read_spec(target_folder)
    draft = algorithm.load(draft_folder, spec, device=device_of(run), dtype=run.section("target.dtype"))
    drafter = algorithm.drafter(draft, algorithm.read_config(draft_folder))
    target = load_target(run, target_folder, drafter.layer_ids)
    thinking = run.section("data.thinking")
    _use_threads(run.section("run.decoding_threads") or run.section("run.num_threads"))
    return Pair(target, drafter, Renderer(load_tokenizer(target_folder), target.family.chat, thinking=thinking))


def _use_threads(count: int | None) -> None:
    """Let torch use `count` CPU threads, or one per core."""
    import torch

    torch.set_num_threads(count or os.cpu_count() or 1)
