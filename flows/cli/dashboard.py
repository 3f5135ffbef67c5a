"""The command `dashboard`: the page about a store's models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.terminal import AsJson, artifact_store, print_json, show_lines, show_table

if TYPE_CHECKING:
    from deepspec.reports.dashboard.feed import Feed


def dashboard(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where index.html and dashboard.json are written.")
    ] = Path("dashboard"),
    as_json: AsJson = False,
) -> None:
    """Write one page about every model: champions, τ over time, nights, cost, what is served; it needs no server.

    Every run that ends, and every promotion and roll back, writes the same page into the store.

    Example: deepspec dashboard --out dashboard
    """
    from deepspec.dashboard.publish import FEED, PAGE, write

    feed = write(artifact_store(), out)
    if as_json:
        print_json({"page": str(out / PAGE), "data": str(out / FEED), "feed": feed.to_json()})
        return
    _show_models(feed)
    show_lines(f"page: {out / PAGE}", f"data: {out / FEED}")


def _show_models(feed: "Feed") -> None:
    show_table(
        ["model", "champion", "tau", "runs", "last"],
        [
            [
                model.name,
                model.champion.version or model.champion.digest[:12] if model.champion is not None else "",
                _tau(model.champion.measured["mean"].tau)
                if model.champion and "mean" in model.champion.measured
                else "",
                str(len(model.nights)),
                f"{model.nights[-1].ended[:16]} {model.nights[-1].status}" if model.nights else "",
            ]
            for model in feed.models
        ],
    )


def _tau(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
