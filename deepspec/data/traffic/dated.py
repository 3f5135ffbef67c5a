"""Locations with a date in them, and the days of a window. Days are of UTC. Standard library only."""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

from deepspec.data.traffic_config import MOST_DAYS, Traffic
from deepspec.errors import RecipeError

_PLACEHOLDER = re.compile(r"\{date(?::([^{}]+))?\}")
_ISO = "%Y-%m-%d"
_CODES = {"%Y": r"\d{4}", "%m": r"\d{2}", "%d": r"\d{2}"}


@dataclass(frozen=True, slots=True)
class Window:
    """Which days are taken, and of which days rows may be.

    Attributes:
        first, last: of the days, both taken.
        oldest: rows of earlier days are not taken.
        today: rows of later days are not taken: a clock was wrong.
    """

    first: date
    last: date
    oldest: date
    today: date

    @property
    def days(self) -> Iterator[date]:
        """Each of them, in order."""
        return (self.first + timedelta(number) for number in range((self.last - self.first).days + 1))

    def __str__(self) -> str:
        return f"{self.first} … {self.last}"


def window_of(traffic: Traffic, today: date, where: str) -> Window:
    """The window as it is on a day.

    Args:
        traffic: the recipe's section.
        today: the day, of UTC.
        where: the source, for messages.

    Raises:
        RecipeError: all of it lies in the future, retention leaves nothing of it, or it has more than MOST_DAYS.
    """
    yesterday = today - timedelta(1)
    last = min(traffic.last_day or yesterday, today)
    first = traffic.first_day or today - timedelta(traffic.days or 1)
    oldest = today - timedelta(traffic.retention_days) if traffic.retention_days else date.min
    if first > last:
        raise RecipeError(
            f"the window begins on {first}, and today is {today} (UTC) by this machine's clock.",
            where=where,
            remedy="Correct first_day, or the clock.",
        )
    if oldest > last:
        raise RecipeError(
            f"the window ends on {last}, but retention_days ({traffic.retention_days}) forbids rows before {oldest}.",
            where=where,
            remedy="Take a later window.",
        )
    window = Window(max(first, oldest), last, oldest, today)
    if (window.last - window.first).days >= MOST_DAYS:
        raise RecipeError(
            f"the window {window} has more than {MOST_DAYS} days.", where=where, remedy="Give a later first_day."
        )
    return window


def has_days(location: str) -> bool:
    """Whether a location has a date in it."""
    return _PLACEHOLDER.search(location) is not None


def on_day(location: str, day: date) -> str:
    """The location of one day: `{date}` is 2026-11-30, `{date:%Y/%m/%d}` is 2026/11/30."""
    return _PLACEHOLDER.sub(lambda match: day.strftime(match[1] or _ISO), location)


def days_there(location: str) -> set[date]:
    """The days that a local location has something of."""
    found = set()
    pattern, codes = _as_pattern(location)
    for path in glob.iglob(_PLACEHOLDER.sub(_as_glob, location), recursive=True):  # noqa: PTH207 - absolute patterns
        match = pattern.match(path)
        if match is not None:
            try:
                found.add(datetime.strptime(match["day"], codes).date())  # noqa: DTZ007 - a day has no time zone
            except ValueError:
                continue
    return found


def label_of(location: str) -> str:
    """What a dated location is called: its last part that is neither a date nor a pattern."""
    parts = [part for part in _PLACEHOLDER.sub("{}", location.replace("://", "/")).split("/") if part]
    plain = [part for part in parts if not re.search(r"[{}*?\[\]]", part)]
    return re.sub(r"[^\w.-]", "-", Path(plain[-1]).name) if plain else "traffic"


def _as_glob(match: re.Match[str]) -> str:
    return re.sub(r"%[A-Za-z]", "*", match[1] or _ISO)


def _as_pattern(location: str) -> tuple[re.Pattern[str], str]:
    """An expression that finds the date in a path, up to there; and the date's format."""
    match = _PLACEHOLDER.search(location)
    if match is None:
        raise ValueError(f"{location} has no date")
    codes = match[1] or _ISO
    day = re.sub(r"%[A-Za-z]", lambda code: _CODES.get(code[0], r"\w+"), re.escape(codes).replace("\\%", "%"))
    before = re.escape(location[: match.start()]).replace(r"\*\*", ".*").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.compile(f"{before}(?P<day>{day})"), codes
