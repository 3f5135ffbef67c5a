"""Every name that is written to MLflow, in one table: CONTRIBUTING's is made from it, and tests check against it.

Names with a part in braces stand for one name per stage, benchmark, metric or recipe field. Names that begin with
`mlflow.` are MLflow's own: its pages show what they hold.
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

    EXPERIMENT = "experiment"
    RUN = "pipeline run"
    CHILD = "child run"
    VERSION = "registered version"
    MODEL = "registered model"
    VERSIONS = "run of all versions"


class Sort(StrEnum):
    """What it is there."""

    TAG = "tag"
    PARAMETER = "parameter"
    METRIC = "metric"
    DATASET = "dataset input"
    ARTIFACT = "artifact"
    ALIAS = "alias"
    NAME = "name"
    DESCRIPTION = "description"


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
PROCESS = "deepspec.made_by_run"
STAGE = "deepspec.stage"
STATUS = "deepspec.status"
UNIT = "deepspec.unit.{metric}"
LINEAGE = "deepspec.lineage"
_EARLIER_KEY, _EARLIER_DIGEST = "deepspec.key.", "deepspec.digest."
"""What names of tags begin with in which earlier versions of deepspec kept the lineage."""
WAITING = "awaiting_approval"
"""The status of a run whose draft waits for a person."""
PROGRESS = "progress/percent"
ALL_VERSIONS = "deepspec.all_versions_of"
TAU_METRIC = "tau/{part}"
VERSION_COST = "version_cost/{what}"
NOTE = "mlflow.note.content"
RUN_NAME = "mlflow.runName"
USER = "mlflow.user"
SOURCE_NAME = "mlflow.source.name"
SOURCE_TYPE = "mlflow.source.type"
COMMIT = "mlflow.source.git.commit"
EXPERIMENT_KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"
"""Kind of an experiment in which models are trained, as opposed to traces of applications."""
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
    Entry(Entity.EXPERIMENT, Sort.TAG, EXPERIMENT_KIND, f"`{TRAINING}`: MLflow shows the pages of training"),
    Entry(Entity.RUN, Sort.NAME, RUN_NAME, "model, day and outcome: `qwen3-4b · 2026-12-01 · promoted v7`"),
    Entry(Entity.RUN, Sort.TAG, NOTE, "while it runs: how far it is; then how it ended, with the verdict"),
    Entry(Entity.RUN, Sort.TAG, USER, "whom MLflow's server has let in, or the local account"),
    Entry(Entity.RUN, Sort.TAG, SOURCE_NAME, "the command, or the deployment that started it"),
    Entry(Entity.RUN, Sort.TAG, SOURCE_TYPE, "`LOCAL` or `JOB`"),
    Entry(Entity.RUN, Sort.TAG, COMMIT, "deepspec's commit, where it is known"),
    Entry(Entity.RUN, Sort.PARAMETER, "{field}", "a field of the resolved recipe, dotted (`train.lr`); lists as JSON"),
    Entry(Entity.RUN, Sort.TAG, RUN_ID, "the pipeline run's id, as in `run.json`"),
    Entry(Entity.RUN, Sort.TAG, PROCESS, "the same, from its first moment on"),
    Entry(Entity.RUN, Sort.TAG, RECIPE, "name of the recipe"),
    Entry(Entity.RUN, Sort.TAG, CODE_VERSION, "deepspec's version, with the commit where it is known"),
    Entry(
        Entity.RUN,
        Sort.TAG,
        STATUS,
        "how it ended, as in `run.json`: promoted, refused, no_change, interrupted, failed …",
    ),
    Entry(Entity.RUN, Sort.TAG, LINEAGE, "stage -> store key and content digest of its artifact, as JSON"),
    Entry(Entity.RUN, Sort.TAG, CURRENCY, "what `cost/amount` is in, where the recipe has prices"),
    Entry(
        Entity.RUN,
        Sort.METRIC,
        COST,
        "what the whole run used, as `cost` in `run.json`: gpu_seconds, cpu_seconds, bytes_written, tokens, amount …",
    ),
    Entry(Entity.RUN, Sort.METRIC, PROGRESS, "per cent of the run that are done, by expected duration"),
    Entry(Entity.RUN, Sort.METRIC, TAU_METRIC, "of its draft, by version, as there"),
    Entry(Entity.RUN, Sort.METRIC, VERSION_COST, "of its draft, by version, as there"),
    Entry(Entity.RUN, Sort.METRIC, VERDICT_METRIC, "of the verdict on the version that it registered, as there"),
    Entry(Entity.RUN, Sort.ARTIFACT, "report/{file}", "the report: one self-contained page, and its plots"),
    Entry(Entity.RUN, Sort.ARTIFACT, LONG_VALUES, "parameters and tags that were too long for MLflow, in full"),
    Entry(Entity.CHILD, Sort.TAG, PROCESS, "the pipeline run that made it, from its first moment on"),
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
    Entry(
        Entity.VERSION,
        Sort.TAG,
        LINEAGE,
        "stage -> store key and content digest of every artifact the draft was made from or measured by, as JSON",
    ),
    Entry(
        Entity.VERSION,
        Sort.TAG,
        TAU,
        "acceptance length τ per benchmark; `macro` is the mean over them, `gate` the gate split's",
    ),
    Entry(
        Entity.VERSION,
        Sort.METRIC,
        TAU_METRIC,
        "acceptance length τ, by version: of each benchmark, `domain/<domain>`, `macro` and `gate`",
    ),
    Entry(
        Entity.VERSION,
        Sort.METRIC,
        VERSION_COST,
        "what the draft and all it was made from has cost, whichever runs paid: gpu_seconds, amount …",
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
    Entry(Entity.VERSIONS, Sort.TAG, ALL_VERSIONS, "the registered model whose versions it charts"),
    Entry(Entity.VERSIONS, Sort.METRIC, TAU_METRIC, "of every version, with its number as the step"),
    Entry(Entity.VERSIONS, Sort.METRIC, VERSION_COST, "the same"),
    Entry(Entity.VERSIONS, Sort.METRIC, VERDICT_METRIC, "the same"),
    Entry(
        Entity.MODEL,
        Sort.DESCRIPTION,
        "description",
        "its page: champion and why, followers, τ by version, cost, what failed; written at the end of every run",
    ),
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
    tags = {RECIPE: recipe, CODE_VERSION: code_version, RUN_ID: run_id, **lineage_tag(artifacts)}
    for benchmark, tau in (taus(evaluation) if evaluation is not None else {}).items():
        tags[mlflow_name(TAU.format(benchmark=benchmark))] = f"{tau:.4f}"
    return tags


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """What is said of a version that was judged."""
    return {VERDICT: "accepted" if verdict.accepted else "refused", VERDICT_SENTENCE: verdict.sentence[:_LONGEST_TAG]}


def lineage_tag(artifacts: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The one tag that holds the lineage: stage -> (key, digest) of its artifact; none of nothing."""
    return {LINEAGE: json.dumps(artifacts, sort_keys=True, separators=(",", ":"))} if artifacts else {}


