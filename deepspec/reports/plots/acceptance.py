"""The figures about acceptance, calibration and training: each function draws one from plain numbers.

Legend: K draft positions, counted from 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.evaluation.calibration.results import ReliabilityBin
from deepspec.evaluation.compare.results import Difference
from deepspec.evaluation.results import Interval, Rates
from deepspec.reports.plots.drawing import _INK, ABOVE, PALETTE, Drawing, add_legend, figure, label_axes, styled

_MAX_POINTS = 400


@figure
def acceptance_lengths(rows: Sequence[tuple[str, float, Interval | None]], num_draft_tokens: int) -> Drawing | None:
    """τ of each benchmark with its 95 % interval, on the scale from 1 to K+1; None if nothing was measured.

    Args:
        rows: name, τ and interval of each benchmark.
        num_draft_tokens: K.
    """
    if not rows:
        return None

    def draw(axes: Any) -> None:
        for place, (_, tau, interval) in enumerate(rows):
            if interval:
                axes.plot(interval, [place, place], color=PALETTE[0], linewidth=3, alpha=0.5, solid_capstyle="butt")
            axes.plot([tau], [place], "o", color=PALETTE[0], markersize=7)
        axes.set_yticks(range(len(rows)), [_short(name) for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(1, num_draft_tokens + 1)
        label_axes(axes, "acceptance length τ, tokens per round", grid="x")

    return Drawing("acceptance-length", (6.4, 0.9 + 0.38 * len(rows)), draw)


@figure
def acceptance_by_position(
    lines: Mapping[str, Rates], which: str, name: str | None = None, *, title: str | None = None
) -> Drawing | None:
    """Acceptance at draft positions 1 … K, one line per label; None if nothing was measured.

    Args:
        lines: label -> rates: benchmarks of one draft, or drafts on one benchmark.
        which: `conditional` or `prefix`.
        name: the drawing's name; default: after `which`.
        title: above a figure that is one of several in a row; such a figure is small.
    """
    if not any(rate is not None for rates in lines.values() for rate in rates):
        return None

    def draw(axes: Any) -> None:
        longest = max(len(rates) for rates in lines.values())
        for style, (label, rates) in styled(lines.items()):
            axes.plot(range(1, len(rates) + 1), _gaps(rates), label=_short(label), **style)
        axes.set_xticks(range(1, longest + 1))
        axes.set_ylim(0, 1.02)
        if title is not None:
            axes.set_title(_short(title), fontsize="medium")
        label_axes(axes, "draft position k", f"{which} acceptance")
        add_legend(axes)

    return Drawing(name or f"{which}-acceptance", (6.4, 3.6) if title is None else (4.2, 3.4), draw)


@figure
def differences(labels: Sequence[str], drafts: Mapping[str, Mapping[str, Difference]]) -> Drawing | None:
    """Differences in τ with their intervals, a row per label and a mark per draft; None if there is none.

    Args:
        labels: of the rows, from the top.
        drafts: draft -> label -> its difference.
    """
    known = {
        draft: {label: part for label, part in parts.items() if part.difference is not None}
        for draft, parts in drafts.items()
    }
    shown = [label for label in labels if any(label in parts for parts in known.values())]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        axes.axvline(0, color=_INK, linewidth=1, alpha=0.6)
        step = 0.6 / max(1, len(drafts))
        for nth, (style, (draft, parts)) in enumerate(styled(known.items())):
            rows = [(place, parts[label]) for place, label in enumerate(shown) if label in parts]
            places = [place + step * (nth - (len(drafts) - 1) / 2) for place, _ in rows]
            axes.plot([part.difference for _, part in rows], places, linestyle="none", label=_short(draft), **style)
            for at, (_, part) in zip(places, rows, strict=True):
                if part.ci95 is not None:
                    axes.plot(part.ci95, [at, at], color=style["color"], linewidth=3, alpha=0.5, solid_capstyle="butt")
        axes.set_yticks(range(len(shown)), [_short(label) for label in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        label_axes(axes, "difference in τ, tokens per round", grid="x")
        add_legend(axes, **ABOVE)

    height = 1.2 + 0.2 * len(drafts) + len(shown) * max(0.38, 0.2 * len(drafts))
    return Drawing("differences", (6.4, height), draw)


@figure
def reliability(positions: Sequence[Sequence[ReliabilityBin]], title: str, name: str) -> Drawing | None:
    """Predicted against observed survival of the prefix of length k, one line per position; None without observations.

    Args:
        positions: per position its bins; the area of a point is its rounds. Of many, `shown_positions` are drawn.
        title: e.g. "before calibration".
        name: the drawing's name.
    """
    lines = {position: positions[position - 1] for position in shown_positions(positions)}
    if not lines:
        return None

    def draw(axes: Any) -> None:
        largest = max(part.rounds for bins in lines.values() for part in bins)
        axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1, alpha=0.6)
        for style, (position, bins) in styled(lines.items()):
            predicted, observed = [part.confidence for part in bins], [part.observed for part in bins]
            sizes = [6 + 60 * part.rounds / largest for part in bins]
            axes.plot(predicted, observed, color=style["color"], linewidth=1.2, label=f"k = {position}")
            axes.scatter(predicted, observed, s=sizes, color=style["color"], marker=style["marker"], alpha=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_aspect("equal")
        axes.set_title(title, fontsize="medium")
        label_axes(axes, "predicted survival of the prefix", "observed")
        add_legend(axes)

    return Drawing(name, (3.6, 3.7), draw)


def shown_positions(positions: Sequence[Sequence[ReliabilityBin]], most: int = 4) -> list[int]:
    """Positions (from 1) with observations; of more than `most` the first, the last and some between."""
    observed = [position for position, bins in enumerate(positions, 1) if bins]
    if len(observed) <= most:
        return observed
    return [observed[round(place * (len(observed) - 1) / (most - 1))] for place in range(most)]


@figure
def curves(series: Mapping[str, Sequence[tuple[int, float]]], name: str, label: str) -> Drawing | None:
    """Metrics over training steps; long ones are thinned to every n-th point (`thinning`)."""
    lines = {metric: points for metric, points in series.items() if points}
    if not lines:
        return None

    def draw(axes: Any) -> None:
        for style, (metric, points) in styled(lines.items()):
            kept = points[:: thinning(points)]
            few = {"marker": style["marker"]} if len(kept) <= 20 else {}
            axes.plot(*zip(*kept, strict=True), label=_short(metric), linewidth=1.4, color=style["color"], **few)
        label_axes(axes, "training step", label)
        add_legend(axes)

    return Drawing(name, (6.4, 3.2), draw)


def thinning(points: Sequence[Any]) -> int:
    """Every how many points one is drawn."""
    return -(-len(points) // _MAX_POINTS) if points else 1


def _gaps(rates: Sequence[float | None]) -> list[float]:
    return [float("nan") if rate is None else rate for rate in rates]


def _short(name: str, limit: int = 40) -> str:
    """A name that leaves room for the figure, its end kept; a leading underscore would hide it from the legend."""
    start = limit // 3
    name = name if len(name) <= limit else f"{name[:start]}…{name[start + 1 - limit :]}"
    return f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name
