"""What a page says of one draft's evaluation: tables as text, figures, and the sentences under them.

Each function turns a part of an evaluation or a calibration into what a template shows; None stands for what is
missing. Not here: measuring, drawing (plots/acceptance.py), the sections about load and samples (load.py, samples.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.compare.results import MeanDifference
from deepspec.evaluation.results import (
    Acceptance,
    Answered,
    BenchmarkResult,
    DomainResult,
    Evaluation,
    GateResult,
    MeanResult,
    Rates,
    Sample,
)
from deepspec.reports.formatting import MACRO, interval, not_applicable, number, times
from deepspec.reports.plots import acceptance as plots
from deepspec.reports.rendering import Figures, LabelledFigure
from deepspec.reports.sections.load import LoadSection, ThresholdSection, load, threshold_sweep
from deepspec.reports.sections.samples import ShownSample, samples

if TYPE_CHECKING:
    from markupsafe import Markup

Measured: TypeAlias = BenchmarkResult | MeanResult | GateResult
"""What a row of a table is about."""
Which: TypeAlias = Literal["conditional", "prefix"]
OfDomain = TypeVar("OfDomain", DomainResult, MeanDifference)

_POSITION_CAPTIONS: Mapping[Which, str] = {
    "conditional": "Share of rounds in which the draft's token k was accepted, of the rounds that proposed at "
    "least k tokens and accepted all before it; that number of rounds stands below each rate.",
    "prefix": "Share of rounds in which tokens 1 to k were all accepted, of the rounds that proposed at least k "
    "tokens; that number of rounds stands below each rate.",
}


@dataclass(frozen=True)
class AcceptanceRow:
    """Acceptance of a benchmark, a mean or the gate split."""

    name: str
    domain: str
    tau: str
    interval: str
    proposed: str
    verify_rate: str
    entropy: str
    rounds: str
    prompts: str
    turns: str


@dataclass(frozen=True)
class SpeedRow:
    """Speed on a benchmark, or a mean of speedups."""

    name: str
    speedup: str
    interval: str
    speed: str
    plain: str
    prompts: str


@dataclass(frozen=True)
class TimeRow:
    """Where the seconds of speculative decoding went, and the plain total."""

    name: str
    prefill: str
    draft: str
    verify: str
    other: str
    plain: str


@dataclass(frozen=True)
class Tile:
    """A number that is shown large."""

    value: str
    label: str


@dataclass(frozen=True)
class Results:
    """Acceptance lengths and speeds: the first section."""

    rows: Sequence[AcceptanceRow]
    means: Sequence[AcceptanceRow]
    speeds: Sequence[SpeedRow]
    mean_speeds: Sequence[SpeedRow]
    tiles: Sequence[Tile]
    lengths: "Markup | None"
    lengths_caption: str
    time: Sequence[TimeRow]
    left_out: Sequence[str]


@dataclass(frozen=True)
class PositionCell:
    """A rate, and the rounds behind it."""

    rate: str
    trials: int | None


@dataclass(frozen=True)
class PositionRow:
    """A benchmark's rates."""

    name: str
    cells: Sequence[PositionCell]


@dataclass(frozen=True)
class PositionSection:
    """Acceptance by draft position: figure and table."""

    drawing: "Markup | None"
    caption: str
    positions: Sequence[int]
    rows: Sequence[PositionRow]


@dataclass(frozen=True)
class CalibrationRow:
    """One measure, by draft position."""

    name: str
    cells: Sequence[str]


@dataclass(frozen=True)
class CalibrationSection:
    """Reliability diagrams and the table of measures; or the note that there is nothing to calibrate."""

    rows: Sequence[CalibrationRow] = ()
    positions: Sequence[int] = ()
    diagrams: Sequence[LabelledFigure] = ()
    caption: str = ""
    note: str | None = None


@dataclass(frozen=True)
class DraftSections:
    """Everything a page says of one draft's evaluation; None: missing."""

    gate: AcceptanceRow | None
    results: Results | None
    conditional: PositionSection | None
    prefix: PositionSection | None
    calibration: CalibrationSection | None
    threshold: ThresholdSection | None
    load: LoadSection | None
    samples: Sequence[ShownSample] | None


