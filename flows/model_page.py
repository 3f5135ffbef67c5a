"""The page of a registered model: who serves and why, where, what failed, what it cost, and how τ has moved.

Markdown, computed from the store alone (promotion log, history of runs, followers) whenever a run has ended, so that
both pages that teams have open say the same: the artifact `model-<name>` in Prefect, and the description of the
registered model in MLflow.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from deepspec import history
from deepspec.errors import DeepspecError
from deepspec.record import RunRecord
from deepspec.registry.entries import Promotion
from deepspec.registry.open import tracking_of
from deepspec.registry.promotions import PromotionLog
from deepspec.reports.formatting import NOT_MEASURED, number, signed
from deepspec.reports.run_markdown import cost_of, duration, mlflow_page, model_link
from deepspec.serving.followers import Seen, followers
from deepspec.store import Backend, Store
from tasks.runtime.prefect.server import is_configured, named

if TYPE_CHECKING:
    from deepspec.registry.mlflow.tracking import Tracking
    from tasks.runtime.run import Run

logger = logging.getLogger(__name__)

DAYS = 31
"""So far back nights are counted and added up."""
_NIGHTS = 14
_CHAMPIONS = 6
_BAD = ("failed", "interrupted")
_MISSED_HOURS = 26.0


@dataclass(frozen=True)
class Facts:
    """What the page is about.

    Attributes:
        model: its name.
        entries: its promotion log.
        records: its runs of the last `DAYS`, oldest first.
        seen: its followers.
        now: the time, in UTC.
    """

    model: str
    entries: Sequence[Promotion]
    records: Sequence[RunRecord]
    seen: Sequence[Seen]
    now: datetime


def show_models(run: "Run[Any]") -> None:
    """Bring the pages of a run's models up to date, when it has ended."""
    tracking = run.tracking or (tracking_of(run.home) if run.on_shared_server else None)
    flow_runs = run.alive.flow_runs if run.alive is not None else []
    for model in run.models:
        _show(run.store.backend, tracking, model, flow_runs)


def show_again(home: Path, store: Store, model: str) -> None:
    """Bring the pages of a model up to date, when a person has promoted or rolled back."""
    _show(store.backend, tracking_of(home), model, ())


def _show(backend: Backend, tracking: "Tracking | None", model: str, flow_runs: Iterable[str]) -> None:
    """Show a model's page wherever there are pages; what cannot be reached is warned of."""
    try:
        facts = facts_of(backend, model)
        charts = None if tracking is None or not facts.entries else charts_of(tracking, model)
        text = page(facts, charts)
        if tracking is not None:
            tracking.describe_model(model, text)
        if is_configured():
            show_model(model, text, flow_runs)
    except (DeepspecError, httpx.HTTPError, RuntimeError) as error:
        logger.warning("The page of %s is not up to date: %s", model, named(error) or error)


def charts_of(tracking: "Tracking", model: str) -> str | None:
    """The address of MLflow's charts over all versions."""
    return mlflow_page(f"experiments/{tracking.experiment_id}/runs/{tracking.chart_of(model)}/model-metrics")


def facts_of(backend: Backend, model: str, now: datetime | None = None) -> Facts:
    """What is known of a model; costs a listing and a small read for each of its runs and followers.

    Raises:
        PromotionLogDamaged: its log cannot be read.
        ArtifactError, TransientError: the store cannot be listed.
    """
    now = now or datetime.now(UTC)
    found = history.records(backend, since=now - timedelta(days=DAYS))
    return Facts(
        model=model,
        entries=PromotionLog(backend).history(model),
        records=[record for record in found if model in record.registered_models],
        seen=followers(backend, model),
        now=now,
    )


def artifact_key(model: str) -> str:
    """The key of a model's artifact in Prefect, which allows lower-case letters, digits and dashes."""
    return f"model-{re.sub(r'[^a-z0-9]+', '-', model.lower()).strip('-')}"


