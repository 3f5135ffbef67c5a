"""states: the target's states on the training split, captured once."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks.runtime.loading import device_of, load_target
from tasks.runtime.prefect.fan_out import in_parts
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(version=2, reads=("states.codec", "states.shard_tokens", "states.block_tokens", "target.dtype"), computes=True)
def states(
    run: Run[Recipe], out: Path, *, tokens: Path, target: Path, layer_ids: list[int], captured: Path | None = None
) -> dict[str, Any]:
    """Run the target over the training tokens and keep the outputs of the layers that the draft reads.

    Finished shards stay in the run's work folder until all are there: a capture that was interrupted goes on.
    With `captured`, the states are those of an engine's files, and the target is not run.
    """
    from deepspec.states.capture.engine_files import CapturedFiles
    from deepspec.states.capture.writer import RunTarget, StateOrigin, write_states

    how, layers = run.recipe.run, tuple(layer_ids)
    if captured is None and how.num_shard_workers > 1:
        return _in_parts(run, out, tokens / "train.parquet", target, layers)
    origin: StateOrigin
    if captured is not None:
        origin = CapturedFiles(captured, target, layers, dtype=run.recipe.target.dtype)
    else:
        origin = RunTarget(load_target(run, target, layers), how.capture_batch_tokens)
    return write_states(
        tokens / "train.parquet",
        out,
        origin=origin,
        config=run.recipe.states,
        work=run.work_folder / "shards",
        progress=run.progress,
    )


def _in_parts(
    run: Run[Recipe], out: Path, tokens_file: Path, target: Path, layer_ids: tuple[int, ...]
) -> dict[str, Any]:
    """The same by several workers, which load the target each."""
    from deepspec.states.capture.finished_shards import finished_tokens
    from deepspec.states.capture.parts import TargetPlace, capture_part, parts_of
    from deepspec.states.capture.survey import Survey
    from deepspec.states.capture.writer import gather_shards
    from deepspec.targets.directory import read_spec

    how, config, work = run.recipe.run, run.recipe.states, run.work_folder / "shards"
    survey = Survey.of(tokens_file, config)
    run.progress.start(survey.num_tokens, "tokens")
    told = 0

    def look() -> None:
        nonlocal told
        run.progress.advance(-told + (told := finished_tokens(survey, work)))

    look()
    parts = parts_of(
        survey,
        work,
        target=TargetPlace(target, layer_ids, device_of(run), run.recipe.target.dtype, how.num_threads),
        num_workers=how.num_shard_workers,
        config=config,
        batch_tokens=how.capture_batch_tokens,
    )
    in_parts(run, "states part", capture_part, parts, look=look)
    hidden_size = read_spec(target).hidden_size
    return gather_shards(survey, work, out, layer_ids=layer_ids, hidden_size=hidden_size, config=config)
