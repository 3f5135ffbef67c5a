"""What pages are made with: templates whose values are escaped, the style sheet, and the figures of one page."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.evaluation import plots

if TYPE_CHECKING:
    from jinja2 import Template


class Figures:
    """The figures of a page: drawn once, set into the page as markup, and written beside it as files.

    Args:
        prefix: in front of the figures' names, where a page has the same ones of several drafts.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._drawn: dict[str, plots.Rendered] = {}

    def part(self, prefix: str) -> "Figures":
        """Figures of the same page under a prefix of their own."""
        part = Figures(self._prefix + prefix)
        part._drawn = self._drawn
        return part

    def add(self, drawing: plots.Drawing | None) -> Any:
        """Draw a figure; its markup, or None for None."""
        if drawing is None:
            return None
        drawing = replace(drawing, name=self._prefix + drawing.name)
        rendered = self._drawn[drawing.name] = drawing.rendered()
        return markup(rendered.svg)

    def write(self, folder: Path) -> None:
        """Write every figure that was drawn as SVG and PNG."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, drawing in self._drawn.items():
            (folder / f"{name}.svg").write_text(drawing.svg_file, encoding="utf-8")
            (folder / f"{name}.png").write_bytes(drawing.png_file)


def render(name: str, values: Mapping[str, Any]) -> str:
    """A page of the template `name`; what is set into it is escaped."""
    return _template(name).render(style=style(), **values)


def markup(text: str) -> Any:
    """Our own drawings and style: the only text that is inserted as it is."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  made by this room, never from outside


def style() -> Any:
    """The pages' style sheet, to be set into them."""
    return markup((resources.files("deepspec.evaluation") / "templates" / "report.css").read_text("utf-8"))


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deepspec.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
