"""gate: may this challenger serve instead of the champion, by all that was measured of both?"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.errors import ArtifactError, ArtifactMissing, IncompatibleDraft
from deepspec.recipe import Recipe
from deepspec.registry.identity import is_from_outside
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from deepspec.store.gc import lineage
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job, device_of
from tasks.runtime.loading import load_pair
from tasks.runtime.stage import stage

if TYPE_CHECKING:
    from deepspec.evaluation.results import GateResult
    from deepspec.gates.evidence import Evidence, Served
    from deepspec.gates.unseen import Side

_SERVED_CONCURRENCY = 4
_SERVED_PATIENCE_SECONDS = 30.0
"""How long a server may be silent before it counts as one that does not answer."""


@dataclass(frozen=True)
class Inputs:
    """What is known of the challenger, the champion's draft (if there is one), and what both have to answer.

    Attributes:
        look: which look at this champion it is; None without one.
        asked_in: the run in which the recipe's server is asked, which each run does anew; None: it names none.
    """

    evaluation: Artifact
    calibration: Artifact
    champion: Artifact | None
    draft: Artifact
    responses: Artifact
    target: External
    benchmarks: External
    look: int | None = None
    asked_in: str | None = None


class Counts(StageCounts):
    """What the stage counted.

    Attributes:
        accepted: whether every gate was passed.
        look: which look at the champion it was; None without one.
        sentence: the verdict in words.
    """

    accepted: bool
    look: int | None
    sentence: str


def _needs_a_device(inputs: Inputs, recipe: Recipe) -> bool:
    """A GPU, to measure the champion, or to decode what a server has to answer.

    A CPU takes these few answers with the training of another model.
    """
    decodes = inputs.champion is not None or recipe.gates.endpoint is not None
    return decodes and device_of(recipe.run) == "cuda"


MEASURED_BY = (
    "evaluate.benchmarks",
    "evaluate.sampling",
    "evaluate.seed",
    "evaluate.max_new_tokens",
    "evaluate.max_skipped_share",
    "evaluate.num_gate_prompts",
    "data.system_prompt",
    "data.thinking",
    "target.dtype",
)
"""What the champion is measured by: as the challenger was, in its evaluation."""


@stage(version=7, reads=("gates", *MEASURED_BY), computes=_needs_a_device)
def gate(inputs: Inputs, config: Recipe, out: Path, job: Job) -> Counts:
    """Judge the challenger against the champion on the same prompts; the verdict is bound to that champion."""
    from deepspec.gates.judge import judge
    from deepspec.gates.unseen import seen_prompts
    from deepspec.gates.verdict import JUDGED_BY

    evidence = _evidence(inputs, config, out, job)
    seen: frozenset[str] = frozenset()
    missing = None
    try:
        others = _other_conversations(inputs, job)
    except ArtifactMissing as error:
        missing = error.where
    else:
        file = inputs.responses.path("gate.parquet")
        seen = seen_prompts(file, evidence.challenger.per_prompt, (found.directory() for found in others))
    verdict = judge(
        evidence,
        config.gates,
        challenger_digest=inputs.draft.digest,
        champion_digest=None if inputs.champion is None else inputs.champion.digest,
        seen=seen,
        imported=_imported(inputs, job),
        missing=missing,
    )
    (out / JUDGED_BY).parent.mkdir(exist_ok=True)
    (out / JUDGED_BY).write_text(json.dumps({"run_id": job.run_id}))
    (out / "verdict.json").write_text(json.dumps({**verdict.to_json(), "sentence": verdict.sentence}, indent=1))
    return Counts(accepted=verdict.accepted, look=verdict.look, sentence=verdict.sentence)


def _evidence(inputs: Inputs, config: Recipe, out: Path, job: Job) -> "Evidence":
    """All that the gates look at; the champion is measured now."""
    import pyarrow.parquet as pq

    from deepspec.evaluation.calibration.results import CalibrationResult
    from deepspec.evaluation.compare.drafts import counts_by_prompt
    from deepspec.evaluation.config import GATE, domains_of
    from deepspec.evaluation.results import Evaluation
    from deepspec.gates.evidence import Evidence
    from deepspec.gates.looks import FIRST

    where, calibrated = (f"{item.kind}/{item.key[:12]}" for item in (inputs.evaluation, inputs.calibration))
    evaluation = Evaluation.from_json(inputs.evaluation.json("evaluation.json"), where=where)
    if evaluation.gate is None:
        raise ArtifactError("The evaluation has no gate split.", where=where, remedy="Run the recipe again.")
    calibration = CalibrationResult.from_json(inputs.calibration.json("calibration.json"), where=calibrated)
    columns = ["benchmark", "prompt", "committed"]
    ours = counts_by_prompt(pq.read_table(inputs.evaluation.path("rounds.parquet"), columns=columns))
    champion, theirs = None, {}
    if inputs.champion is not None:
        folder = out / "champion"
        champion = _champion(inputs, config, inputs.champion, folder, job)
        theirs = counts_by_prompt(pq.read_table(folder / "rounds.parquet", columns=columns))
    return Evidence(
        challenger=evaluation.gate,
        champion=champion,
        evaluation=evaluation,
        calibration=calibration,
        benchmarks={name: counts for name, counts in ours.items() if name != GATE},
        champion_benchmarks={name: counts for name, counts in theirs.items() if name != GATE},
        domains=domains_of(config.evaluate.benchmarks),
        flaws=_flaws(inputs, config, job),
        look=inputs.look or FIRST,
        served=None if config.gates.endpoint is None else _served(inputs, config, config.gates.endpoint, job),
    )


def _served(inputs: Inputs, config: Recipe, endpoint: str, job: Job) -> "Served":
    """What the recipe's staging server does with the draft."""
    from deepspec.data.responses.endpoint_exchange import KEY_VARIABLE
    from deepspec.evaluation.server.asked import Server
    from deepspec.serving.served_check import Wanted
    from deepspec.serving.staging import staged
    from tasks.generators import vocabulary_of

    draft, target = inputs.draft, inputs.target.directory()
    return staged(
        Wanted(
            f"{draft.kind}/{draft.key[:12]}",
            draft.digest,
            draft.directory() / "draft",
            target,
            inputs.evaluation,
            job.device,
        ),
        Server(
            endpoint,
            Path(config.target.path).name,
            concurrency=_SERVED_CONCURRENCY,
            patience_seconds=_SERVED_PATIENCE_SECONDS,
            api_key=os.environ.get(KEY_VARIABLE) or None,
        ),
        vocabulary_of(target),
        job.work_folder / "served",
        progress=job.progress,
    )