def page(facts: Facts, charts: str | None = None) -> str:
    """The page as Markdown.

    Args:
        facts: what it is about.
        charts: address of the charts over all versions; None: there are none.
    """
    parts = (_champion, _failing, _followers, _cost, _taus, _nights)
    lines = [f"# {facts.model}", "", *(line for part in parts for line in (*part(facts), ""))]
    return "\n".join([*lines, *([f"[Charts of every version in MLflow]({charts})"] if charts else [])])


def show_model(model: str, text: str, flow_runs: Iterable[str]) -> None:
    """Show a model's page in Prefect.

    Args:
        model, text: whose, and what.
        flow_runs: the run's own; the first has the artifact on its page, too.

    Raises:
        httpx.HTTPError, RuntimeError: Prefect's server refuses, or does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate

    with get_client(sync_client=True) as client:
        client.create_artifact(
            ArtifactCreate(
                key=artifact_key(model),
                type="markdown",
                description=f"{model}: champion, followers, τ, cost, nights.",
                data=text,
                flow_run_id=next(map(UUID, flow_runs), None),
            )
        )


def _champion(facts: Facts) -> Iterable[str]:
    yield "## Champion"
    yield ""
    serving = next((entry for entry in reversed(facts.entries) if entry.kind != "unblock"), None)
    if serving is None:
        yield "Nothing was ever promoted."
        return
    link = model_link(facts.model, serving.champion.version)
    name = _version(serving.champion.version, serving.champion.digest)
    who = f"since {serving.when:%Y-%m-%d %H:%M} UTC, by {serving.asked_by}"
    yield f"**{f'[{name}]({link})' if link else name}** {who}" + (f": {serving.reason}" if serving.reason else "")
    yield ""
    if serving.verdict is not None:
        yield f"Why: {serving.verdict.sentence}"
    elif serving.previous is not None:
        yield f"Why: it was rolled back to, from {_version(serving.previous.version, serving.previous.digest)}."


def _failing(facts: Facts) -> Iterable[str]:
    yield "## Is anything failing?"
    yield ""
    last = facts.records[-1] if facts.records else None
    if last is None:
        yield f"No run has ended in {DAYS} days."
        return
    silent = (facts.now - history.ended_at(last)).total_seconds() / 3600
    if silent > _MISSED_HOURS:
        yield f"**No run has ended for {number(silent, 0)} hours.**"
        yield ""
    bad = [record for record in facts.records if record.status in _BAD]
    if last.status in _BAD:
        yield f"**The last run {last.status}**: {_why(last)}"
    elif last.status == "awaiting_approval":
        yield "**The last run waits for a person's approval.**"
    else:
        yield f"No: the last run ended as {_outcome(last)}."
    yield ""
    yield f"Failed or interrupted in {DAYS} days: {len(bad)} of {len(facts.records)}." + (
        f" The last one, {_day(bad[-1])}: {_why(bad[-1])}" if bad and bad[-1] is not last else ""
    )


def _followers(facts: Facts) -> Iterable[str]:
    yield "## What is served where"
    yield ""
    if not facts.seen:
        yield "No host follows this model."
        return
    yield "| host | holds | state | since | |"
    yield "|---|---|---|---|---|"
    for seen in facts.seen:
        follower = seen.follower
        held = _version(follower.version, follower.digest) if follower.digest else "nothing yet"
        which = {True: " (champion)", False: " (not the champion)", None: ""}[seen.is_champion]
        since = follower.since[:16].replace("T", " ") or NOT_MEASURED
        silent = f"silent for {duration(seen.silent_seconds)}" if seen.state == "lost" else follower.trouble
        yield f"| {follower.host} | {held}{which} | {seen.state} | {since} | {_cell(silent)} |"


def _cost(facts: Facts) -> Iterable[str]:
    yield "## Cost"
    yield ""
    month = [record for record in facts.records if f"{history.started_at(record):%Y-%m}" == f"{facts.now:%Y-%m}"]
    for name, records in ((f"{facts.now:%B %Y}", month), (f"{DAYS} days", facts.records)):
        yield f"* {name}: {_sum(records)}, {len(records)} runs"
    champion = facts.entries[-1].champion.version if facts.entries else None
    made = next((record for record in reversed(facts.records) if _model(facts, record) == champion), None)
    if champion is not None and made is not None and made.making_cost is not None:
        yield f"* making the champion, with all it was made from: {cost_of(made.making_cost)}"


def _taus(facts: Facts) -> Iterable[str]:
    yield "## How τ has moved"
    yield ""
    serving = [entry for entry in facts.entries if entry.kind != "unblock"][-_CHAMPIONS:]
    if not serving:
        yield "No champion yet."
        return
    columns = [_measured(facts, entry) for entry in serving]
    names = list(dict.fromkeys(name for column in columns for name in column))
    heads = (f"v{entry.champion.version or '?'}, {entry.when:%m-%d}" for entry in serving)
    yield f"| champion | {' | '.join(heads)} | change |"
    yield f"|---|{'---|' * (len(columns) + 1)}"
    for name in names:
        known = [value for column in columns if (value := column.get(name)) is not None]
        change = signed(known[-1] - known[0], 2) if len(known) > 1 else NOT_MEASURED
        yield f"| {name} | {' | '.join(number(column.get(name), 2) for column in columns)} | {change} |"


def _nights(facts: Facts) -> Iterable[str]:
    yield "## Last nights"
    yield ""
    yield "| began (UTC) | outcome | τ | cost | took |"
    yield "|---|---|---|---|---|"
    for record in reversed(facts.records[-_NIGHTS:]):
        gate = next((part.gate.tau for part in record.evaluations if part.gate is not None), None)
        cells = _outcome(record, facts), number(gate, 2), cost_of(record.cost), duration(record.seconds)
        yield f"| {_day(record)} | {' | '.join(cells)} |"


def _measured(facts: Facts, entry: Promotion) -> dict[str, float | None]:
    """Part -> τ of an entry's champion: what the log says of it, and the domains that a run's record has."""
    digest = entry.champion.digest
    verdict = next(
        (one.verdict for one in facts.entries if one.verdict is not None and one.champion.digest == digest), None
    )
    found: dict[str, float | None] = (
        {part.name: part.challenger for part in verdict.comparison} if verdict is not None else {}
    )
    for record in facts.records:
        if entry.champion.version is not None and _model(facts, record) == entry.champion.version:
            for evaluation in record.evaluations:
                found |= {f"domain {name}": part.tau for name, part in sorted(evaluation.domains.items())}
    return found


def _model(facts: Facts, record: RunRecord) -> str | None:
    """The version of the page's model that a run registered."""
    return next((model.version for model in record.models if model.name == facts.model), None)


def _outcome(record: RunRecord, facts: Facts | None = None) -> str:
    version = _model(facts, record) if facts is not None else None
    return record.status.replace("_", " ") + (f" v{version}" if version else "")


def _day(record: RunRecord) -> str:
    return f"{history.started_at(record):%Y-%m-%d %H:%M}"


def _why(record: RunRecord) -> str:
    return _cell(record.failure.sentence if record.failure is not None else record.error or "")


def _cell(text: str) -> str:
    """A text in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")[:200]


def _version(version: str | None, digest: str) -> str:
    return f"version {version}" if version else f"draft {digest[:12]}"


def _sum(records: Iterable[RunRecord]) -> str:
    """What runs have cost together; money in each currency that was paid in."""
    costs = [record.cost for record in records]
    hours = f"{number(sum(cost.gpu_seconds for cost in costs) / 3600, 1)} GPU hours"
    currencies = sorted({cost.currency for cost in costs if cost.currency is not None and cost.amount is not None})
    amounts = [
        f"{number(sum(cost.amount or 0.0 for cost in costs if cost.currency == currency), 2)} {currency}"
        for currency in currencies
    ]
    return ", ".join([*amounts, hours])
