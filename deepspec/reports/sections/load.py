"""What a page says of verifying less: the sweep over confidence thresholds, and throughput under load.

As acceptance.py: parts of an evaluation become text and figures; None stands for what is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepspec.evaluation.results import DecodingMode, LoadRun, LoadTest, StepSeconds, ThresholdSweep
from deepspec.reports.formatting import interval, not_applicable, number
from deepspec.reports.plots import load as load_plots
from deepspec.reports.rendering import Figures, LabelledFigure

_MODES: Mapping[DecodingMode, str] = {
    "plain": "plain decoding",
    "fixed": "all drafted tokens verified",
    "scheduled": "what is verified is scheduled",
}


@dataclass(frozen=True)
class ThresholdRow:
    """What one threshold came to."""

    threshold: str
    tau: str
    interval: str
    proposed: str
    accepted: str
    verify_rate: str
    rounds: str


@dataclass(frozen=True)
class ThresholdSection:
    """The sweep's figures and table; or the note that it does not apply."""

    note: str | None
    figures: Sequence[LabelledFigure] = ()
    caption: str = ""
    rows: Sequence[ThresholdRow] = ()


@dataclass(frozen=True)
class ModeRow:
    """One way of decoding at one concurrency."""

    concurrency: str
    mode: str
    speed: str
    interval: str
    request: str
    request_interval: str
    tau: str
    proposed: str


@dataclass(frozen=True)
class CostRow:
    """What a step takes, in milliseconds; empty where it stands in the row above."""

    requests: str
    verified: str
    drafting: str
    plain: str


@dataclass(frozen=True)
class LoadSection:
    """Throughput under load: figures, table, and what a step costs."""

    figures: Sequence[LabelledFigure]
    caption: str
    rows: Sequence[ModeRow]
    costs: Sequence[CostRow] | None


def threshold_sweep(sweep: ThresholdSweep | None, figures: Figures) -> ThresholdSection | None:
    """The sweep over static confidence thresholds: its figures and its table."""
    if sweep is None:
        return None
    if not sweep.applicable:
        return ThresholdSection(note=not_applicable(sweep.reason))
    if not sweep.points:
        return None
    caption = (
        f"A drafted token is verified only while its confidence, and that of all before it, reaches the threshold; "
        f"measured on {number(sweep.prompts, 0)} prompts. A higher threshold proposes fewer tokens, of which "
        "more are accepted, and commits fewer in a round."
    )
    rows = [
        ThresholdRow(
            threshold=number(point.threshold, 2),
            tau=number(point.tau, 3),
            interval=interval(point.tau_ci95),
            proposed=number(point.mean_proposed, 2),
            accepted=number(point.draft_acceptance, 3),
            verify_rate=number(point.verify_rate, 3),
            rounds=number(point.rounds, 0),
        )
        for point in sweep.points
    ]
    drawings = (
        (load_plots.threshold_rates(sweep.points), "Share of drafted tokens accepted, by threshold"),
        (load_plots.threshold_lengths(sweep.points), "Acceptance length, by threshold"),
    )
    return ThresholdSection(None, figures.labelled(drawings), caption, rows)


def load(measured: LoadTest | None, figures: Figures) -> LoadSection | None:
    """Throughput and speed per request at several concurrencies, for each way of decoding."""
    if measured is None or not measured.points:
        return None
    points = measured.points
    found = [mode for mode in measured.modes if any(point.run(mode) is not None for point in points)]
    drawings = (
        (load_plots.throughput(points, found), "Throughput of all requests together, by concurrency"),
        (load_plots.trade_off(points, found), "Throughput against the speed that each request sees"),
    )
    rows = [
        _mode_row(point.concurrency, mode, run)
        for point in points
        for mode in found
        if (run := point.run(mode)) is not None
    ]
    costs = _costs(measured.costs) if measured.costs is not None else None
    return LoadSection(figures.labelled(drawings), _load_caption(measured, found), rows, costs)


def _load_caption(measured: LoadTest, modes: Sequence[DecodingMode]) -> str:
    known = "; ".join(f"{mode}: {_MODES[mode]}" for mode in modes)
    count = number(measured.threads, 0)
    threads = f" with {count} thread{'s' if count != '1' else ''}" if measured.device == "cpu" else ""
    repeats = (
        f"Every point is the mean of {number(measured.repeats, 0)} runs, in which the ways of decoding took turns, with"
        " its 95 % interval."
    )
    notes = [
        f"Tokens per second by requests at once ({known}).",
        f"Each request is answered with at most {number(measured.max_new_tokens, 0)} new tokens.",
        repeats,
        f"Measured on: {measured.device}{threads}.",
    ]
    if measured.by_rows:
        notes.append(_rule(measured.by_rows))
    if measured.most_rows is not None:
        notes.append(f"Scheduling drafts nothing while more than {measured.most_rows} requests are decoded at once.")
    return " ".join(notes)


def _rule(by_rows: Mapping[str, str]) -> str:
    """What the scheduler does at which load."""
    spelled = {"none": "drafts nothing", "all": "verifies everything", "scheduled": "chooses"}
    parts = [
        f"{mode} with {', '.join(sorted((rows for rows, chosen in by_rows.items() if chosen == name), key=int))}"
        for name, mode in spelled.items()
        if name in by_rows.values()
    ]
    return f"By the number of requests alone, scheduling {'; '.join(parts)}."


def _mode_row(concurrency: int, mode: DecodingMode, run: LoadRun) -> ModeRow:
    return ModeRow(
        concurrency=number(concurrency, 0),
        mode=mode,
        speed=number(run.tokens_per_second, 0),
        interval=interval(run.ci95, 0),
        request=number(run.request_tokens_per_second, 1),
        request_interval=interval(run.request_ci95, 1),
        tau=number(run.tau, 2),
        proposed=number(run.mean_proposed, 2),
    )


def _costs(costs: StepSeconds) -> list[CostRow] | None:
    """What a step takes, by requests and by the tokens that the target verifies in it; the scheduler goes by it."""
    rows = []
    for requests in sorted({*costs.drafting_seconds, *costs.plain_seconds}, key=_as_number):
        drafting: Mapping[str, float | None] = costs.drafting_seconds.get(requests) or {"": None}
        course = sorted(drafting.items(), key=lambda item: _as_number(item[0]))
        for place, (verified, seconds) in enumerate(course):
            undrafted = _milliseconds(costs.plain_seconds.get(requests)) if place == 0 else ""
            rows.append(CostRow(requests, verified, _milliseconds(seconds), undrafted))
    return rows or None


def _milliseconds(seconds: float | None) -> str:
    return number(None if seconds is None else seconds * 1000, 2)


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
