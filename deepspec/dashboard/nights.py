"""Nights: what the dashboard keeps of a run's record, by registered model."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deepspec.evaluation.results import Evaluation, MeanResult
from deepspec.history import ended_at, started_at
from deepspec.record import Cost, RecordedEvaluation, RecordedModel, RecordedVerdict, RunRecord, RunStatus
from deepspec.reports.dashboard.feed import Measured, Night, Spent
from deepspec.usage import USED

MADE_A_DRAFT: tuple[RunStatus, ...] = ("promoted", "refused", "awaiting_approval")
"""How runs end that have measured and judged a draft; what others repeat of an earlier one is left out."""

_REQUESTS = ("put_requests", "get_requests", "list_requests", "delete_requests")
_LONGEST = 600
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#]+)\?[^\s#]*", re.IGNORECASE)
_HOME = re.compile(r"(?<![\w.-])/(?:home|Users)/[^/\s:]+")


def nights_of(record: RunRecord) -> dict[str, Night]:
    """A run as a night of each model that it was about; of several models each has an equal share of the cost.

    Raises:
        ValueError: its id is no id of a run.
    """
    parts = list(_parts(record))
    return {model: _night(record, model, algorithm, len(parts)) for model, algorithm in parts}


def target_of(record: RunRecord) -> str | None:
    """The last part of the path of a run's target."""
    return record.target.rstrip("/").rpartition("/")[2] or None if record.target else None


def algorithm_of(record: RunRecord, model: str) -> str | None:
    """The algorithm of a model's recipe in a run; None: it is not known."""
    return dict(_parts(record)).get(model)


def plain(text: str) -> str:
    """A text from elsewhere without credentials in addresses and names of home folders, and not too long."""
    text = _HOME.sub("~", _QUERY.sub(r"\1", _CREDENTIALS.sub("", text)))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _parts(record: RunRecord) -> Iterator[tuple[str, str | None]]:
    """Each model of a run with its algorithm; of one that knows none, what its recipe is called."""
    recipes = record.resolved_recipe or ()
    found = [_named(recipe) for recipe in ((recipes,) if isinstance(recipes, dict) else recipes)]
    found = found or [(model, None) for model in record.registered_models] or [(record.recipe, None)]
    yield from dict(found).items()


def _named(recipe: Mapping[str, Any]) -> tuple[str, str | None]:
    registry, draft = recipe.get("registry") or {}, recipe.get("draft") or {}
    return str(registry.get("model") or recipe.get("name") or "unknown"), draft.get("algorithm")


def _night(record: RunRecord, model: str, algorithm: str | None, num_models: int) -> Night:
    several = num_models > 1
    verdict = _own(record.verdicts, algorithm, several=several)
    evaluation = _own(record.evaluations, algorithm, several=several)
    version = next((one for one in record.models if one.name == model), None)
    status = record.status
    if status == "promoted" and verdict is not None and not verdict.accepted:
        status = "refused"  # another of the run's drafts was promoted
    return Night(
        run_id=record.run_id,
        recipe=record.recipe,
        night=record.night,
        began=started_at(record).isoformat(timespec="seconds"),
        ended=ended_at(record).isoformat(timespec="seconds"),
        status=status,
        stage=record.failure.stage if record.failure is not None else None,
        version=version.version if version is not None else None,
        sentence=_sentence(record, verdict, status),
        measured=measured_in(evaluation) if evaluation is not None and status in MADE_A_DRAFT else {},
        spent=_spent(record.cost, num_models),
        making=_spent(record.making_cost, 1) if record.making_cost is not None and not several else None,
        registration=_registration(record, algorithm, several=several),
    )


def _own(
    found: tuple[RecordedVerdict, ...] | tuple[RecordedEvaluation, ...] | tuple[RecordedModel, ...],
    algorithm: str | None,
    *,
    several: bool,
) -> Any:
    return next((one for one in found if not several or one.algorithm == algorithm), None)


def _sentence(record: RunRecord, verdict: RecordedVerdict | None, status: RunStatus) -> str | None:
    """Why the run ended as it did: what ended it early, else the verdict; then what else there is to know."""
    said = []
    if record.failure is not None:
        said.append(record.failure.message)
    elif record.error is not None:
        said.append(record.error)
    elif verdict is not None and status in MADE_A_DRAFT:
        said.append(verdict.sentence)
    return plain(" ".join([*said, *record.notes])) or None


def measured_in(evaluation: Evaluation) -> dict[str, Measured]:
    """What an evaluation measured, by the feed's names."""
    found: dict[str, Measured] = {}
    if evaluation.macro is not None:
        found["mean"] = _mean(evaluation.macro)
    found |= {f"domain/{name}": _mean(part) for name, part in evaluation.domains.items()}
    for name, part in evaluation.benchmarks.items():
        found[f"benchmark/{name}"] = Measured(
            tau=_rounded(part.tau),
            tau_ci95=_both(part.tau_ci95),
            speedup=_rounded(part.speedup),
            speedup_ci95=_both(part.speedup_ci95),
            prompts=part.prompts,
        )
    if evaluation.gate is not None:
        gate = evaluation.gate
        found["gate"] = Measured(tau=_rounded(gate.tau), tau_ci95=_both(gate.tau_ci95), prompts=gate.prompts)
    return found


def _mean(part: MeanResult) -> Measured:
    return Measured(
        tau=_rounded(part.tau),
        tau_ci95=_both(part.tau_ci95),
        speedup=_rounded(part.speedup),
        speedup_ci95=_both(part.speedup_ci95),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _both(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    low, high = map(_rounded, interval or (None, None))
    return None if low is None or high is None else (low, high)


def _spent(cost: Cost, among: int) -> Spent:
    amounts = {cost.currency: round(cost.amount / among, 4)} if cost.amount is not None and cost.currency else {}
    used = cost.to_json()
    return spent_of({name: used[name] / among for name in USED if used.get(name)}, amounts)


def spent_of(used: Mapping[str, float], amounts: dict[str, float]) -> Spent:
    """What was used, as the dashboard keeps it.

    Args:
        used: by the names in `deepspec.usage.USED`.
        amounts: of money, by currency.
    """
    return Spent(
        gpu_seconds=round(used.get("gpu_seconds", 0.0), 1),
        cpu_seconds=round(used.get("cpu_seconds", 0.0), 1),
        bytes_written=int(used.get("bytes_written", 0)),
        requests=int(sum(used.get(name, 0) for name in _REQUESTS)),
        amounts=amounts,
    )


def _registration(record: RunRecord, algorithm: str | None, *, several: bool) -> str | None:
    keys = (
        stage.key
        for stage in record.stages
        if stage.name == "register" and stage.key and (not several or stage.algorithm == algorithm)
    )
    return next(keys, None)
