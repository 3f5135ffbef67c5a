"""A model's own section: champion, τ, calendar, nights, promotion log, lineage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from deepspec.reports.dashboard.calendar import Month, months_of
from deepspec.reports.dashboard.costs import gpu_hours, money
from deepspec.reports.dashboard.feed import Champion, GateAnswer, LogEntry, Measured, Model, Night
from deepspec.reports.dashboard.lineage_picture import LineagePicture, picture_of
from deepspec.reports.dashboard.moments import Moment, moment
from deepspec.reports.dashboard.outcomes import WORDS
from deepspec.reports.dashboard.overview import anchor_of
from deepspec.reports.dashboard.tau_chart import TauChart, charts_of, title_of, version
from deepspec.reports.formatting import NOT_MEASURED, interval, number, signed, signed_interval, times

NIGHTS_SHOWN = 60
"""How many of the last nights are listed; the calendar and the feed have all."""
NIGHTS_OPEN = 8


@dataclass(frozen=True)
class MeasuredRow:
    """What the champion was measured at in one place; `low`, `width` and `middle` are percent of the bar's length."""

    name: str
    is_mean: bool
    tau: str
    interval: str
    gain: str
    gain_interval: str
    speedup: str
    low: float
    width: float
    middle: float


@dataclass(frozen=True)
class ChampionPart:
    """Who serves and why.

    Attributes:
        version, digest, artifact: which draft.
        since: when it became champion.
        how: by whom, and why, in a sentence.
        reason: of the person who asked, in their words.
        sentence: the verdict.
        gates: each answer in it.
        rows: what was measured.
        scale: ends of the bars' axis.
        spent, spent_more: what it has cost.
        lineage: None: nothing of it is known here.
    """

    version: str
    digest: str
    artifact: str
    since: Moment
    how: str
    reason: str
    sentence: str
    gates: Sequence[GateAnswer]
    rows: Sequence[MeasuredRow]
    scale: tuple[str, str]
    spent: str
    spent_more: str
    lineage: LineagePicture | None


@dataclass(frozen=True)
class NightRow:
    """A night in the list; `started_by` is empty for the deployment that is called like the model."""

    anchor: str
    run_id: str
    status: str
    word: str
    began: Moment
    version: str
    tau: str
    sentence: str
    spent: str
    took: str
    started_by: str


@dataclass(frozen=True)
class LogRow:
    """An entry of the promotion log."""

    number: int
    kind: str
    word: str
    version: str
    before: str
    when: Moment
    run_id: str | None
    reason: str
    sentence: str


@dataclass(frozen=True)
class ModelSection:
    """All of a model."""

    anchor: str
    name: str
    about: str
    flaw: str | None
    champion: ChampionPart | None
    charts: Sequence[TauChart]
    months: Sequence[Month]
    nights: Sequence[NightRow]
    num_nights: int
    log: Sequence[LogRow]


def section_of(place: int, model: Model, written: datetime) -> ModelSection:
    """A model's section.

    Args:
        place: of the model on the page.
        model: as the feed has it.
        written: when the feed was.
    """
    listed = [_night(place, model.name, night) for night in reversed(model.nights[-NIGHTS_SHOWN:])]
    return ModelSection(
        anchor=anchor_of(place),
        name=model.name,
        about=" · ".join(filter(None, (model.algorithm, model.target and f"for {model.target}"))),
        flaw=model.log_flaw,
        champion=_champion(model.champion) if model.champion is not None else None,
        charts=charts_of(model, written),
        months=months_of(model, written, {row.run_id: row.anchor for row in listed}),
        nights=listed,
        num_nights=len(model.nights),
        log=[_log_row(entry) for entry in reversed(model.log)],
    )


def _champion(champion: Champion) -> ChampionPart:
    named = version(champion.version)
    since = moment(champion.since)
    if champion.by == "rollback":
        how = f"A person rolled back to it on {since.text}."
    else:
        by = f"Run {champion.run_id}" if champion.run_id else "A person"
        how = f"{by} promoted it on {since.text}."
    rows, scale = _rows(champion)
    return ChampionPart(
        version=named,
        digest=champion.digest[:12],
        artifact=champion.artifact[: champion.artifact.find("/") + 13],
        since=since,
        how=how,
        reason=champion.reason,
        sentence=champion.sentence or "",
        gates=champion.gates,
        rows=rows,
        scale=scale,
        spent=money(champion.spent) if champion.spent is not None else NOT_MEASURED,
        spent_more=gpu_hours(champion.spent) if champion.spent is not None and champion.spent.amounts else "",
        lineage=picture_of(champion.lineage, named),
    )


def _rows(champion: Champion) -> tuple[list[MeasuredRow], tuple[str, str]]:
    measured = {key: part for key, part in champion.measured.items() if part.tau is not None}
    ends = [end for part in measured.values() for end in (part.tau, *(part.tau_ci95 or ())) if end is not None]
    if not ends:
        return [], ("", "")
    margin = 0.04 * (max(ends) - min(ends) or 1.0)
    low, high = max(1.0, min(ends) - margin), max(ends) + margin
    keys = sorted(measured, key=lambda key: ("mean", "domain", "benchmark", "gate").index(key.partition("/")[0]))
    return [_row(key, measured[key], champion, low, high) for key in keys], (number(low, 1), number(high, 1))


def _row(key: str, part: Measured, champion: Champion, low: float, high: float) -> MeasuredRow:
    def place(value: float) -> float:
        return round(min(100.0, max(0.0, 100 * (value - low) / (high - low))), 2)

    gain = champion.gains.get(key)
    tau = part.tau if part.tau is not None else low
    begin, end = part.tau_ci95 or (tau, tau)
    return MeasuredRow(
        name=title_of(key),
        is_mean=key == "mean",
        tau=number(part.tau, 2),
        interval=interval(part.tau_ci95),
        gain=signed(gain.difference, 2) if gain is not None else NOT_MEASURED,
        gain_interval=signed_interval(gain.ci95) if gain is not None and gain.ci95 else "",
        speedup=times(part.speedup),
        low=place(begin),
        width=round(place(end) - place(begin), 2),
        middle=place(tau),
    )


def _night(place: int, model: str, night: Night) -> NightRow:
    seconds = (datetime.fromisoformat(night.ended) - datetime.fromisoformat(night.began)).total_seconds()
    part: Mapping[str, Measured] = night.measured
    measured = part.get("mean") or part.get("gate")
    return NightRow(
        anchor=f"night-{place + 1}-{night.run_id}",  # a run may be about several models
        run_id=night.run_id,
        status=night.status,
        word=WORDS[night.status],
        began=moment(night.began),
        version=version(night.version) if night.version and part else "",
        tau=number(measured.tau, 2) if measured is not None else "",
        sentence=night.sentence or ("Nothing new to train on." if night.status == "no_change" else ""),
        spent=money(night.spent) if night.spent.gpu_seconds or any(night.spent.amounts.values()) else "",
        took=took(seconds),
        started_by="by hand" if night.night is None else night.night.removeprefix(model),
    )


def took(seconds: float) -> str:
    """A duration in the unit that fits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _log_row(entry: LogEntry) -> LogRow:
    words = {"promote": "promoted", "rollback": "rolled back", "unblock": "unblocked"}
    return LogRow(
        number=entry.number,
        kind={"promote": "promoted", "rollback": "rollback", "unblock": "no_change"}[entry.kind],
        word=words[entry.kind],
        version=version(entry.version),
        before=version(entry.from_version) if entry.from_version else "",
        when=moment(entry.when),
        run_id=entry.run_id,
        reason=entry.reason,
        sentence=entry.sentence or "",
    )