def lineage_in(tags: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The lineage in the tags of a run or version, also as earlier versions of deepspec wrote it: two tags a stage."""
    earlier = {
        name.removeprefix(_EARLIER_KEY): (key, tags.get(f"{_EARLIER_DIGEST}{name.removeprefix(_EARLIER_KEY)}", ""))
        for name, key in tags.items()
        if name.startswith(_EARLIER_KEY)
    }
    return earlier | {stage: (key, digest) for stage, (key, digest) in json.loads(tags.get(LINEAGE, "{}")).items()}


def run_name(model: str, run_id: str, outcome: str | None = None, version: str | None = None) -> str:
    """What a run is called on pages: `qwen3-4b · 2026-12-01 · promoted v7`.

    Args:
        model: registered model that it is about.
        run_id: begins with its day.
        outcome: how it ended, as in `run.json`; None: it has not.
        version: number of its draft's version; None: it registered none.
    """
    parts = [model, f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}"]
    if outcome is not None:
        parts.append(outcome.replace("_", " ") + (f" v{version}" if version else ""))
    return " · ".join(parts)


def cost_metrics(cost: Cost) -> dict[str, float]:
    """What a run used as metrics."""
    return {COST.format(what=name): float(value) for name, value in cost.to_json().items() if _is_number(value)}


def version_cost_metrics(cost: Cost) -> dict[str, float]:
    """What a version has cost as metrics."""
    return {VERSION_COST.format(what=name): float(value) for name, value in cost.to_json().items() if _is_number(value)}


def tau_metrics(evaluation: Evaluation) -> dict[str, float]:
    """τ of every benchmark, of domains, `macro` and `gate`, as metrics."""
    found = taus(evaluation)
    found |= {f"domain/{name}": part.tau for name, part in evaluation.domains.items() if part.tau is not None}
    return {mlflow_name(TAU_METRIC.format(part=name)): tau for name, tau in found.items()}


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
