"""The dashboard's page: HTML with its style, figures and one small script in it.

It asks no host for anything: a policy in it forbids all requests, and every script but its own, which is named by its
hash. Without the script everything is there; it says how long ago things were, and that the page is old when it is.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from deepspec.reports.dashboard import costs
from deepspec.reports.dashboard.calendar import WEEKDAYS
from deepspec.reports.dashboard.feed import Feed, FollowerEntry, RunningRun
from deepspec.reports.dashboard.model_section import NIGHTS_OPEN, NIGHTS_SHOWN, ModelSection, section_of
from deepspec.reports.dashboard.moments import Moment, moment
from deepspec.reports.dashboard.outcomes import MEANINGS, ROLLBACK, WORDS
from deepspec.reports.dashboard.overview import Card, Concern, cards_of, concerns_of
from deepspec.reports.dashboard.tau_chart import version
from deepspec.reports.rendering import asset, render

if TYPE_CHECKING:
    from markupsafe import Markup

TITLE = "Draft models"


@dataclass(frozen=True)
class _Follower:
    host: str
    place: str
    model: str
    version: str
    state: str
    sign: str
    held: str
    seen: Moment
    since: Moment | None
    trouble: str


@dataclass(frozen=True)
class _Running:
    run_id: str
    models: str
    began: Moment | None
    stages: str


@dataclass(frozen=True)
class _Page:
    """What the template shows."""

    title: str
    more_style: "Markup"
    script: "Markup"
    script_hash: str
    written: Moment
    deepspec: str
    since: Moment
    cards: Sequence[Card]
    concerns: Sequence[Concern]
    running: Sequence[_Running]
    last_broken: str
    sections: Sequence[ModelSection]
    weekdays: Sequence[str]
    words: Mapping[str, str]
    meanings: Mapping[str, str]
    rollback: str
    nights_open: int
    nights_shown: int
    months: Sequence[costs.CostMonth]
    followers: Sequence[_Follower]


def page_of(feed: Feed) -> str:
    """The page as HTML."""
    script = asset("dashboard.js")
    written = datetime.fromisoformat(feed.written)
    sections = [section_of(place, model, written) for place, model in enumerate(feed.models)]
    page = _Page(
        title=TITLE,
        more_style=asset("dashboard.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        written=moment(feed.written),
        deepspec=feed.deepspec,
        since=moment(feed.since),
        cards=cards_of(feed),
        concerns=concerns_of(feed),
        running=[_running(run) for run in feed.running or ()],
        last_broken=_last_broken(feed),
        sections=sections,
        weekdays=WEEKDAYS,
        words={**{str(status): word for status, word in WORDS.items()}, ROLLBACK: "rolled back"},
        meanings=MEANINGS,
        rollback=ROLLBACK,
        nights_open=NIGHTS_OPEN,
        nights_shown=NIGHTS_SHOWN,
        months=costs.months_of(feed),
        followers=[_follower(one) for one in feed.followers or ()],
    )
    return render("dashboard.html.j2", page)


def _running(run: RunningRun) -> _Running:
    return _Running(
        run_id=run.run_id,
        models=", ".join(run.models),
        began=moment(run.began) if run.began else None,
        stages=", ".join(run.stages),
    )


def _last_broken(feed: Feed) -> str:
    """The last failure of all models in a sentence; empty if there was none."""
    broken = [(night, model) for model in feed.models for night in model.nights if night.status == "failed"]
    if not broken:
        return ""
    night, model = max(broken, key=lambda found: found[0].ended)
    where = f" in {night.stage}" if night.stage else ""
    return f"{moment(night.ended).text}, {model.name}{where}: {night.sentence or 'no reason is known.'}"


def _follower(one: FollowerEntry) -> _Follower:
    held = {True: "up to date", None: "not known"}.get(one.is_champion)
    if held is None:
        behind = f"{one.behind} behind" if one.behind else "behind"
        held = behind if one.digest else "nothing yet"
    good = one.state == "healthy" and one.is_champion is True
    return _Follower(
        host=one.host,
        place=one.place,
        model=one.model,
        version=version(one.version) if one.digest else "",
        state=one.state,
        sign="promoted" if good else {"healthy": "refused", "stopped": "no_change"}.get(one.state, "failed"),
        held=held,
        seen=moment(one.seen),
        since=moment(one.since) if one.since else None,
        trouble=one.trouble,
    )
