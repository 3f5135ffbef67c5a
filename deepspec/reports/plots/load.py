"""The figures about verifying less: thresholds and load; see drawing.py for what a drawing is.

Sources: the DSpark paper's Figure 5 (static thresholds) and Figure 8 (throughput under load).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from deepspec.evaluation.results import DecodingMode, Interval, LoadPoint, LoadRun, ThresholdPoint
from deepspec.reports.plots.drawing import ABOVE, PALETTE, Drawing, add_legend, figure, label_axes, styled

_SIZE = (4.2, 3.3)


@figure
def threshold_rates(points: Sequence[ThresholdPoint]) -> Drawing | None:
    """Accepted share of the drafted, and of the verified, by threshold; None if nothing was measured."""
    lines = {
        "accepted / drafted": _measured_points((point.threshold, point.draft_acceptance) for point in points),
        "verify rate": _measured_points((point.threshold, point.verify_rate) for point in points),
    }
    if not any(lines.values()):
        return None

    def draw(axes: Any) -> None:
        for style, (label, course) in styled(lines.items()):
            if course:
                axes.plot(*zip(*course, strict=True), label=label, **style)
        axes.set_ylim(0, 1.02)
        label_axes(axes, "confidence threshold", "rate")
        add_legend(axes)

    return Drawing("threshold-rates", _SIZE, draw)


@figure
def threshold_lengths(points: Sequence[ThresholdPoint]) -> Drawing | None:
    """τ with its interval, and the mean proposal, by threshold; None if nothing was measured."""
    lengths = _measured_points((point.threshold, point.tau) for point in points)
    if not lengths:
        return None

    def draw(axes: Any) -> None:
        errors = _errors([(point.tau, point.tau_ci95) for point in points if point.tau is not None])
        axes.errorbar(*zip(*lengths, strict=True), yerr=errors, color=PALETTE[0], marker="o", label="τ", capsize=2)
        proposed = _measured_points((point.threshold, point.mean_proposed) for point in points if point.tau is not None)
        if proposed:
            axes.plot(*zip(*proposed, strict=True), color=PALETTE[1], marker="s", linestyle="--", label="proposed")
        axes.set_ylim(bottom=0)
        label_axes(axes, "confidence threshold", "tokens per round")
        add_legend(axes)

    return Drawing("threshold-lengths", _SIZE, draw)


@figure
def throughput(points: Sequence[LoadPoint], modes: Sequence[DecodingMode]) -> Drawing | None:
    """Tokens per second of all requests together by concurrency, one line per way of decoding."""
    lines = _by_mode(points, modes)
    if not lines:
        return None

    def draw(axes: Any) -> None:
        for style, (mode, parts) in styled(lines.items()):
            axes.errorbar(
                [concurrency for concurrency, _ in parts],
                [run.tokens_per_second for _, run in parts],
                yerr=_errors([(run.tokens_per_second, run.ci95) for _, run in parts]),
                label=mode,
                capsize=2,
                **style,
            )
        ticks = sorted({concurrency for parts in lines.values() for concurrency, _ in parts})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        label_axes(axes, "requests at once", "tokens per second, all requests")
        add_legend(axes, **ABOVE, ncols=3)

    return Drawing("load-throughput", _SIZE, draw)


@figure
def trade_off(points: Sequence[LoadPoint], modes: Sequence[DecodingMode]) -> Drawing | None:
    """Tokens per second of all requests against those of each, one line per way of decoding; right and up is better."""
    lines = _by_mode(points, modes)
    if not lines:
        return None

    def draw(axes: Any) -> None:
        for style, (mode, parts) in styled(lines.items()):
            axes.errorbar(
                [run.request_tokens_per_second for _, run in parts],
                [run.tokens_per_second for _, run in parts],
                xerr=_errors([(run.request_tokens_per_second, run.request_ci95) for _, run in parts]),
                yerr=_errors([(run.tokens_per_second, run.ci95) for _, run in parts]),
                label=mode,
                capsize=2,
                **style,
            )
            for concurrency, run in parts:
                axes.annotate(
                    str(concurrency),
                    (run.request_tokens_per_second, run.tokens_per_second),
                    textcoords="offset points",
                    xytext=(4, 4),
                    fontsize="x-small",
                )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        label_axes(axes, "tokens per second, each request", "tokens per second, all requests")
        add_legend(axes, **ABOVE, ncols=3)

    return Drawing("load-trade-off", _SIZE, draw)


def _by_mode(
    points: Sequence[LoadPoint], modes: Sequence[DecodingMode]
) -> dict[DecodingMode, list[tuple[int, LoadRun]]]:
    """Per way of decoding what was measured of it, each with its concurrency."""
    found = {
        mode: [(point.concurrency, run) for point in points if (run := point.run(mode)) is not None] for mode in modes
    }
    return {mode: parts for mode, parts in found.items() if parts}


def _measured_points(pairs: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    return [(at, value) for at, value in pairs if value is not None]


def _errors(measured: Sequence[tuple[float, Interval | None]]) -> list[list[float]]:
    """Distances below and above each value, as matplotlib wants them; 0 where there is no interval."""
    bounds = [interval or (value, value) for value, interval in measured]
    # A median of few repeats may lie on its interval's edge, and rounding then beyond it.
    below = [max(0.0, value - low) for (value, _), (low, _) in zip(measured, bounds, strict=True)]
    above = [max(0.0, high - value) for (value, _), (_, high) in zip(measured, bounds, strict=True)]
    return [below, above]
