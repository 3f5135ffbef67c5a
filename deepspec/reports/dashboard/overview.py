"""The top of the page: each model in a card, and what needs a person."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from deepspec.reports.dashboard.costs import money
from deepspec.reports.dashboard.feed import Feed, FollowerEntry, Model, Night
from deepspec.reports.dashboard.moments import Moment, moment
from deepspec.reports.dashboard.outcomes import BROKEN, WORDS
from deepspec.reports.dashboard.tau_chart import version
from deepspec.reports.formatting import NOT_MEASURED, interval, number, times

_LATE = timedelta(hours=26)
_NIGHTS = 21
"""How many of the last nights a card shows as a strip."""


@dataclass(frozen=True)
class Strip:
    """One of the last nights, in a card."""

    status: str
    label: str


@dataclass(frozen=True)
class Card:
    """A model at a glance.

    Attributes:
        anchor: of its section.
        name, about: the model; its target and algorithm.
        version, since, how: of the champion; None: there is none.
        tau, tau_interval, speedup: its means over benchmarks.
        last: how the last run ended, when, and its sign's name; None: there was none.
        strip: the last nights.
        served: how many followers hold the champion, in words.
        served_well: whether all do.
        month: what this month has cost.
    """

    anchor: str
    name: str
    about: str
    version: str | None
    since: Moment | None
    how: str
    tau: str
    tau_interval: str
    speedup: str
    last: tuple[str, str, Moment] | None
    strip: Sequence[Strip]
    served: str
    served_well: bool
    month: str


@dataclass(frozen=True)
class Concern:
    """What needs a person: which sign, about which model, and what it is."""

    sign: str
    name: str
    text: str
    anchor: str


def cards_of(feed: Feed) -> list[Card]:
    """A card for each model."""
    return [_card(feed, place, model) for place, model in enumerate(feed.models)]


def anchor_of(place: int) -> str:
    """The id of a model's section: names may hold what an id may not."""
    return f"model-{place + 1}"


def _card(feed: Feed, place: int, model: Model) -> Card:
    champion = model.champion
    mean = champion.measured.get("mean") if champion is not None else None
    last = model.nights[-1] if model.nights else None
    own = [one for one in feed.followers or () if one.model == model.name and one.state != "stopped"]
    served = sum(one.state == "healthy" and one.is_champion is True for one in own)
    spent = next((one.spent for one in feed.costs if (one.month, one.model) == (feed.written[:7], model.name)), None)
    return Card(
        anchor=anchor_of(place),
        name=model.name,
        about=" · ".join(filter(None, (model.algorithm, model.target and f"for {model.target}"))),
        version=version(champion.version) if champion is not None else None,
        since=moment(champion.since) if champion is not None else None,
        how=("rolled back to" if champion.by == "rollback" else "champion") if champion is not None else "",
        tau=number(mean.tau if mean is not None else None, 2),
        tau_interval=interval(mean.tau_ci95) if mean is not None and mean.tau_ci95 else "",
        speedup=times(mean.speedup if mean is not None else None),
        last=(last.status, WORDS[last.status], moment(last.ended)) if last is not None else None,
        strip=[Strip(night.status, WORDS[night.status]) for night in model.nights[-_NIGHTS:]],
        served=f"{served} of {len(own)} hosts up to date" if own else "no hosts follow it",
        served_well=served == len(own),
        month=money(spent) if spent is not None else NOT_MEASURED,
    )


def concerns_of(feed: Feed) -> list[Concern]:
    """All that needs a person, model by model, then hosts."""
    found = [concern for place, model in enumerate(feed.models) for concern in _of_model(feed, place, model)]
    if feed.followers is None:
        found.append(Concern("failed", "Followers", "They cannot be read from the store.", "served"))
    if feed.running is None:
        found.append(Concern("failed", "Runs", "Which are alive cannot be found out.", "now"))
    return [*found, *(_of_host(one) for one in feed.followers or () if _is_wrong(one))]


def _of_model(feed: Feed, place: int, model: Model) -> Iterator[Concern]:
    anchor = anchor_of(place)
    if model.log_flaw:
        yield Concern("failed", model.name, model.log_flaw, anchor)
    nights = model.nights
    if not nights:
        return
    broken = _broken_in_a_row(nights)
    if broken:
        last = broken[-1]
        many = f" {len(broken)} runs in a row." if len(broken) > 1 else ""
        where = f" in {last.stage}" if last.stage else ""
        ended = "failed" if last.status == "failed" else "was interrupted"
        text = f"The last run {ended}{where}.{many} {last.sentence or ''}"
        yield Concern(last.status, model.name, text.strip(), anchor)
    waiting = next((night for night in reversed(nights) if night.measured), None)
    if waiting is not None and waiting.status == "awaiting_approval" and not _is_decided(model, waiting):
        text = f"{version(waiting.version)} awaits approval since {moment(waiting.ended).text}."
        yield Concern("awaiting_approval", model.name, text, anchor)
    late = _late(nights, datetime.fromisoformat(feed.written))
    if late is not None and not any(model.name in run.models for run in feed.running or ()):
        yield Concern("interrupted", model.name, late, anchor)


def _broken_in_a_row(nights: Sequence[Night]) -> list[Night]:
    found: list[Night] = []
    for night in reversed(nights):
        if night.status not in BROKEN:
            break
        found.insert(0, night)
    return found


def _is_decided(model: Model, waiting: Night) -> bool:
    """Whether the log says anything since: the draft was promoted, or another one."""
    return any(datetime.fromisoformat(entry.when) > datetime.fromisoformat(waiting.ended) for entry in model.log)


def _late(nights: Sequence[Night], now: datetime) -> str | None:
    """That no run has ended for much longer than is usual; None: nothing is known to be late."""
    ends = [datetime.fromisoformat(night.ended) for night in nights[-15:]]
    if len(ends) < 4:
        return None
    usual = timedelta(seconds=statistics.median((b - a).total_seconds() for a, b in pairwise(ends)))
    silent = now - ends[-1]
    if silent < max(_LATE, 1.5 * usual):
        return None
    return f"No run has ended since {moment(nights[-1].ended).text}; before, one did every {_span(usual)}."


def _span(of: timedelta) -> str:
    hours = of.total_seconds() / 3600
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def _is_wrong(one: FollowerEntry) -> bool:
    return one.state in ("unhealthy", "lost") or (one.state == "healthy" and one.is_champion is False)


def _of_host(one: FollowerEntry) -> Concern:
    said = {"lost": f"has not been heard of since {moment(one.seen).text}", "unhealthy": "is in trouble"}
    text = f"{one.host} {said.get(one.state, 'holds an earlier champion')}"
    return Concern(one.state, one.model, f"{text}: {one.trouble}." if one.trouble else f"{text}.", "served")
