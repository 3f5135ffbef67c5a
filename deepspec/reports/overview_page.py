"""One small page about a run of several algorithms: their results side by side, and a link to each one's own report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepspec.reports.formatting import MACRO, interval, number, signed, times
from deepspec.reports.rendering import render


def write_overview(out_dir: Path, record: Mapping[str, Any], pages: Mapping[str, str]) -> Path:
    """Write the page.

    Args:
        out_dir: existing folder.
        record: the run's record in the form of `run.json`, where `evaluation` is a list; with `seeds` (see
            `deepspec.evaluation.compare.seeds.side_by_side`) if several were trained.
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
        "study": over_seeds(record.get("seeds")),
    }
    page.write_text(render("overview.html.j2", content), encoding="utf-8")
    return page


def over_seeds(seeds: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The table over seeds, and the paired differences, as text; None for a run with one seed.

    Args:
        seeds: as `run.json` has it, from `deepspec.evaluation.compare.seeds.side_by_side`.
    """
    if not seeds:
        return None
    columns = [*seeds["prompts"], "macro"]
    return {
        "seeds": ", ".join(map(str, seeds["seeds"])),
        "columns": [MACRO if name == "macro" else name for name in columns],
        "prompts": ", ".join(f"{count} of {name}" for name, count in seeds["prompts"].items()),
        "rows": [
            {
                "algorithm": algorithm,
                "cells": [
                    {
                        "value": number(part[name]["tau"], 2),
                        "interval": interval(part[name]["ci95"]),
                        "by_seed": " ".join(number(tau, 2) for tau in part[name]["by_seed"]),
                    }
                    for name in columns
                ],
                "cpu": number(sum(seeds["budget"][algorithm]["cpu_seconds"]), 0),
                "steps": number(max(seeds["budget"][algorithm]["steps"]), 0),
                "epochs": number(seeds["budget"][algorithm]["epochs"], 0),
            }
            for algorithm, part in seeds["tau"].items()
        ],
        "differences": [
            {
                "name": f"{pair['of']} \N{MINUS SIGN} {pair['against']}",
                "cells": [
                    {
                        "value": signed(pair["benchmarks"][name]["difference"], 2),
                        "interval": interval(pair["benchmarks"][name]["ci95"]),
                        "clear": _excludes_zero(pair["benchmarks"][name]["ci95"]),
                    }
                    for name in columns
                ],
            }
            for pair in seeds["differences"]
        ],
    }


def _excludes_zero(bounds: Sequence[float]) -> bool:
    return bounds[0] > 0 or bounds[1] < 0


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
