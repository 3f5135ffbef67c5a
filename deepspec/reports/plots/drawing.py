"""What a figure is: a drawing that needs nothing else, as SVG that takes the page's text colour, and as PNG.

`Drawing` turns what a function draws into text or bytes. matplotlib is imported only when something is
drawn, without its global state (pyplot), so it works in any thread and without a display.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from hashlib import sha256
from importlib import resources
from importlib.metadata import version
from typing import Any, ParamSpec, TypedDict, TypeVar

PALETTE = ("#3b82c4", "#d9822b", "#3a9a5b", "#b5527f", "#8a6fc9", "#7d8a2e", "#1fa3a3", "#c4503b")
"""Mid tones: legible on white and on near-black."""

_MARKERS = "osD^vP*X"
_INK = "#0b1e2d"  # stands for the page's text colour until an SVG is written
_GROUND = '<rect width="100%" height="100%" fill="white"/>'

Draw = Callable[[Any], None]
"""Draws into a matplotlib Axes."""

ABOVE: Mapping[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
"""Where a legend stands if intervals may go anywhere in the figure."""

Described = ParamSpec("Described")
Line = TypeVar("Line")


@dataclass(frozen=True)
class RenderedFigure:
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

    def rendered(self) -> RenderedFigure:
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
        return RenderedFigure(f"{head}>{_GROUND}{body}", bitmap.getvalue())


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
    room = resources.files("deepspec.reports.plots")
    code = b"".join((room / name).read_bytes() for name in ("drawing.py", "acceptance.py", "load.py"))
    return f"matplotlib {version('matplotlib')}, {sha256(code).hexdigest()}"


class LineStyle(TypedDict):
    """What distinguishes a line: matplotlib's arguments."""

    color: str
    marker: str
    markersize: float


def styled(lines: Iterable[Line]) -> Iterator[tuple[LineStyle, Line]]:
    """Each line with its colour and marker, so that lines can be distinguished without colours, too."""
    for place, line in enumerate(lines):
        color, marker = PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]
        yield {"color": color, "marker": marker, "markersize": 5}, line


def label_axes(axes: Any, x: str, y: str | None = None, *, grid: str = "both") -> None:
    """Name the axes, and draw a faint grid along `grid` of them."""
    axes.set_xlabel(x)
    if y is not None:
        axes.set_ylabel(y)
    axes.grid(axis=grid, alpha=0.18)


def add_legend(axes: Any, **where: Any) -> None:
    """A legend without a frame."""
    axes.legend(frameon=False, fontsize="small", **where)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib as mpl

    # The first figure on a machine logs that it builds a list of fonts.
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
