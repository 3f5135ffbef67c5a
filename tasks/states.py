"""states: the target's states on the training split, captured once."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks._models import device_of, load_target
from tasks._run import Run
from tasks._stage import stage


@stage(version=2, reads=("states.codec", "states.shard_tokens", "states.block_tokens", "target.dtype"), computes=True)
def states(run: Run[Recipe], out: Path, *, tokens: Path, target: Path, layer_ids: list[int]) -> dict[str, Any]:
    """Run the target over the training tokens and keep the outputs of the layers that the draft reads.

    Finished shards stay in the run's work folder until all are there: a capture that was interrupted goes on.
    """
    from deepspec.states.processes import TargetPlace, write_states_in_processes
    from deepspec.states.writer import write_states

    how = run.recipe.run
    shared: dict[str, Any] = {
        "config": run.recipe.states,
        "work": run.work_folder / "shards",
        "batch_tokens": how.capture_batch_tokens,
        "progress": run.progress,
    }
    tokens_file = tokens / "train.parquet"
    if (how.capture_processes or how.num_processes) == 1:
        return write_states(tokens_file, out, target=load_target(run, target, tuple(layer_ids)), **shared)
    place = TargetPlace(target, tuple(layer_ids), device_of(run), run.recipe.target.dtype, how.num_threads)
    return write_states_in_processes(
        tokens_file, out, target=place, num_processes=how.capture_processes or how.num_processes, **shared
    )