def _flaws(inputs: Inputs, config: Recipe, job: Job) -> tuple[str, ...]:
    """What is wrong with the draft and its calibration in the formats that hold such drafts.

    Some format has to, and that of each engine that the recipe names.
    """
    from deepspec.export import FORMATS

    found: list[str] = []
    refusals: list[str] = []
    for name, form in sorted(FORMATS.items()):
        out = job.work_folder / name
        shutil.rmtree(out, ignore_errors=True)  # of an attempt that was interrupted
        try:
            form.write(inputs.draft.directory() / "draft", out, Path(config.target.path).name)
        except IncompatibleDraft as error:
            refusals.append(str(error))
            if name in config.gates.engines:
                found.append(f"{name} cannot load it: {error}")
        else:
            shutil.copyfile(inputs.calibration.path("calibration.json"), out / "calibration.json")
            found += form.check(out)
            shutil.rmtree(out)
    return tuple(found) if len(refusals) < len(FORMATS) else tuple(refusals)


def _champion(inputs: Inputs, config: Recipe, champion: Artifact, folder: Path, job: Job) -> "GateResult":
    """The champion's acceptance on the challenger's prompts; its rounds go into `folder`."""
    from deepspec.evaluation.evaluate import evaluate_acceptance

    pair = load_pair(inputs.target.directory(), champion.directory() / "draft", config, job)
    folder.mkdir()
    return evaluate_acceptance(
        config.evaluate,
        target=pair.target,
        drafter=pair.drafter,
        renderer=pair.renderer,
        conversations=inputs.responses.directory(),
        out=folder,
        system_prompt=config.data.system_prompt,
        rows=job.execution.num_evaluation_rows,
        progress=job.progress,
    )


def _imported(inputs: Inputs, job: Job) -> "list[Side]":
    """Which of the two was not trained here, or started from a draft that was not: its data are not known."""
    drafts: dict[Side, Artifact | None] = {"challenger": inputs.draft, "champion": inputs.champion}

    def known(kind: str, key: str) -> Artifact | None:
        try:
            return job.artifact(kind, key)
        except ArtifactMissing:
            return None

    return [
        side for side, draft in drafts.items() if draft is not None and any(map(is_from_outside, lineage(draft, known)))
    ]


def _other_conversations(inputs: Inputs, job: Job) -> list[Artifact]:
    """What the champion, and all that either draft was started from, were made from, if not from this run's answers."""
    drafts = [draft for draft in (inputs.draft, inputs.champion) if draft is not None]
    found = {item.digest: item for draft in drafts for item in lineage(draft, job.artifact) if item.kind == "responses"}
    return [item for digest, item in found.items() if digest != inputs.responses.digest]
