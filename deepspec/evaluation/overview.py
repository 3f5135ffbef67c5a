"""One small page about a run of several algorithms: their results side by side, and a link to each one's own report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspec.evaluation.formatting import MACRO, interval, number, times
from deepspec.evaluation.rendering import render


def write_overview(out_dir: Path, record: Mapping[str, Any], pages: Mapping[str, str]) -> Path:
    """Write the page.

    Args:
        out_dir: existing folder.
        record: the run's record in the form of `run.json`, where `evaluation` is a list.
        pages: algorithm -> its report, relative to `out_dir`.

    Returns:
        The page's path.
    """
    page = out_dir / "report.html"
    content = {
        "title": record["recipe"],
        "run_id": record["run_id"],
        "status": record["status"],
        "parts": [
            {"algorithm": part["algorithm"], "page": pages[part["algorithm"]], "rows": _rows(part)}
            for part in record["evaluation"]
            if part["algorithm"] in pages
        ],
    }
    page.write_text(render("overview.html.j2", content), encoding="utf-8")
    return page


def _rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    parts = {**evaluation["benchmarks"], MACRO: evaluation["macro"]}
    return [
        {
            "name": name,
            "tau": number(part.get("tau"), 3),
            "interval": interval(part.get("tau_ci95")),
            "speedup": times(part.get("speedup")),
        }
        for name, part in parts.items()
    ]
