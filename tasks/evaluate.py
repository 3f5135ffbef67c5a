"""evaluate: acceptance and speed of the draft on every benchmark and on the gate split."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.loading import load_pair
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The draft with its calibration, its target, and what they are to answer: benchmarks and the gate split."""

    draft: Artifact | External
    calibration: Artifact
    responses: Artifact
    target: External
    benchmarks: External


class Counts(StageCounts):
    """What the stage counted.

    Attributes:
        rounds: on all benchmarks.
    """

    rounds: int


@stage(version=5, reads=("evaluate", "data.system_prompt", "data.thinking", "target.dtype"), computes=True)
def evaluate(inputs: Inputs, config: Recipe, out: Path, job: Job) -> Counts:
    """Decode every prompt plainly and speculatively in the same run, under load too; keep every round."""
    from deepspec.evaluation.evaluate import evaluate as measure
    from deepspec.evaluation.load_test import Calibrated
    from deepspec.registry.keys import evaluation_metrics

    pair = load_pair(inputs.target.directory(), inputs.draft.directory() / "draft", config, job)
    with job.tracked() as writer:
        evaluation = measure(
            config.evaluate,
            target=pair.target,
            drafter=pair.drafter,
            renderer=pair.renderer,
            conversations=inputs.responses.directory(),
            out=out,
            system_prompt=config.data.system_prompt,
            calibrated=Calibrated.read(inputs.calibration.directory()),
            rows=job.execution.num_evaluation_rows,
            progress=job.progress,
        )
        writer.metrics(evaluation_metrics(evaluation))
    return Counts(rounds=sum(part.rounds for part in evaluation.benchmarks.values()))
