"""Collecting the feed: what is new since the earlier one is read, the rest is taken from it."""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from deepspec import __version__, history
from deepspec.dashboard.champions import appointed
from deepspec.dashboard.nights import algorithm_of, nights_of, target_of
from deepspec.dashboard.present import following, running
from deepspec.record import RunRecord
from deepspec.registry.promotions import PromotionLog
from deepspec.reports.dashboard.feed import FORMAT, Feed, LogEntry, Model, MonthCost, Night, Spent
from deepspec.store import Store

logger = logging.getLogger(__name__)

SPAN = timedelta(days=400)
"""A year of nights, and the month that it is compared with; what is older is left out."""


def collect(store: Store, now: datetime, *, earlier: Feed | None = None, but: str | None = None) -> Feed:
    """The feed of a store.

    Args:
        store: where history, promotion logs, followers and artifacts are.
        now: in UTC.
        earlier: the last feed of the same store; one that another deepspec wrote is not used.
        but: a run that is just ending, which is not said to be running.

    Raises:
        ArtifactError, TransientError: the store refuses, or does not answer.
    """
    since = (now - SPAN).replace(hour=0, minute=0, second=0, microsecond=0)
    known = _known(earlier, since)
    records = history.records(store.backend, since=since, known=frozenset(known.runs))
    promotions = PromotionLog(store.backend, remembers=True)
    models = {model.name: model for model in known.models}
    for record in records:
        try:
            _add(models, record)
        except (ValueError, OverflowError) as error:  # no time that a calendar has
            logger.warning("Run %s is missing on the dashboard: %s", record.run_id, error)
    for name in promotions.models():
        models.setdefault(name, Model(name=name))
    found = [_appointed(store, promotions, models[name], since) for name in sorted(models)]
    found = [model for model in found if model.nights or model.log or model.log_flaw]
    runs = {*known.runs, *(record.run_id for record in records)}
    return Feed(
        format=FORMAT,
        deepspec=__version__,
        written=now.isoformat(timespec="seconds"),
        since=since.isoformat(timespec="seconds"),
        models=tuple(found),
        costs=tuple(_costs(found)),
        followers=following(store.backend, {model.name: model.log for model in found}, now),
        running=running(store.backend, but),
        runs=tuple(sorted(runs)),
    )


def _known(earlier: Feed | None, since: datetime) -> Feed:
    """What of the earlier feed still counts; an empty one where there is none, or its making may have changed."""
    if earlier is None or (earlier.format, earlier.deepspec) != (FORMAT, __version__):
        return Feed(deepspec=__version__, written="", since="")
    first = f"{since:%Y%m%d}"  # ids of runs begin with their day
    models = (
        model.model_copy(update={"nights": tuple(night for night in model.nights if night.run_id >= first)})
        for model in earlier.models
    )
    return earlier.model_copy(
        update={"models": tuple(models), "runs": tuple(run for run in earlier.runs if run >= first)}
    )


def _add(models: dict[str, Model], record: RunRecord) -> None:
    """Add a run to the models that it was about."""
    for name, night in nights_of(record).items():
        before = models.get(name, Model(name=name))
        # A run that died is recorded by the next one, and so comes after it.
        nights = tuple(sorted((*before.nights, night), key=lambda one: one.run_id))
        newest = nights[-1].run_id == night.run_id
        models[name] = before.model_copy(
            update={
                "nights": nights,
                "target": (target_of(record) if newest else None) or before.target,
                "algorithm": (algorithm_of(record, name) if newest else None) or before.algorithm,
            }
        )


def _appointed(store: Store, promotions: PromotionLog, model: Model, since: datetime) -> Model:
    """A model with who serves."""
    found = appointed(store, promotions, model.name, model.nights, model)
    champion = found.champion
    first = since.isoformat()
    log = tuple(_kept(found.log, first, champion.entry if champion is not None else None))
    return model.model_copy(update={"champion": champion, "log": log, "log_flaw": found.flaw})


def _kept(log: Sequence[LogEntry], first: str, champion: int | None) -> Iterable[LogEntry]:
    """The entries of the span, that of the champion, and the last one, from which the next feed goes on."""
    return (entry for entry in log if entry.when >= first or entry.number in (champion, log[-1].number))


def _costs(models: Iterable[Model]) -> list[MonthCost]:
    """What each model's runs used, by month."""
    by_month: dict[tuple[str, str], list[Night]] = {}
    for model in models:
        for night in model.nights:
            by_month.setdefault((night.began[:7], model.name), []).append(night)
    newest_first = sorted(by_month, key=lambda place: place[1])
    newest_first.sort(key=lambda place: place[0], reverse=True)
    return [
        MonthCost(month=place[0], model=place[1], runs=len(by_month[place]), spent=_sum(by_month[place]))
        for place in newest_first
    ]


def _sum(nights: Sequence[Night]) -> Spent:
    amounts: dict[str, float] = {}
    for night in nights:
        for currency, amount in night.spent.amounts.items():
            amounts[currency] = round(amounts.get(currency, 0.0) + amount, 4)
    return Spent(
        gpu_seconds=round(sum(night.spent.gpu_seconds for night in nights), 1),
        cpu_seconds=round(sum(night.spent.cpu_seconds for night in nights), 1),
        bytes_written=sum(night.spent.bytes_written for night in nights),
        requests=sum(night.spent.requests for night in nights),
        amounts=amounts,
    )
