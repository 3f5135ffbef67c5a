"""calibrate: temperatures that make the draft's confidence mean what it says."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks.runtime.loading import load_pair
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(
    version=2,
    reads=(
        "evaluate.calibration",
        "evaluate.sampling",
        "evaluate.seed",
        "evaluate.max_new_tokens",
        "evaluate.max_skipped",
        "evaluate.num_calibration_prompts",
        "data.thinking",
        "target.dtype",
    ),
    computes=True,
)
def calibrate(run: Run[Recipe], out: Path, *, draft: Path, responses: Path, target: Path) -> dict[str, Any]:
    """Decode the calibration split and fit Sequential Temperature Scaling on one half of it."""
    from deepspec.evaluation.calibration.run import calibrate as fit

    pair = load_pair(run, target, draft / "draft")
    calibration = fit(
        run.recipe.evaluate,
        target=pair.target,
        drafter=pair.drafter,
        renderer=pair.renderer,
        conversations=responses,
        out=out,
        progress=run.progress,
    )
    return {"applicable": calibration["applicable"]}
