"""calibrate: temperatures that make the draft's confidence mean what it says."""

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
    """The draft and its target, and the answers whose calibration split is decoded."""

    draft: Artifact | External
    responses: Artifact
    target: External


class Counts(StageCounts):
    """What the stage counted.

    Attributes:
        applicable: whether the draft has confidences.
    """

    applicable: bool


@stage(
    version=3,
    reads=(
        "evaluate.calibration",
        "evaluate.sampling",
        "evaluate.seed",
        "evaluate.max_new_tokens",
        "evaluate.max_skipped_share",
        "evaluate.num_calibration_prompts",
        "data.thinking",
        "target.dtype",
    ),
    computes=True,
)
def calibrate(inputs: Inputs, config: Recipe, out: Path, job: Job) -> Counts:
    """Decode the calibration split and fit Sequential Temperature Scaling on one half of it."""
    from deepspec.evaluation.calibration.run import calibrate as fit

    pair = load_pair(inputs.target.directory(), inputs.draft.directory() / "draft", config, job)
    calibration = fit(
        config.evaluate,
        target=pair.target,
        drafter=pair.drafter,
        renderer=pair.renderer,
        conversations=inputs.responses.directory(),
        out=out,
        progress=job.progress,
    )
    return Counts(applicable=calibration.applicable)
