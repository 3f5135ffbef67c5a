"""gate: is this challenger better than the champion, on prompts that neither was trained or chosen on?"""

import json
from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import ArtifactError, ArtifactMissing
from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from deepspec.store.gc import lineage
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job, device_of
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


class Counts(StageCounts):
    """What the stage counted.

    Attributes:
        accepted: whether every gate was passed.
    """

    accepted: bool


def _needs_a_device(inputs: Inputs, recipe: Recipe) -> bool:
    """A GPU, to measure the champion: a CPU takes its few answers with the training of another model."""
    return inputs.champion is not None and device_of(recipe.run) == "cuda"


@stage(
    version=5,
    reads=(
        "gates",
        "evaluate.sampling",
        "evaluate.seed",
        "evaluate.max_new_tokens",
        "evaluate.max_skipped_share",
        "evaluate.num_gate_prompts",
        "evaluate.num_bootstrap_samples",
        "data.thinking",
        "target.dtype",
    ),
    computes=_needs_a_device,
)
def gate(inputs: Inputs, config: Recipe, out: Path, job: Job) -> Counts:
    """Judge the challenger against the champion on the same gate prompts; the verdict is bound to that champion."""
    from deepspec.evaluation.evaluate import evaluate_gate
    from deepspec.evaluation.results import Evaluation
    from deepspec.gates.judge import judge
    from deepspec.gates.unseen import seen_prompts

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
            rows=job.execution.num_evaluation_rows,
            progress=job.progress,
        )
    where = f"{inputs.evaluation.kind}/{inputs.evaluation.key[:12]}"
    ours = Evaluation.from_json(inputs.evaluation.json("evaluation.json"), where=where).gate
    if ours is None:
        raise ArtifactError("The evaluation has no gate split.", where=where, remedy="Run the recipe again.")
    seen: frozenset[str] = frozenset()
    missing = None
    try:
        others = _other_conversations(inputs, job)
    except ArtifactMissing as error:
        missing = error.where
    else:
        file = inputs.responses.path("gate.parquet")
        seen = seen_prompts(file, ours.per_prompt, (found.directory() for found in others))
    verdict = judge(
        ours,
        measured,
        config.gates,
        challenger_digest=inputs.draft.digest,
        champion_digest=None if inputs.champion is None else inputs.champion.digest,
        seen=seen,
        missing=missing,
    )
    (out / "verdict.json").write_text(json.dumps({**verdict.to_json(), "sentence": verdict.sentence}, indent=1))
    return Counts(accepted=verdict.accepted)


def _other_conversations(inputs: Inputs, job: Job) -> list[Artifact]:
    """What the champion, and all that either draft was started from, were made from, if not from this run's answers."""
    drafts = [draft for draft in (inputs.draft, inputs.champion) if draft is not None]
    found = {item.digest: item for draft in drafts for item in lineage(draft, job.artifact) if item.kind == "responses"}
    return [item for digest, item in found.items() if digest != inputs.responses.digest]
