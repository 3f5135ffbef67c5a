"""states: the target's states on the training split, captured once."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks._models import device_of, load_target
from tasks._run import Run
from tasks._sharded import in_parts
from tasks._stage import stage


@stage(version=2, reads=("states.codec", "states.shard_tokens", "states.block_tokens", "target.dtype"), computes=True)
def states(run: Run[Recipe], out: Path, *, tokens: Path, target: Path, layer_ids: list[int]) -> dict[str, Any]:
    """Run the target over the training tokens and keep the outputs of the layers that the draft reads.

    Finished shards stay in the run's work folder until all are there: a capture that was interrupted goes on.
    """
    from deepspec.states.writer import write_states

    how, config = run.recipe.run, run.recipe.states
    work, tokens_file, layers = run.work_folder / "shards", tokens / "train.parquet", tuple(layer_ids)
    if how.num_shard_workers == 1:
        return write_states(
            tokens_file,
            out,
            target=load_target(run, target, layers),
            config=config,
            work=work,
            batch_tokens=how.capture_batch_tokens,
            progress=run.progress,
        )
    from deepspec.states.parts import TargetPlace, capture_part, parts_of
    from deepspec.states.writer import Survey, finished_tokens, gather_shards
    from deepspec.targets.family import TargetSpec

    survey = Survey.of(tokens_file, config)
    run.progress.start(survey.num_tokens, "tokens")
    told = 0

    def look() -> None:
        nonlocal told
        run.progress.advance(-told + (told := finished_tokens(survey, work)))

    look()
    place = TargetPlace(target, layers, device_of(run), run.recipe.target.dtype, how.num_threads)
    parts = parts_of(
        survey,
        work,
        target=place,
        num_workers=how.num_shard_workers,
        config=config,
        batch_tokens=how.capture_batch_tokens,
    )
    in_parts(run, "states part", capture_part, parts, look=look)
    hidden_size = TargetSpec.read(target).hidden_size
    return gather_shards(survey, work, out, layer_ids=layers, hidden_size=hidden_size, config=config)
