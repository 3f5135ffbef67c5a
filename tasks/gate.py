"""gate: is this challenger better than the champion, on prompts that neither was trained or chosen on?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from tasks.runtime.job import Job
from tasks.runtime.loading import load_pair
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The challenger's draft and evaluation, the champion's draft (if there is one), and what both have to answer."""

    evaluation: Artifact
    champion: Artifact | None
    draft: Artifact
    responses: Artifact
    target: External


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
def gate(inputs: Inputs, config: Recipe, out: Path, job: Job) -> dict[str, Any]:
    """Judge the challenger against the champion on the same gate prompts; the verdict is bound to that champion."""
    from deepspec.evaluation.evaluate import evaluate_gate
    from deepspec.gates.judge import judge

    measured = None
    if inputs.champion is not None:
        pair = load_pair(inputs.target.directory(), inputs.champion.directory() / "draft", config, job)
        folder = out / "champion"
        folder.mkdir()
        measured = evaluate_gate(
            config.evaluate,
            target=pair.target,
            drafter=pair.drafter,
            renderer=pair.renderer,
            conversations=inputs.responses.directory(),
            out=folder,
            rows=job.execution.evaluation_rows,
            progress=job.progress,
        )["gate"]
    verdict = judge(
        _gate_part(inputs.evaluation.json("evaluation.json")["gate"]),
        _gate_part(measured) if measured is not None else None,
        config.gates,
        challenger_digest=inputs.draft.digest,
        champion_digest=None if inputs.champion is None else inputs.champion.digest,
    )
    (out / "verdict.json").write_text(json.dumps({**verdict.to_json(), "sentence": verdict.sentence}, indent=1))
    return {"accepted": verdict.accepted}


def _gate_part(measured: dict[str, Any]) -> dict[str, Any]:
    """What the gates compare: the acceptance length, its interval, and which prompts it was measured on."""
    return {**measured, "prompts": measured["per_prompt"]}
