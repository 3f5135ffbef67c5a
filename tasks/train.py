"""train: the draft, in processes of its own."""

import json
from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks.runtime.run import Run
from tasks.runtime.stage import stage
from tasks.runtime.tracking import tracked


@stage(version=6, reads=("draft", "train", "target.dtype"), streams=("states",), computes=True)
def train(
    run: Run[Recipe],
    out: Path,
    *,
    states: str | dict[str, Any],
    tokens: Path,
    target: Path,
    init: Path | None = None,
) -> dict[str, Any]:
    """Train the draft; the checkpoint with the best real acceptance is kept.

    Its states are captured ones; or live ones, described by what decides the order of their documents. It starts from
    new weights, or from those of the draft `init`: an earlier artifact of this stage, or a draft's directory.
    """
    from deepspec.states.config import Config
    from deepspec.training.draft_objective import draft_job
    from deepspec.training.processes.launch import launch

    recipe = run.recipe
    job = draft_job(
        recipe.draft,
        recipe.train,
        recipe.run,
        states=states if isinstance(states, str) else None,
        live=Config() if isinstance(states, str) else Config.model_validate(states),
        tokens=tokens,
        target=target,
        disk=run.home / "cache" / "blocks",
        init=init / "draft" if init is not None and (init / "draft").is_dir() else init,
        target_dtype=recipe.target.dtype,
        out=out / "draft",
        identity=run.work_folder.name,
    )
    with tracked(run, "train") as writer, (out / "metrics.jsonl").open("w", encoding="utf-8") as file:

        def sink(step: int, name: str, value: float, unit: str) -> None:
            writer.metric(step, name, value, unit)
            # What the clock says differs from run to run; an artifact's bytes must not.
            if not unit.endswith("/s"):
                file.write(json.dumps({"step": step, "name": name, "value": value, "unit": unit}) + "\n")

        done = launch(job, work_dir=run.work_folder, metrics=sink, progress=run.progress)
    run.num_gpus = recipe.run.num_processes if done["device"] == "cuda" else 0
    return done