def evaluated(
    evaluation: Evaluation | None,
    calibration: CalibrationResult | None,
    answers: Sequence[Sample] | None,
    figures: Figures,
) -> DraftSections:
    """Everything a page says of one draft's evaluation.

    Args:
        evaluation, calibration, answers: of the draft (`answers`: its samples), each None where there is none.
        figures: takes what is drawn.
    """
    benchmarks = evaluation.benchmarks if evaluation is not None else {}
    gate = evaluation.gate if evaluation is not None else None
    return DraftSections(
        gate=_acceptance_row("gate", gate) if gate is not None else None,
        results=_results(evaluation, figures) if evaluation is not None and benchmarks else None,
        conditional=_by_position(benchmarks, "conditional", figures),
        prefix=_by_position(benchmarks, "prefix", figures),
        calibration=_calibration(calibration, figures) if calibration is not None else None,
        threshold=threshold_sweep(evaluation.threshold_sweep if evaluation is not None else None, figures),
        load=load(evaluation.load if evaluation is not None else None, figures),
        samples=samples(answers),
    )


def num_draft_tokens(benchmarks: Mapping[str, BenchmarkResult]) -> int:
    """K, as far as the evaluation shows it: the longest list of acceptance rates."""
    lengths = (
        len(rates) for part in benchmarks.values() for rates in (part.conditional_acceptance, part.prefix_acceptance)
    )
    return max(lengths, default=1)


def means(evaluation: Evaluation) -> list[tuple[str, MeanResult]]:
    """What stands below several benchmarks: the means of every domain that has several, and of all."""
    if len(evaluation.benchmarks) < 2:
        return []
    return [*several(evaluation.domains).items(), (MACRO, evaluation.macro or MeanResult(tau=None, speedup=None))]


def several(domains: Mapping[str, OfDomain]) -> dict[str, OfDomain]:
    """The domains with several benchmarks by label, which says how many: a domain may be called like a benchmark."""
    return {f"{name} ({len(part.benchmarks)})": part for name, part in domains.items() if len(part.benchmarks) > 1}


def _results(evaluation: Evaluation, figures: Figures) -> Results:
    benchmarks = evaluation.benchmarks
    macro = evaluation.macro
    averages = means(evaluation)
    lengths = [(name, part.tau, part.tau_ci95) for name, part in benchmarks.items() if part.tau is not None]
    rounds = sum(part.rounds for part in benchmarks.values())
    prompts = sum(part.prompts for part in benchmarks.values())
    caption = (
        f"Acceptance length τ per benchmark with its 95 % interval, over {rounds} rounds of {prompts} prompts; "
        f"at most {num_draft_tokens(benchmarks) + 1} tokens can be committed in a round."
    )
    tau, speedup = (macro.tau, macro.speedup) if macro is not None else (None, None)
    return Results(
        rows=[_acceptance_row(name, part) for name, part in benchmarks.items()],
        means=[_acceptance_row(name, part) for name, part in averages],
        speeds=[_speed_row(name, part) for name, part in benchmarks.items()],
        mean_speeds=[_mean_speed_row(name, part) for name, part in averages],
        tiles=[
            Tile(number(tau, 2), "tokens per round (τ), mean over benchmarks"),
            Tile(times(speedup), "speed against plain decoding, mean over benchmarks"),
        ],
        lengths=figures.add(plots.acceptance_lengths(lengths, num_draft_tokens(benchmarks))),
        lengths_caption=caption,
        time=[_time_row(name, part) for name, part in benchmarks.items()],
        left_out=[text for name, part in benchmarks.items() if (text := _left_out(name, part))],
    )


def _acceptance_row(name: str, part: Measured) -> AcceptanceRow:
    measured = part if isinstance(part, Acceptance) else None
    benchmark = part if isinstance(part, BenchmarkResult) else None
    return AcceptanceRow(
        name=name,
        domain=(benchmark.domain if benchmark is not None else None) or "",
        tau=number(part.tau, 3),
        interval=interval(part.tau_ci95),
        proposed=number(measured.mean_proposed if measured is not None else None, 2),
        verify_rate=number(measured.verify_rate if measured is not None else None, 3),
        entropy=number(benchmark.target_entropy_nats if benchmark is not None else None, 3),
        rounds=number(measured.rounds if measured is not None else None, 0),
        prompts=number(measured.prompts if measured is not None else None, 0),
        turns=number(part.turns if isinstance(part, Answered) else None, 0),
    )


