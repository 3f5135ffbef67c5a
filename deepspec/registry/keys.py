"""Every name that is written to MLflow, in one table: CONTRIBUTING's is made from it, and tests check against it.

Names with a part in braces stand for one name per stage, benchmark, metric or recipe field.
"""

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deepspec.evaluation.results import Evaluation
from deepspec.gates.verdict import Verdict
from deepspec.record import Cost


class Entity(StrEnum):
    """What in MLflow carries a name."""

    RUN = "pipeline run"
    CHILD = "child run"
    VERSION = "registered version"
    MODEL = "registered model"


class Sort(StrEnum):
    """What it is there."""

    TAG = "tag"
    PARAMETER = "parameter"
    METRIC = "metric"
    DATASET = "dataset input"
    ARTIFACT = "artifact"
    ALIAS = "alias"


@dataclass(frozen=True)
class Entry:
    """One row of the table: where, what sort, under which name, and what it means."""

    entity: Entity
    sort: Sort
    name: str
    meaning: str

    def named(self, **parts: str) -> str:
        """The name with its braces filled, as MLflow accepts it."""
        return mlflow_name(self.name.format(**parts))

    def matches(self, name: str) -> bool:
        """Whether `name` is (one of) this entry's."""
        pieces = re.split(r"\{\w+\}", self.name)
        return re.fullmatch(".+".join(re.escape(piece) for piece in pieces), name) is not None


RECIPE = "deepspec.recipe"
CODE_VERSION = "deepspec.code_version"
RUN_ID = "deepspec.run_id"
STAGE = "deepspec.stage"
STATUS = "deepspec.status"
UNIT = "deepspec.unit.{metric}"
KEY = "deepspec.key.{stage}"
DIGEST = "deepspec.digest.{stage}"
TAU = "deepspec.tau.{benchmark}"
DRAFT_KIND = "deepspec.draft.kind"
DRAFT_KEY = "deepspec.draft.key"
DRAFT_DIGEST = "deepspec.draft.digest"
INPUT_DIGEST = "deepspec.digest"
CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"
VERDICT = "deepspec.verdict"
VERDICT_METRIC = "verdict/{measure}"
VERDICT_SENTENCE = "deepspec.verdict.sentence"
MACRO = "macro"
GATE = "gate"
CURRENCY = "deepspec.currency"
COST = "cost/{what}"
_LONGEST_TAG = 5000
"""Characters that every MLflow holds of a version's tag."""
LONG_VALUES = "long-values.json"

KEYS: tuple[Entry, ...] = (
    Entry(Entity.RUN, Sort.PARAMETER, "{field}", "a field of the resolved recipe, dotted (`train.lr`); lists as JSON"),
    Entry(Entity.RUN, Sort.TAG, RUN_ID, "the pipeline run's id, as in `run.json`"),
    Entry(Entity.RUN, Sort.TAG, RECIPE, "name of the recipe"),
    Entry(Entity.RUN, Sort.TAG, CODE_VERSION, "deepspec's version, with the commit where it is known"),
    Entry(
        Entity.RUN,
        Sort.TAG,
        STATUS,
        "how it ended, as in `run.json`: promoted, refused, no_change, interrupted, failed …",
    ),
    Entry(Entity.RUN, Sort.TAG, KEY, "store key of the stage's artifact"),
    Entry(Entity.RUN, Sort.TAG, DIGEST, "content digest of the stage's artifact"),
    Entry(Entity.RUN, Sort.TAG, CURRENCY, "what `cost/amount` is in, where the recipe has prices"),
    Entry(
        Entity.RUN,
        Sort.METRIC,
        COST,
        "what the whole run used, as `cost` in `run.json`: gpu_seconds, cpu_seconds, bytes_written, tokens, amount …",
    ),
    Entry(Entity.RUN, Sort.METRIC, VERDICT_METRIC, "of the verdict on the version that it registered, as there"),
    Entry(Entity.RUN, Sort.ARTIFACT, "report/{file}", "the report: one self-contained page, and its plots"),
    Entry(Entity.RUN, Sort.ARTIFACT, LONG_VALUES, "parameters and tags that were too long for MLflow, in full"),
    Entry(Entity.CHILD, Sort.TAG, STAGE, "the stage it records: `train` or `evaluate`"),
    Entry(Entity.CHILD, Sort.TAG, UNIT, "unit of a metric"),
    Entry(Entity.CHILD, Sort.PARAMETER, "{field}", "a field of the sections that the stage reads"),
    Entry(
        Entity.CHILD,
        Sort.METRIC,
        "{metric}",
        "train: the trainer's stream by step, `@` written `_at_`; evaluate: `<benchmark>/tau`, `<benchmark>/speedup` …",
    ),
    Entry(
        Entity.CHILD,
        Sort.DATASET,
        "{name}",
        f"an input artifact: first 36 digits of its digest (all in the input's tag `{INPUT_DIGEST}`), source, counts",
    ),
    Entry(Entity.CHILD, Sort.ARTIFACT, LONG_VALUES, "parameters and tags that were too long for MLflow, in full"),
    Entry(Entity.VERSION, Sort.TAG, DRAFT_KIND, "kind of the registered artifact in the store"),
    Entry(Entity.VERSION, Sort.TAG, DRAFT_KEY, "its key: the draft's name in the store"),
    Entry(
        Entity.VERSION,
        Sort.TAG,
        DRAFT_DIGEST,
        "its content digest: the draft's identity; registering it again finds it",
    ),
    Entry(Entity.VERSION, Sort.TAG, KEY, "store key of every artifact the draft was made from or measured by"),
    Entry(Entity.VERSION, Sort.TAG, DIGEST, "their content digests"),
    Entry(
        Entity.VERSION,
        Sort.TAG,
        TAU,
        "acceptance length τ per benchmark; `macro` is the mean over them, `gate` the gate split's",
    ),
    Entry(
        Entity.VERSION,
        Sort.METRIC,
        VERDICT_METRIC,
        "of its verdict, by version: `tau`, `champion_tau`, `tau_gain`, `tau_gain_low` of each benchmark, `accepted`",
    ),
    Entry(Entity.VERSION, Sort.TAG, VERDICT, "what the gates said of it last: accepted or refused"),
    Entry(Entity.VERSION, Sort.TAG, VERDICT_SENTENCE, "the same with every reason, in words"),
    Entry(Entity.VERSION, Sort.TAG, RECIPE, "name of the recipe"),
    Entry(Entity.VERSION, Sort.TAG, CODE_VERSION, "deepspec's version, with the commit where it is known"),
    Entry(Entity.VERSION, Sort.TAG, RUN_ID, "the pipeline run that registered it"),
    Entry(
        Entity.MODEL,
        Sort.ALIAS,
        CHAMPION,
        "who serves: the projection of the promotion log, repaired by every run and by `models reconcile`",
    ),
    Entry(Entity.MODEL, Sort.ALIAS, PREVIOUS, "the champion before: where a plain `rollback` goes"),
    Entry(Entity.MODEL, Sort.ALIAS, CHALLENGER, "the newest version that was judged and never promoted"),
)


