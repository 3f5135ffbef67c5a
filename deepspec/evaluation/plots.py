"""The report's figures, as drawings that need nothing else: SVG that takes the page's text colour, and PNG.

Each function draws one figure from plain numbers; `Drawing` turns it into text or bytes. matplotlib is imported only
when something is drawn, without its global state (pyplot), so it works in any thread and without a display.

Legend: K draft slots, counted from 1.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from hashlib import sha256
from importlib import resources
from importlib.metadata import version
from typing import Any, ParamSpec

PALETTE = ("#3b82c4", "#d9822b", "#3a9a5b", "#b5527f", "#8a6fc9", "#7d8a2e", "#1fa3a3", "#c4503b")
"""Mid tones: legible on white and on near-black."""

_MARKERS = "osD^vP*X"
_INK = "#0b1e2d"  # stands for the page's text colour until an SVG is written
_GROUND = '<rect width="100%" height="100%" fill="white"/>'
_MAX_POINTS = 400

Draw = Callable[[Any], None]
"""Draws into a matplotlib Axes."""

Described = ParamSpec("Described")


@dataclass(frozen=True)
class Rendered:
    """A figure in all its forms.

    Attributes:
        svg_file: as vectors, on white.
        png_file: as a bitmap, on white.
    """

    svg_file: str
    png_file: bytes

    @property
    def svg(self) -> str:
        """An `<svg>` element for a page: transparent, its ink is `currentColor`, its ids are its own."""
        return self.svg_file.replace(_GROUND, "", 1).replace(_INK, "currentColor")


@dataclass(frozen=True)
class Drawing:
    """One figure: a file name without ending, and how to draw it.

    Attributes:
        name: letters, digits and dashes.
        size_inches: width and height; pages scale it to their width.
        draw: draws into an Axes.
        content: digest of what is drawn and of how; set by `figure`.
    """

    name: str
    size_inches: tuple[float, float]
    draw: Draw
    content: str = ""

    def rendered(self) -> Rendered:
        """Draw it; text in the SVG stays text."""
        from matplotlib.figure import Figure

        with _style(self.name):
            figure = Figure(figsize=self.size_inches, layout="constrained")
            self.draw(figure.add_subplot())
            vector, bitmap = io.StringIO(), io.BytesIO()
            # No date, or equal figures would differ.
            figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
            figure.set_layout_engine("none")  # what was found for the first form holds for the second
            figure.savefig(bitmap, format="png", dpi=120)
        text = vector.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and they recur in every figure
        head, body = text.split(">", 1)
        head = re.sub(r' (width|height)="[^"]*"', "", head)
        return Rendered(f"{head}>{_GROUND}{body}", bitmap.getvalue())


def figure(describe: Callable[Described, Drawing | None]) -> Callable[Described, Drawing | None]:
    """Give what a function draws the digest of all that it depends on: numbers, names, code and library."""

    @wraps(describe)
    def described(*args: Described.args, **kwargs: Described.kwargs) -> Drawing | None:
        drawing = describe(*args, **kwargs)
        if drawing is None:
            return None
        known = [_drawn_by(), describe.__name__, args, kwargs]
        return replace(drawing, content=sha256(json.dumps(known, default=str).encode()).hexdigest())

    return described


@cache
def _drawn_by() -> str:
    room = resources.files("deepspec.evaluation")
    code = b"".join((room / name).read_bytes() for name in ("plots.py", "load_plots.py"))
    return f"matplotlib {version('matplotlib')}, {sha256(code).hexdigest()}"


@figure
def acceptance_lengths(benchmarks: Mapping[str, Mapping[str, Any]], num_draft_tokens: int) -> Drawing | None:
    """τ of each benchmark with its 95 % interval, on the scale from 1 to K+1; None if nothing was measured."""
    rows = [(name, part["tau"], part.get("tau_ci95")) for name, part in benchmarks.items() if part.get("tau")]
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
        axes.set_xlabel("acceptance length τ, tokens per round")
        axes.grid(axis="x", alpha=0.18)

    return Drawing("acceptance-length", (6.4, 0.9 + 0.38 * len(rows)), draw)


@figure
def acceptance_by_slot(
    parts: Mapping[str, Mapping[str, Any]], which: str, name: str | None = None, *, title: str | None = None
) -> Drawing | None:
    """Acceptance at slots 1 … K, one line per part; None if nothing was measured.

    Args:
        parts: label -> metrics: benchmarks of one draft, or drafts on one benchmark.
        which: `conditional` or `prefix`.
        name: the drawing's name; default: after `which`.
        title: above a figure that stands beside others; such a one is small.
    """
    lines = {label: part.get(f"{which}_acceptance") or [] for label, part in parts.items()}
    if not any(rate is not None for rates in lines.values() for rate in rates):
        return None

    def draw(axes: Any) -> None:
        longest = max(len(rates) for rates in lines.values())
        for style, (label, rates) in zip(line_styles(), lines.items(), strict=False):
            axes.plot(range(1, len(rates) + 1), _gaps(rates), label=_short(label), **style)
        axes.set_xticks(range(1, longest + 1))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("draft slot k")
        axes.set_ylabel(f"{which} acceptance")
        if title is not None:
            axes.set_title(_short(title), fontsize="medium")
        axes.grid(alpha=0.18)
        axes.legend(frameon=False, fontsize="small")

    return Drawing(name or f"{which}-acceptance", (6.4, 3.6) if title is None else (4.2, 3.4), draw)


@figure
def differences(labels: Sequence[str], drafts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Drawing | None:
    """Differences in τ with their intervals, a row per label and a mark per draft; None if there is none.

    Args:
        labels: of the rows, from the top.
        drafts: draft -> label -> `difference` and `ci95`.
    """
    shown = [label for label in labels if any(_known(parts, label) for parts in drafts.values())]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        axes.axvline(0, color=_INK, linewidth=1, alpha=0.6)
        step = 0.6 / max(1, len(drafts))
        for nth, (style, (draft, parts)) in enumerate(zip(line_styles(), drafts.items(), strict=False)):
            rows = [(place, parts[label]) for place, label in enumerate(shown) if _known(parts, label)]
            places = [place + step * (nth - (len(drafts) - 1) / 2) for place, _ in rows]
            axes.plot([part["difference"] for _, part in rows], places, linestyle="none", label=_short(draft), **style)
            for at, (_, part) in zip(places, rows, strict=True):
                if part.get("ci95"):
                    axes.plot(
                        part["ci95"], [at, at], color=style["color"], linewidth=3, alpha=0.5, solid_capstyle="butt"
                    )
        axes.set_yticks(range(len(shown)), [_short(label) for label in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("difference in τ, tokens per round")
        axes.grid(axis="x", alpha=0.18)
        axes.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1))

    height = 1.2 + 0.2 * len(drafts) + len(shown) * max(0.38, 0.2 * len(drafts))
    return Drawing("differences", (6.4, height), draw)


@figure
def reliability(slots: Sequence[Sequence[Mapping[str, Any]]], title: str, name: str) -> Drawing | None:
    """Predicted against observed survival of the prefix of length k, one line per slot; None if nothing was observed.

    Args:
        slots: per slot its bins, each with `confidence` and `observed` (means, 0 … 1) and `rounds`, which is the area
            of its point. Of many slots, `shown_slots` are drawn.
        title: e.g. "before calibration".
        name: the drawing's name.
    """
    lines = {slot: slots[slot - 1] for slot in shown_slots(slots)}
    if not lines:
        return None

    def draw(axes: Any) -> None:
        largest = max(part["rounds"] for bins in lines.values() for part in bins)
        axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1, alpha=0.6)
        for style, (slot, bins) in zip(line_styles(), lines.items(), strict=False):
            predicted, observed = [part["confidence"] for part in bins], [part["observed"] for part in bins]
            sizes = [6 + 60 * part["rounds"] / largest for part in bins]
            axes.plot(predicted, observed, color=style["color"], linewidth=1.2, label=f"k = {slot}")
            axes.scatter(predicted, observed, s=sizes, color=style["color"], marker=style["marker"], alpha=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_aspect("equal")
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("predicted survival of the prefix")
        axes.set_ylabel("observed")
        axes.grid(alpha=0.18)
        axes.legend(frameon=False, fontsize="small")

    return Drawing(name, (3.6, 3.7), draw)


def shown_slots(slots: Sequence[Sequence[Any]], most: int = 4) -> list[int]:
    """Slots (from 1) with observations; of more than `most` the first, the last and some between."""
    observed = [slot for slot, bins in enumerate(slots, 1) if bins]
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
        for style, (metric, points) in zip(line_styles(), lines.items(), strict=False):
            kept = points[:: thinning(points)]
            few = {"marker": style["marker"]} if len(kept) <= 20 else {}
            axes.plot(*zip(*kept, strict=True), label=_short(metric), linewidth=1.4, color=style["color"], **few)
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.18)
        axes.legend(frameon=False, fontsize="small")

    return Drawing(name, (6.4, 3.2), draw)


def thinning(points: Sequence[Any]) -> int:
    """Every how many points one is drawn."""
    return -(-len(points) // _MAX_POINTS) if points else 1


def line_styles() -> Iterator[dict[str, Any]]:
    """Colour and marker per line, without end; told apart without colours, too."""
    place = 0
    while True:
        yield {"color": PALETTE[place % len(PALETTE)], "marker": _MARKERS[place % len(_MARKERS)], "markersize": 5}
        place += 1


def _known(parts: Mapping[str, Mapping[str, Any]], label: str) -> bool:
    return (parts.get(label) or {}).get("difference") is not None


def _gaps(rates: Sequence[float | None]) -> list[float]:
    return [float("nan") if rate is None else rate for rate in rates]


def _short(name: str, limit: int = 40) -> str:
    """A name that leaves room for the figure, its end kept; a leading underscore would hide it from the legend."""
    start = limit // 3
    name = name if len(name) <= limit else f"{name[:start]}…{name[start + 1 - limit :]}"
    return f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib as mpl

    # The first figure on a machine builds a list of fonts, which is nobody's concern.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings = {
        **dict.fromkeys(inked, _INK),
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # ids differ between the figures of one page, not between two runs
        "text.parse_math": False,  # names come from users: a `$` is a `$`
        "font.size": 9.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with warnings.catch_warnings():
        # A name in a script that the bundled font lacks is still right in the SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with mpl.rc_context(settings):
            yield
