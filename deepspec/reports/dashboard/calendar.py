"""Nights as a calendar: a grid of weeks for each month, a day's runs in each cell. Days are UTC's."""

import calendar
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from deepspec.reports.dashboard.feed import Model, Night
from deepspec.reports.dashboard.outcomes import WORDS, telling
from deepspec.reports.dashboard.tau_chart import version

WEEKDAYS = tuple(calendar.day_abbr)
_REASON = 140
"""Most characters of a reason in a cell: all of it stands in the list."""


@dataclass(frozen=True)
class Day:
    """A cell.

    Attributes:
        number: of the day.
        label: the whole date.
        status: of the run that stands for the day; None: none began.
        rolled_back: whether a person went back to an earlier champion.
        lines: what happened, each in a few words.
        reason: of the run that stands for the day, its beginning.
        anchor: of the night in the list that the cell leads to; None: it is not listed.
        future: whether it was still to come when the page was written.
    """

    number: int
    label: str
    status: str | None
    rolled_back: bool
    lines: Sequence[str]
    reason: str
    anchor: str | None
    future: bool


@dataclass(frozen=True)
class Month:
    """A grid: weeks from Monday, None for days of other months."""

    title: str
    weeks: Sequence[Sequence[Day | None]]


def months_of(model: Model, written: datetime, anchors: Mapping[str, str]) -> list[Month]:
    """The months of a model's nights, newest first, from the one in which the page was written.

    Args:
        model: with its nights and log.
        written: when the page was.
        anchors: of the nights that are listed, by run.
    """
    nights: dict[date, list[Night]] = {}
    for night in model.nights:
        nights.setdefault(datetime.fromisoformat(night.began).date(), []).append(night)
    rolled_back: dict[date, list[str]] = {}
    for entry in model.log:
        if entry.kind == "rollback":
            day = datetime.fromisoformat(entry.when).date()
            rolled_back.setdefault(day, []).append(f"rolled back to {version(entry.version)}")
    if not nights:
        return []
    found = []
    today, first = written.date(), min(nights)
    year, month = today.year, today.month
    while (year, month) >= (first.year, first.month):
        weeks = [
            [
                _day(day, nights.get(day, ()), rolled_back.get(day, ()), today, anchors) if day.month == month else None
                for day in week
            ]
            for week in calendar.Calendar().monthdatescalendar(year, month)
            if week[0] <= today
        ]
        found.append(Month(f"{calendar.month_name[month]} {year}", weeks))
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    return found


def _day(
    day: date, nights: Sequence[Night], rolled_back: Iterable[str], today: date, anchors: Mapping[str, str]
) -> Day:
    shown = max(nights, key=lambda night: telling(night.status), default=None)
    back = list(rolled_back)
    return Day(
        number=day.day,
        label=f"{day.day} {day:%B %Y}",
        status=shown.status if shown is not None else None,
        rolled_back=bool(back),
        lines=[*map(_line, nights), *back],
        reason=_begun(shown.sentence or "") if shown is not None else "",
        anchor=anchors.get(shown.run_id) if shown is not None else None,
        future=day > today,
    )


def _line(night: Night) -> str:
    said = WORDS[night.status]
    return f"{said} {version(night.version)}" if night.version and night.measured else said


def _begun(sentence: str) -> str:
    return sentence if len(sentence) <= _REASON else f"{sentence[: _REASON - 1].rstrip()}…"