def _speed_row(name: str, part: BenchmarkResult) -> SpeedRow:
    return SpeedRow(
        name=name,
        speedup=times(part.speedup),
        interval=interval(part.speedup_ci95),
        speed=number(part.tokens_per_second, 0),
        plain=number(part.plain_tokens_per_second, 0),
        prompts=number(part.speed_prompts, 0),
    )


def _mean_speed_row(name: str, part: MeanResult) -> SpeedRow:
    dash = number(None, 0)
    return SpeedRow(name=name, speedup=times(part.speedup), interval=dash, speed=dash, plain=dash, prompts=dash)


def _time_row(name: str, part: BenchmarkResult) -> TimeRow:
    return TimeRow(
        name=name,
        prefill=number(part.prefill_seconds, 2),
        draft=number(part.draft_seconds, 2),
        verify=number(part.verify_seconds, 2),
        other=number(part.other_seconds, 2),
        plain=number(part.plain_seconds, 2),
    )


def _left_out(name: str, part: BenchmarkResult) -> str:
    """What a benchmark's numbers do not cover, in words; empty if they cover all of it."""
    counts = [(len(part.skipped), "skipped"), (len(part.failed), "failed")]
    words = " and ".join(f"{count} {kind}" for count, kind in counts if count)
    return f"{name}: {words} of {sum(count for count, _ in counts) + part.prompts} prompts" if words else ""


def _by_position(benchmarks: Mapping[str, BenchmarkResult], which: Which, figures: Figures) -> PositionSection | None:
    lines = {name: rates_of(part, which) for name, part in benchmarks.items()}
    drawing = plots.acceptance_by_position(lines, which)
    if drawing is None:
        return None
    count = num_draft_tokens(benchmarks)
    rows = []
    for name, part in benchmarks.items():
        trials = part.conditional_trials if which == "conditional" else part.prefix_trials
        cells = [
            PositionCell(number(_at(lines[name], k), 3), trials[k] if k < len(trials) else None) for k in range(count)
        ]
        rows.append(PositionRow(name, cells))
    return PositionSection(figures.add(drawing), _POSITION_CAPTIONS[which], range(1, count + 1), rows)


def rates_of(part: Acceptance, which: Which) -> Rates:
    """The rates of one kind."""
    return part.conditional_acceptance if which == "conditional" else part.prefix_acceptance


def _calibration(calibration: CalibrationResult, figures: Figures) -> CalibrationSection:
    if not calibration.applicable:
        return CalibrationSection(note=not_applicable(calibration.reason))
    found = [(name, values, digits) for name, values, digits in _measures(calibration) if values]
    count = max((len(values) for _, values, _ in found), default=0)
    rows = [
        CalibrationRow(name, [number(_at(values, k), digits) for k in range(count)]) for name, values, digits in found
    ]
    before, after = calibration.reliability_before, calibration.reliability_after
    diagrams = figures.labelled(
        (
            plots.reliability(bins, f"{when} calibration", f"reliability-{when}"),
            f"Reliability diagram {when} calibration",
        )
        for when, bins in (("before", before), ("after", after))
    )
    drawn = plots.shown_positions(after) or plots.shown_positions(before)
    counts = [sum(part.rounds for part in before[position - 1]) for position in drawn]
    caption = (
        "Predicted probability that the first k drafted tokens all survive, against how often they did, on prompts "
        "that the temperatures were not fitted on. One point per bin, its area after the rounds in it; rounds "
        "behind k = " + ", ".join(f"{position}: {count}" for position, count in zip(drawn, counts, strict=True)) + "."
    )
    return CalibrationSection(rows, range(1, count + 1), diagrams, caption)


def _measures(found: CalibrationResult) -> Iterator[tuple[str, Rates, int]]:
    """What the table has, with the number of digits."""
    yield "rounds", found.trials, 0
    yield "temperature", found.temperatures, 3
    yield "calibration error before", found.ece_before, 4
    yield "calibration error after", found.ece_after, 4
    yield "equal-mass error before", found.ece_mass_before, 4
    yield "equal-mass error after", found.ece_mass_after, 4
    yield "Brier score before", found.brier_before, 4
    yield "Brier score after", found.brier_after, 4
    yield "ROC-AUC before", found.auc_before, 3
    yield "ROC-AUC after", found.auc_after, 3
    yield "ROC-AUC of position k alone", found.conditional_auc, 3


def _at(values: Rates, place: int) -> float | None:
    return values[place] if place < len(values) else None
