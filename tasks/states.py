"""states: the target's states on the training split, captured once."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.loading import load_target
from tasks.runtime.prefect.fan_out import in_parts
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The tokens, the target, the layers whose outputs are kept; and an engine's files that have them, if any."""

    tokens: Artifact
    target: External
    layer_ids: list[int]
    captured: External | None = None


@stage(
    version=3,
    reads=("states.codec", "states.shard_tokens", "states.row_group_tokens", "target.dtype"),
    computes=lambda inputs, _: inputs.captured is None,
    workers="num_capture_workers",
)
def states(inputs: Inputs, config: Recipe, out: Path, job: Job) -> StageCounts:
    """Run the target over the training tokens and keep the outputs of the layers that the draft reads.

    Finished shards stay in the run's work folder until all are there: a capture that was interrupted goes on.
    With `captured`, the states are those of an engine's files, and the target is not run.
    """
    from deepspec.states.capture.engine_files import CapturedFiles
    from deepspec.states.capture.writer import RunTarget, StateOrigin, write_states

    how, layers, target = job.execution, tuple(inputs.layer_ids), inputs.target.directory()
    tokens_file = inputs.tokens.directory() / "train.parquet"
    if inputs.captured is None and how.num_capture_workers > 1:
        return _in_parts(tokens_file, target, layers, config, out, job)
    origin: StateOrigin
    if inputs.captured is not None:
        origin = CapturedFiles(inputs.captured.directory(), target, layers, dtype=config.target.dtype)
    else:
        origin = RunTarget(load_target(target, config, job, layers), how.capture_batch_tokens)
    counts = write_states(
        tokens_file,
        out,
        origin=origin,
        config=config.states,
        work=job.work_folder / "shards",
        progress=job.progress,
    )
    return StageCounts.model_validate(counts)


def _in_parts(
    tokens_file: Path, target: Path, layer_ids: tuple[int, ...], recipe: Recipe, out: Path, job: Job
) -> StageCounts:
    """The same by several workers, which load the target each."""
    from deepspec.states.capture.finished_shards import finished_tokens
    from deepspec.states.capture.parts import TargetPlace, capture_part, parts_of
    from deepspec.states.capture.survey import Survey
    from deepspec.states.capture.writer import gather_shards
    from deepspec.targets.directory import read_spec

    how, config, work = job.execution, recipe.states, job.work_folder / "shards"
    survey = Survey.of(tokens_file, config)
    job.progress.start(survey.num_tokens, "tokens")
    reported = 0

    def look() -> None:
        nonlocal reported
        job.progress.advance(-reported + (reported := finished_tokens(survey, work)))

    look()
    parts = parts_of(
        survey,
        work,
        target=TargetPlace(target, layer_ids, job.device, recipe.target.dtype, how.num_threads),
        num_workers=how.num_capture_workers,
        config=config,
        batch_tokens=how.capture_batch_tokens,
    )
    in_parts(job, "states part", capture_part, parts, look=look)
    hidden_size = read_spec(target).hidden_size
    counts = gather_shards(survey, work, out, layer_ids=layer_ids, hidden_size=hidden_size, config=config)
    return StageCounts.model_validate(counts)
