"""gate: is this challenger better than the champion, on prompts that neither was trained or chosen on?"""

import json
from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from tasks.runtime.loading import load_pair
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(
    version=3,
    reads=(
        "gates",
        "evaluate.sampling",
        "evaluate.seed",
        "evaluate.max_new_tokens",
        "evaluate.max_skipped",
        "evaluate.num_gate_prompts",
        "evaluate.num_bootstrap_samples",
        "data.thinking",
        "target.dtype",
    ),
    computes=True,
)
def gate(
    run: Run[Recipe], out: Path, *, evaluation: Path, champion: Path | None, draft: Path, responses: Path, target: Path
) -> dict[str, Any]:
    """Judge the challenger against the champion on the same gate prompts; the verdict is bound to that champion."""
    from deepspec.evaluation.evaluate import evaluate_gate
    from deepspec.gates.judge import judge

    del draft
    measured = None
    if champion is not None:
        pair = load_pair(run, target, champion / "draft")
        folder = out / "champion"
        folder.mkdir()
        measured = evaluate_gate(
            run.recipe.evaluate,
            target=pair.target,
            drafter=pair.drafter,
            renderer=pair.renderer,
            conversations=responses,
            out=folder,
            rows=run.recipe.run.evaluation_rows,
            progress=run.progress,
        )["gate"]
    verdict = judge(
        _gate_part(json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))["gate"]),
        _gate_part(measured) if measured is not None else None,
        run.recipe.gates,
        challenger_digest=_digest(run, "draft"),
        champion_digest=_digest(run, "champion"),
    )
    (out / "verdict.json").write_text(json.dumps({**verdict.to_json(), "sentence": verdict.sentence}, indent=1))
    return {"accepted": verdict.accepted}


def _gate_part(measured: dict[str, Any]) -> dict[str, Any]:
    """What the gates compare: the acceptance length, its interval, and which prompts it was measured on."""
    return {**measured, "prompts": measured["per_prompt"]}


def _digest(run: Run[Recipe], name: str) -> str | None:
    item = run.current.inputs[name] if run.current else None
    return item.digest if isinstance(item, Artifact) else None
