"""states: the target's states on the training split, captured once."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks._models import load_target
from tasks._run import Run
from tasks._stage import stage


@stage(version=1, reads=("states.codec", "states.shard_tokens", "states.block_tokens", "target.dtype"), computes=True)
def states(run: Run[Recipe], out: Path, *, tokens: Path, target: Path, layer_ids: list[int]) -> dict[str, Any]:
    """Run the target over the training tokens and keep the outputs of the layers that the draft reads."""
    from deepspec.states.writer import write_states

    return write_states(
        tokens / "train.parquet",
        out,
        target=load_target(run, target, tuple(layer_ids)),
        config=run.recipe.states,
        batch_tokens=run.recipe.run.capture_batch_tokens,
        progress=run.progress,
    )
