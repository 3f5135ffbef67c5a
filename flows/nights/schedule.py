"""When nights run: their schedules as Prefect has them, and whether one starts a run before the last may have ended.

The times are computed by what Prefect's server computes them with, daylight saving included.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import ValidationError

from deepspec.errors import NightsError
from deepspec.nights import PlannedNight

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

_ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
"""From where intervals count: with a fixed one a schedule is the same however often it is applied."""

_NUM_STARTS = 200
_YEAR = timedelta(days=366)
"""Of a night's starts so many are looked at, over so long a time: the short day in spring is among them."""

_SLACK = timedelta(hours=2)
"""What a run without a budget may take until a night is missed: 26 hours in which none ends, where one starts daily."""

_SHORTEST = timedelta(seconds=10)
"""In which Prefect can find that nothing has happened."""


def schedule_of(night: PlannedNight) -> "CronSchedule | IntervalSchedule":
    """The night's schedule.

    Raises:
        NightsError: the cron is none.
    """
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if night.cron is None:
        interval = timedelta(hours=night.every_hours or 0)
        return IntervalSchedule(interval=interval, anchor_date=_ANCHOR, timezone=night.timezone)
    try:
        return CronSchedule(cron=night.cron, timezone=night.timezone)
    except ValidationError as error:
        raise NightsError(
            f"cron: {night.cron!r} is no cron.",
            where=night.where,
            remedy='Write five fields, as in "0 2 * * *": minute, hour, day, month, weekday.',
        ) from error


def check(nights: Iterable[PlannedNight]) -> None:
    """See that every schedule is one, and leaves a run the time that its budget allows.

    Raises:
        NightsError: one is not, or starts a run while the last may go on.
    """
    for night in nights:
        shortest = min(gaps(night))
        allowed = _allowed(night)
        if allowed is not None and allowed > shortest:
            raise NightsError(
                f"The schedule overlaps itself: a run starts {_in_words(shortest)} after another, and may take "
                f"{_in_words(allowed)} (budget.max_hours).",
                where=night.where,
                remedy="Start runs less often, or lower budget.max_hours.",
            )


def missed_after(night: PlannedNight) -> timedelta:
    """After what time in which nothing ended a night was missed."""
    if night.missed_after_hours is not None:
        return max(timedelta(hours=night.missed_after_hours), _SHORTEST)
    return max(gaps(night)) + max(_SLACK, _allowed(night) or _SLACK)


def _allowed(night: PlannedNight) -> timedelta | None:
    """What a run may take."""
    hours = night.resolved.budget.max_hours
    return None if hours is None else timedelta(hours=hours)


def gaps(night: PlannedNight) -> list[timedelta]:
    """The times between starts, over a year or more."""
    schedule = schedule_of(night)
    if night.cron is None:
        return [timedelta(hours=night.every_hours or 0)]
    from prefect.server.schemas.schedules import CronSchedule

    try:
        times = CronSchedule(**schedule.model_dump()).get_dates(_NUM_STARTS, start=_ANCHOR, end=_ANCHOR + _YEAR)
        dates = asyncio.run(times)
    except ValueError as error:
        raise NightsError(
            f"cron: {night.cron!r} never comes round.", where=night.where, remedy="Name a day that the month has."
        ) from error
    if len(dates) < 2:
        return [_YEAR]
    return [timedelta(seconds=later.timestamp() - earlier.timestamp()) for earlier, later in pairwise(dates)]


def _in_words(time: timedelta) -> str:
    hours = time / timedelta(hours=1)
    return f"{hours:g} h" if hours >= 1 else f"{hours * 60:g} min"
