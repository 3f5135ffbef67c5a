"""evaluate: acceptance and speed of the draft on every benchmark and on the gate split."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks.runtime.loading import load_pair
from tasks.runtime.run import Run
from tasks.runtime.stage import stage
from tasks.runtime.tracking import tracked


@stage(version=3, reads=("evaluate", "data.system_prompt", "data.thinking", "target.dtype"), computes=True)
def evaluate(
    run: Run[Recipe],
    out: Path,
    *,
    draft: Path,
    calibration: Path,
    responses: Path,
    target: Path,
    benchmarks: Path,
) -> dict[str, Any]:
    """Decode every prompt plainly and speculatively in the same run, under load too; keep every round."""
    from deepspec.evaluation.evaluate import evaluate as measure
    from deepspec.evaluation.load_test import Calibrated
    from deepspec.registry.keys import evaluation_metrics

    del benchmarks
    pair = load_pair(run, target, draft / "draft")
    with tracked(run, "evaluate") as writer:
        evaluation = measure(
            run.recipe.evaluate,
            target=pair.target,
            drafter=pair.drafter,
            renderer=pair.renderer,
            conversations=responses,
            out=out,
            system_prompt=run.section("data.system_prompt"),
            calibrated=Calibrated.read(calibration),
            rows=run.recipe.run.evaluation_rows,
            progress=run.progress,
        )
        writer.metrics(evaluation_metrics(evaluation))
    return {"rounds": sum(part["rounds"] for part in evaluation["benchmarks"].values())}