def markdown_table() -> str:
    """The table of all names as Markdown, as it stands in CONTRIBUTING.md."""
    lines = ["| where | what | name | meaning |", "|---|---|---|---|"]
    for entry in KEYS:
        name = re.sub(r"\{(\w+)\}", r"<\1>", entry.name)
        lines.append(f"| {entry.entity} | {entry.sort} | `{name}` | {entry.meaning} |")
    return "\n".join(lines)


def undocumented(entity: Entity, sort: Sort, names: Iterable[str]) -> list[str]:
    """Those of `names` not in the table for this entity and sort; MLflow's own (`mlflow.…`) do not count."""
    entries = [entry for entry in KEYS if (entry.entity, entry.sort) == (entity, sort)]
    ours = (name for name in names if not name.startswith("mlflow."))
    return sorted(name for name in ours if not any(entry.matches(name) for entry in entries))


def version_tags(
    *,
    recipe: str,
    code_version: str,
    run_id: str,
    artifacts: Mapping[str, tuple[str, str]],
    evaluation: Evaluation | None,
) -> dict[str, str]:
    """The tags of a registered version.

    Args:
        recipe: name of the recipe.
        code_version: deepspec's version, with the commit where it is known.
        run_id: the pipeline run.
        artifacts: stage -> (key, digest) of everything the draft was made from or measured by.
        evaluation: of the draft; None leaves τ out.
    """
    tags = {RECIPE: recipe, CODE_VERSION: code_version, RUN_ID: run_id, **artifact_tags(artifacts)}
    for benchmark, tau in (taus(evaluation) if evaluation is not None else {}).items():
        tags[mlflow_name(TAU.format(benchmark=benchmark))] = f"{tau:.4f}"
    return tags


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """What is said of a version that was judged."""
    return {VERDICT: "accepted" if verdict.accepted else "refused", VERDICT_SENTENCE: verdict.sentence[:_LONGEST_TAG]}


def artifact_tags(artifacts: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Key and digest tags of `artifacts`: stage -> (key, digest)."""
    tags = {}
    for stage, (key, digest) in artifacts.items():
        tags[mlflow_name(KEY.format(stage=stage))] = key
        tags[mlflow_name(DIGEST.format(stage=stage))] = digest
    return tags


def cost_metrics(cost: Cost) -> dict[str, float]:
    """What a run used as metrics."""
    return {COST.format(what=name): float(value) for name, value in cost.to_json().items() if _is_number(value)}


def taus(evaluation: Evaluation) -> dict[str, float]:
    """Benchmark -> τ, then `macro` and `gate`; without a round there is no τ."""
    return {name: part.tau for name, part in evaluation.parts() if part.tau is not None}


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation as flat metrics: `<benchmark>/tau`, `<benchmark>/conditional_acceptance_at_1`, `macro/speedup` …

    Numbers keep their names, intervals (`…_ci95`) become `_low` and `_high`, other lists of numbers are counted from 1;
    everything else is left out.
    """
    metrics: dict[str, float] = {}
    for benchmark, part in evaluation.parts():
        for name, value in part:
            if _is_number(value):
                metrics[mlflow_name(f"{benchmark}/{name}")] = float(value)
            elif isinstance(value, list | tuple):
                ends = ("_low", "_high") if name.endswith("_ci95") else tuple(f"@{k}" for k in range(1, len(value) + 1))
                pairs = ((end, item) for end, item in zip(ends, value, strict=True) if _is_number(item))
                metrics |= {mlflow_name(f"{benchmark}/{name}{end}"): float(item) for end, item in pairs}
    return metrics


def mlflow_name(name: str) -> str:
    """`name` with the characters that MLflow refuses replaced: `@` by `_at_`, others by `_`."""
    allowed = re.sub(r"[^\w.\- :/]", "_", name.replace("@", "_at_"))[:250]
    # MLflow refuses what is no plain relative path ("a//b", "./a", "..", "/a").
    plain = allowed == posixpath.normpath(allowed) and not allowed.startswith((".", "/"))
    return allowed if plain else re.sub(r"[/.]+", "_", allowed)


def text_of(value: Any) -> str:
    """A parameter's value as text: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
