"""τ over time: the champion's as a line with its interval, every night's draft as a dot, promotions and roll backs.

Places are percent of the figure's width and height, so that the page can stretch it and leave its text as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from deepspec.evaluation.results import Interval
from deepspec.reports.dashboard.axes import Scale, Tick, TimeAxis, scale_of, time_axis
from deepspec.reports.dashboard.feed import LogEntry, Measured, Model, Night
from deepspec.reports.formatting import interval, number

_MEAN = "mean"
_ROOM, _ROOM_WIDE = 14.0, 4.0
"""Percent of the width that a version's label takes: of a narrow figure, and of a wide one."""


@dataclass(frozen=True)
class Dot:
    """A night's draft."""

    x: float
    y: float
    status: str


@dataclass(frozen=True)
class Reign:
    """The time of one champion: its τ as a level line, its interval as a band.

    Attributes:
        x, width, y: of the line.
        rise: where the line before it ended; None: there was none.
        top, height: of the band; None: there is no interval.
    """

    x: float
    width: float
    y: float
    rise: float | None
    top: float | None = None
    height: float | None = None


@dataclass(frozen=True)
class Mark:
    """A promotion or a roll back.

    Attributes:
        x, y: where the new champion's line begins.
        kind: of the log's entry.
        label: the version.
        tip: all of it in words.
        room: for the label: "always", where the figure is "wide", or "never".
    """

    x: float
    y: float
    kind: str
    label: str
    tip: str
    room: Literal["always", "wide", "never"]


@dataclass(frozen=True)
class TauChart:
    """One figure.

    Attributes:
        key: of what was measured, as in the feed.
        title: the same in words.
        now: the champion's τ; an em dash where there is none.
        summary: what the figure shows, in words.
        x_ticks, y_ticks: of its axes.
        dots, reigns, marks: what is drawn.
    """

    key: str
    title: str
    now: str
    summary: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    dots: Sequence[Dot]
    reigns: Sequence[Reign]
    marks: Sequence[Mark]


@dataclass(frozen=True)
class _Ruler:
    """A champion while it serves."""

    entry: LogEntry
    begin: datetime
    end: datetime
    measured: Measured


def charts_of(model: Model, until: datetime) -> list[TauChart]:
    """A figure for the mean, each domain of several benchmarks, each benchmark and the gate split.

    Args:
        model: with its nights and log.
        until: where the axis ends.
    """
    judged = [night for night in model.nights if night.measured]
    begins = [datetime.fromisoformat(night.began) for night in model.nights[:1]]
    if not judged:
        return []
    axis = time_axis(begins[0], until)
    keys = sorted({key for night in judged for key in night.measured}, key=_order)
    found = (_chart(model, key, judged, axis) for key in keys)
    return [chart for chart in found if chart is not None]


def title_of(key: str) -> str:
    """What a key of the feed is called."""
    if key == _MEAN:
        return "mean"
    if key == "gate":
        return "gate split"
    basis, _, name = key.partition("/")
    return f"{name} (domain)" if basis == "domain" else name


def _order(key: str) -> tuple[int, str]:
    return (_MEAN, "domain", "benchmark", "gate").index(key.partition("/")[0]), key


def _chart(model: Model, key: str, judged: Sequence[Night], axis: TimeAxis) -> TauChart | None:
    drafts = [(night, part) for night in judged if (part := night.measured.get(key)) is not None and part.tau]
    rulers = list(_rulers(model, key, axis))
    values = [part.tau for _, part in drafts if part.tau is not None]
    values += [end for ruler in rulers for end in _ends(ruler.measured)]
    if not values:
        return None
    scale = scale_of(values, 6 if key == _MEAN else 5)
    last = rulers[-1].measured if rulers else None
    return TauChart(
        key=key,
        title=title_of(key),
        now=number(last.tau if last is not None else None, 2),
        summary=_summary(model, key, drafts, rulers),
        x_ticks=axis.ticks,
        y_ticks=scale.ticks,
        dots=[
            Dot(axis.place(datetime.fromisoformat(night.ended)), scale.place(part.tau or 0.0), night.status)
            for night, part in drafts
        ],
        reigns=list(_reigns(rulers, axis, scale)),
        marks=list(_marks(rulers, axis, scale)),
    )


