"""Axes: where round numbers and days stand between two ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis.

    Attributes:
        place: in percent of its length, from the left or the top.
        label: what stands there.
        spare: whether a narrow window leaves it out.
    """

    place: float
    label: str
    spare: bool = False


@dataclass(frozen=True)
class Scale:
    """Numbers on an axis of which the greatest is at the top."""

    low: float
    high: float
    ticks: Sequence[Tick]

    def place(self, value: float) -> float:
        """Percent from the top."""
        return _percent(self.high - value, self.high - self.low)


def scale_of(values: Sequence[float], most_ticks: int = 6) -> Scale:
    """A scale with round ticks that holds all values; `values` are not empty."""
    low, high = min(values), max(values)
    spread = max(high - low, 0.05 * abs(high), 0.02)
    step = _step(spread / (most_ticks - 1))
    first, last = math.floor((low - 0.02 * spread) / step), math.ceil((high + 0.02 * spread) / step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if f"{step:e}".startswith("2.5") else 0)
    scale = Scale(first * step, last * step, ())
    ticks = [Tick(scale.place(n * step), f"{n * step:.{digits}f}") for n in range(first, last + 1)]
    return Scale(scale.low, scale.high, ticks)


def _step(least: float) -> float:
    size = float(10 ** math.floor(math.log10(least)))
    return next(size * part for part in _ROUND if size * part >= least * (1 - 1e-9))


@dataclass(frozen=True)
class TimeAxis:
    """Times from left to right."""

    begin: datetime
    end: datetime
    ticks: Sequence[Tick]

    def place(self, moment: datetime) -> float:
        """Percent from the left, between 0 and 100."""
        return _percent((moment - self.begin).total_seconds(), (self.end - self.begin).total_seconds())


def time_axis(begin: datetime, end: datetime) -> TimeAxis:
    """An axis with ticks at midnights: days, weeks or firsts of months, by its length."""
    end = max(end, begin + timedelta(days=1))
    axis = TimeAxis(begin, end, ())
    days = [begin.date() + timedelta(days=n) for n in range(1, (end - begin).days + 2)]
    ticks = []
    for nth, day in enumerate(_marked(days)):
        place = axis.place(datetime(day.year, day.month, day.day, tzinfo=begin.tzinfo))
        if 1 < place < 97:
            ticks.append(Tick(place, _label(day, months=len(days) > 75), spare=nth % 2 == 1))
    return TimeAxis(begin, end, ticks)


def _marked(days: Sequence[date]) -> list[date]:
    if len(days) <= 10:
        return list(days)
    if len(days) <= 75:
        return [day for day in days if day.weekday() == 0]
    firsts = [day for day in days if day.day == 1]
    return firsts if len(firsts) <= 7 else [day for day in firsts if day.month % 2 == 1]


def _label(day: date, *, months: bool) -> str:
    if months:
        return f"{day:%b} {day.year}" if day.month == 1 else f"{day:%b}"
    return f"{day.day} {day:%b}"


def _percent(part: float, whole: float) -> float:
    return round(min(100.0, max(0.0, 100 * part / whole)), 2)
