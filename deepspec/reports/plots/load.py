"""The figures about verifying less: thresholds and load; see drawing.py for what a drawing is.

Sources: the DSpark paper's Figure 5 (static thresholds) and Figure 8 (throughput under load).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.reports.plots.drawing import PALETTE, Drawing, figure, line_styles

_SIZE = (4.2, 3.3)

Points = Sequence[Mapping[str, Any]]


@figure
def threshold_rates(points: Points) -> Drawing | None:
    """Accepted share of the drafted, and of the verified, by threshold; None if nothing was measured."""
    lines = {
        "accepted / drafted": _course(points, "threshold", "draft_acceptance"),
        "verify rate": _course(points, "threshold", "verify_rate"),
    }
    if not any(lines.values()):
        return None

    def draw(axes: Any) -> None:
        for style, (label, course) in zip(line_styles(), lines.items(), strict=False):
            if course:
                axes.plot(*zip(*course, strict=True), label=label, **style)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence threshold")
        axes.set_ylabel("rate")
        axes.grid(alpha=0.18)
        axes.legend(frameon=False, fontsize="small")

    return Drawing("threshold-rates", _SIZE, draw)


@figure
def threshold_lengths(points: Points) -> Drawing | None:
    """τ with its interval, and the mean proposal, by threshold; None if nothing was measured."""
    measured = [point for point in points if point.get("tau") is not None and point.get("threshold") is not None]
    if not measured:
        return None

    def draw(axes: Any) -> None:
        thresholds, lengths = zip(*_course(measured, "threshold", "tau"), strict=True)
        errors = _errors(measured, "tau", "tau_ci95")
        axes.errorbar(thresholds, lengths, yerr=errors, color=PALETTE[0], marker="o", label="τ", capsize=2)
        proposed = _course(measured, "threshold", "mean_proposed")
        if proposed:
            axes.plot(*zip(*proposed, strict=True), color=PALETTE[1], marker="s", linestyle="--", label="proposed")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("confidence threshold")
        axes.set_ylabel("tokens per round")
        axes.grid(alpha=0.18)
        axes.legend(frameon=False, fontsize="small")

    return Drawing("threshold-lengths", _SIZE, draw)


@figure
def throughput(points: Points, modes: Sequence[str]) -> Drawing | None:
    """Tokens per second of all requests together by concurrency, one line per way of decoding."""
    lines = _by_mode(points, modes)
    if not lines:
        return None

    def draw(axes: Any) -> None:
        for style, (mode, parts) in zip(line_styles(), lines.items(), strict=False):
            concurrencies = [part["concurrency"] for part in parts]
            speeds = [part["tokens_per_second"] for part in parts]
            axes.errorbar(
                concurrencies, speeds, yerr=_errors(parts, "tokens_per_second", "ci95"), label=mode, capsize=2, **style
            )
        ticks = sorted({part["concurrency"] for parts in lines.values() for part in parts})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests at once")
        axes.set_ylabel("tokens per second, all requests")
        axes.grid(alpha=0.18)
        _legend_above(axes)

    return Drawing("load-throughput", _SIZE, draw)


@figure
def trade_off(points: Points, modes: Sequence[str]) -> Drawing | None:
    """Tokens per second of all requests against those of each, one line per way of decoding; right and up is better."""
    lines = {
        mode: parts
        for mode, found in _by_mode(points, modes).items()
        if (parts := [part for part in found if part.get("request_tokens_per_second") is not None])
    }
    if not lines:
        return None

    def draw(axes: Any) -> None:
        for style, (mode, parts) in zip(line_styles(), lines.items(), strict=False):
            axes.errorbar(
                [part["request_tokens_per_second"] for part in parts],
                [part["tokens_per_second"] for part in parts],
                xerr=_errors(parts, "request_tokens_per_second", "request_ci95"),
                yerr=_errors(parts, "tokens_per_second", "ci95"),
                label=mode,
                capsize=2,
                **style,
            )
            for part in parts:
                axes.annotate(
                    str(part["concurrency"]),
                    (part["request_tokens_per_second"], part["tokens_per_second"]),
                    textcoords="offset points",
                    xytext=(4, 4),
                    fontsize="x-small",
                )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens per second, each request")
        axes.set_ylabel("tokens per second, all requests")
        axes.grid(alpha=0.18)
        _legend_above(axes)

    return Drawing("load-trade-off", _SIZE, draw)


def _legend_above(axes: Any) -> None:
    """Intervals may go anywhere in the figure."""
    axes.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def _by_mode(points: Points, modes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Per way of decoding what was measured of it, each with its concurrency."""
    found = {
        mode: [
            {**point[mode], "concurrency": point["concurrency"]}
            for point in points
            if (point.get(mode) or {}).get("tokens_per_second") is not None
        ]
        for mode in modes
    }
    return {mode: parts for mode, parts in found.items() if parts}


def _course(points: Points, across: str, name: str) -> list[tuple[float, float]]:
    return [(point[across], point[name]) for point in points if None not in (point.get(across), point.get(name))]


def _errors(points: Points, name: str, interval: str) -> list[list[float]]:
    """Distances below and above each point, as matplotlib wants them; 0 where there is no interval."""
    bounds = [point.get(interval) or [point[name], point[name]] for point in points]
    # A median of few repeats may lie on its interval's edge, and rounding then beyond it.
    below = [max(0.0, point[name] - low) for point, (low, _) in zip(points, bounds, strict=True)]
    above = [max(0.0, high - point[name]) for point, (_, high) in zip(points, bounds, strict=True)]
    return [below, above]
