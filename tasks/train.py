"""train: the draft, in processes of its own."""

import json
from dataclasses import dataclass
from pathlib import Path

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """What is learned from.

    Attributes:
        states: captured ones, read where they lie; or the sizes that files of live ones would have, on which the order
            of documents depends: `shard_tokens`, and `block_tokens` of a row group.
        tokens: ids and loss masks.
        target: the draft's.
        init: the draft that it starts from, an earlier artifact of this stage or a draft's directory; None: it starts
            from new weights.
    """

    states: Artifact | dict[str, int]
    tokens: Artifact
    target: External
    init: Artifact | External | None = None


@stage(
    version=7,
    reads=("draft", "train", "target.dtype", "run.micro_batch_tokens"),
    computes=True,
    workers="num_processes",
)
def train(inputs: Inputs, config: Recipe, out: Path, job: Job) -> StageCounts:
    """Train the draft; the checkpoint with the best real acceptance is kept."""
    if job.allowance.is_spent():
        raise job.allowance.exceeded("Nothing was trained.")
    from deepspec.states.config import Config
    from deepspec.training.draft_objective import draft_job
    from deepspec.training.failure import TrainingStopped
    from deepspec.training.processes.launch import launch

    states, live = inputs.states, Config()
    if not isinstance(states, Artifact):
        live = Config(shard_tokens=states["shard_tokens"], row_group_tokens=states["block_tokens"])
    init = None if inputs.init is None else inputs.init.directory()
    training = draft_job(
        config.draft,
        config.train,
        job.execution,
        states=states.location() if isinstance(states, Artifact) else None,
        live=live,
        tokens=inputs.tokens.directory(),
        target=inputs.target.directory(),
        disk=job.home / "cache" / "blocks",
        init=init / "draft" if init is not None and (init / "draft").is_dir() else init,
        target_dtype=config.target.dtype,
        out=out / "draft",
        identity=job.key,
    )
    with job.tracked() as writer, (out / "metrics.jsonl").open("w", encoding="utf-8") as file:

        def sink(step: int, name: str, value: float, unit: str) -> None:
            writer.metric(step, name, value, unit)
            # What the clock says differs from run to run; an artifact's bytes must not.
            if not unit.endswith("/s"):
                file.write(json.dumps({"step": step, "name": name, "value": value, "unit": unit}) + "\n")

        stopped, done = None, {}
        try:
            done = launch(
                training, work_dir=job.work_folder, metrics=sink, progress=job.progress, stop=job.allowance.is_spent
            )
        except TrainingStopped as error:
            stopped = error
    if stopped is not None:
        reached = f"The training is saved at step {stopped.step} of {stopped.num_steps}."
        raise job.allowance.exceeded(reached) from stopped
    return StageCounts.model_validate(done)