def _rulers(model: Model, key: str, axis: TimeAxis) -> Iterator[_Ruler]:
    """Each champion of the span that was measured here."""
    by_version: Mapping[str, Measured] = {
        night.version: night.measured[key] for night in model.nights if night.version and key in night.measured
    }
    champion = model.champion
    if champion is not None and champion.version and key in champion.measured:
        by_version = {champion.version: champion.measured[key], **by_version}
    entries = [entry for entry in model.log if entry.kind != "unblock"]
    ends = [datetime.fromisoformat(entry.when) for entry in entries[1:]] + [axis.end]
    for entry, end in zip(entries, ends, strict=True):
        measured = by_version.get(entry.version or "")
        if measured is not None and measured.tau is not None and end > axis.begin:
            yield _Ruler(entry, datetime.fromisoformat(entry.when), end, measured)


def _ends(measured: Measured) -> list[float]:
    return [value for value in (measured.tau, *(measured.tau_ci95 or ())) if value is not None]


def _reigns(rulers: Sequence[_Ruler], axis: TimeAxis, scale: Scale) -> Iterator[Reign]:
    before: _Ruler | None = None
    for ruler in rulers:
        x, end = axis.place(ruler.begin), axis.place(ruler.end)
        follows = before is not None and before.end == ruler.begin
        rise = scale.place(before.measured.tau or 0.0) if before is not None and follows else None
        bounds: Interval | None = ruler.measured.tau_ci95
        top = scale.place(bounds[1]) if bounds is not None else None
        height = round(scale.place(bounds[0]) - top, 2) if bounds is not None and top is not None else None
        yield Reign(x, round(end - x, 2), scale.place(ruler.measured.tau or 0.0), rise, top, height)
        before = ruler


def _marks(rulers: Sequence[_Ruler], axis: TimeAxis, scale: Scale) -> Iterator[Mark]:
    taken = taken_wide = -100.0
    for ruler in rulers:
        entry, measured = ruler.entry, ruler.measured
        x = axis.place(ruler.begin)
        if ruler.begin < axis.begin:
            continue
        room: Literal["always", "wide", "never"] = "never"
        if x - taken_wide > _ROOM_WIDE:
            room, taken_wide = "wide", x
        if x - taken > _ROOM:
            room, taken, taken_wide = "always", x, x
        what = "rolled back to" if entry.kind == "rollback" else "promoted"
        tip = f"{ruler.begin:%d %b %Y}: {what} {version(entry.version)}, τ {number(measured.tau, 2)}"
        tip += f" ({interval(measured.tau_ci95)})" if measured.tau_ci95 else ""
        yield Mark(x, scale.place(measured.tau or 0.0), entry.kind, version(entry.version), tip, room)


def version(name: str | None) -> str:
    """A version as it is shown."""
    return f"v{name}" if name else "unregistered"


def _summary(model: Model, key: str, drafts: Sequence[tuple[Night, Measured]], rulers: Sequence[_Ruler]) -> str:
    rolled_back = sum(ruler.entry.kind == "rollback" for ruler in rulers)
    promoted = len(rulers) - rolled_back
    said = [
        f"τ of {model.name}, {title_of(key)}: {len(drafts)} drafts, {promoted} promotions, {rolled_back} roll backs."
    ]
    if rulers:
        first, last = rulers[0], rulers[-1]
        said.append(
            f"The champion's went from {number(first.measured.tau, 2)} ({version(first.entry.version)}) to "
            f"{number(last.measured.tau, 2)} ({version(last.entry.version)})."
        )
    return " ".join(said)
