"""What pages are made with: templates whose values are escaped, the style sheet, and the figures of one page."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.reports.plots import drawing as plots
from deepspec.store.records import JsonRecord

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


INDEX = "plots.json"
"""A file next to a page's figures: what each was drawn from."""


@dataclass(frozen=True)
class LabelledFigure:
    """One of several figures in a row, with the words that screen readers read for it."""

    drawing: "Markup | None"
    label: str


@dataclass(frozen=True)
class CaptionedFigure:
    """A figure with the sentence under it."""

    drawing: "Markup | None"
    caption: str


class Figures:
    """The figures of a page: drawn once, set into the page as markup, and written next to it as files.

    Args:
        prefix: in front of the figures' names, where a page has the same ones of several drafts.
        earlier: where figures of another page were written; those that would come out equal are not drawn again.
    """

    def __init__(self, prefix: str = "", earlier: Path | None = None) -> None:
        self._prefix = prefix
        self._earlier = earlier
        self._drawn: dict[str, tuple[str, plots.RenderedFigure]] = {}

    def part(self, prefix: str) -> "Figures":
        """Figures of the same page under a prefix of their own."""
        part = Figures(self._prefix + prefix, self._earlier)
        part._drawn = self._drawn
        return part

    def add(self, drawing: plots.Drawing | None) -> "Markup | None":
        """Draw a figure; its markup, or None for None."""
        if drawing is None:
            return None
        drawing = replace(drawing, name=self._prefix + drawing.name)
        rendered = _taken_over(self._earlier, drawing) or drawing.rendered()
        self._drawn[drawing.name] = drawing.content, rendered
        return markup(rendered.svg)

    def labelled(self, drawings: Iterable[tuple[plots.Drawing | None, str]]) -> list[LabelledFigure]:
        """Draw figures that share a row, each with its label; those that are None are left out."""
        return [LabelledFigure(self.add(drawing), label) for drawing, label in drawings if drawing is not None]

    def write(self, folder: Path) -> None:
        """Write every figure that was drawn as SVG and PNG, and what each was drawn from as a digest."""
        folder.mkdir(parents=True, exist_ok=True)
        index = {}
        for name, (content, rendered) in self._drawn.items():
            (folder / f"{name}.svg").write_text(rendered.svg_file, encoding="utf-8")
            (folder / f"{name}.png").write_bytes(rendered.png_file)
            index[name] = {"content": content, "files": _digest(rendered)}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _taken_over(folder: Path | None, drawing: plots.Drawing) -> plots.RenderedFigure | None:
    """The figure as it was written before; None if it was another, or the files are not as they were."""
    if folder is None or not drawing.content:
        return None
    try:
        known = json.loads((folder / INDEX).read_text(encoding="utf-8"))[drawing.name]
        svg, png = (folder / f"{drawing.name}.{ending}" for ending in ("svg", "png"))
        rendered = plots.RenderedFigure(svg.read_text(encoding="utf-8"), png.read_bytes())
        return rendered if known == {"content": drawing.content, "files": _digest(rendered)} else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(rendered: plots.RenderedFigure) -> str:
    return sha256(rendered.svg_file.encode() + rendered.png_file).hexdigest()


def write_page(out_dir: Path, name: str, page: object, figures: Figures, data: JsonRecord) -> Path:
    """Write a page as `report.html`, its figures into `plots`, and what it is written from as `report.json`.

    Args:
        out_dir: existing folder; files of an earlier page in it are replaced.
        name, page: as in `render`.
        figures: those on the page.
        data: kept in the same folder.

    Returns:
        The page's path.
    """
    path = out_dir / "report.html"
    path.write_text(render(name, page), encoding="utf-8")
    figures.write(out_dir / "plots")
    content = json.dumps(data.to_json(), indent=1, ensure_ascii=False)
    (out_dir / "report.json").write_text(content, encoding="utf-8")
    return path


def render(name: str, page: object) -> str:
    """A page of the template `name`; what is set into it is escaped.

    Args:
        name: of the template.
        page: a dataclass; its fields are the template's variables.
    """
    return _template(name).render(style=style(), **vars(page))


def markup(text: str) -> "Markup":
    """Our own drawings and style: the only text that is inserted as it is."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  made by this room, never from outside


def style() -> "Markup":
    """The pages' style sheet, to be set into them."""
    return asset("report.css")


def asset(name: str) -> "Markup":
    """A file of ours that is set into pages as it is: a style sheet, or a script."""
    return markup((resources.files("deepspec.reports") / "templates" / name).read_text("utf-8"))


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deepspec.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
