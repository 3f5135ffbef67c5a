"""One self-contained page about several drafts, evaluated on the same prompts: who is better, where, how surely.

    path = write_comparison(folder, data)      # folder/report.html, folder/report.json, folder/plots/*.svg|png

It is made of the sections of run_page.py, each draft's own below what compares them. Not here: paired statistics
(evaluation/compare/drafts.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepspec.reports.formatting import MACRO, NOT_MEASURED, interval, number, signed, signed_interval, times
from deepspec.reports.plots import acceptance as plots
from deepspec.reports.rendering import Figures, render
from deepspec.reports.run_page import recipe_text
from deepspec.reports.sections.acceptance import evaluated, means

GATE_SPLIT = "gate split"

Drafts = Sequence[Mapping[str, Any]]


def write_comparison(out_dir: Path, data: Mapping[str, Any]) -> Path:
    """Write the page, its figures and its data.

    Args:
        out_dir: made if missing; files of an earlier report in it are replaced.
        data: `comparison_id`, `recipe_name`, `recipe` (as in run_page.py);
            `drafts`: records `name`, `kind`, `key`, `digest`, `evaluation`, `calibration`, `samples`;
            `differences`: one per draft but the first, `name` and what `comparison.differences` gives against the
            first.

    Returns:
        The page's path.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = Figures()
    page = out_dir / "report.html"
    page.write_text(render("comparison.html.j2", _page(data, figures)), encoding="utf-8")
    figures.write(out_dir / "plots")
    content = json.dumps(dict(data), indent=1, ensure_ascii=False, default=str)
    (out_dir / "report.json").write_text(content, encoding="utf-8")
    return page


def compared_rows(drafts: Drafts) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Label and each draft's part, of every benchmark that one of them has, of domains, all together, and the gate."""
    names = dict.fromkeys(name for draft in drafts for name in draft["evaluation"].get("benchmarks") or {})
    for name in names:
        yield name, [(draft["evaluation"].get("benchmarks") or {}).get(name) or {} for draft in drafts]
    averages = [dict(means(draft["evaluation"])) for draft in drafts]
    for label in dict.fromkeys(label for part in averages for label in part):
        yield label, [part.get(label) or {} for part in averages]
    if any(draft["evaluation"].get("gate") for draft in drafts):
        yield GATE_SPLIT, [draft["evaluation"].get("gate") or {} for draft in drafts]


def compared_differences(difference: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A draft's differences under the labels of `compared_rows`."""
    benchmarks = difference.get("benchmarks") or {}
    domains = {
        f"{name} ({len(part['benchmarks'])})": part
        for name, part in (difference.get("domains") or {}).items()
        if len(part["benchmarks"]) > 1
    }
    macro = {MACRO: difference["macro"]} if len(benchmarks) > 1 and difference.get("macro") else {}
    gate = {GATE_SPLIT: difference["gate"]} if difference.get("gate") else {}
    return {**benchmarks, **domains, **macro, **gate}


def tendency(part: Mapping[str, Any]) -> str:
    """What an interval says of a difference: "higher", "lower" or "no clear difference"; a dash without one."""
    bounds = part.get("ci95")
    if not bounds:
        return NOT_MEASURED
    if bounds[0] > 0:
        return "higher"
    return "lower" if bounds[1] < 0 else "no clear difference"


def _page(data: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    drafts: Drafts = data["drafts"]
    found = [(part["name"], compared_differences(part)) for part in data.get("differences") or ()]
    rows = list(compared_rows(drafts))
    labels = [label for label, _ in rows]
    return {
        "title": str(data.get("recipe_name") or "draft models"),
        "comparison_id": str(data.get("comparison_id") or NOT_MEASURED),
        "recipe_name": data.get("recipe_name"),
        "recipe": recipe_text(data.get("recipe")),
        "names": [str(draft["name"]) for draft in drafts],
        "drafts": [
            {"name": str(draft["name"]), "key": _key(draft), "digest": draft.get("digest") or NOT_MEASURED}
            for draft in drafts
        ],
        "lengths": [{"name": label, "cells": [_length(part) for part in parts]} for label, parts in rows],
        "speeds": [
            {"name": label, "cells": [_speed(part) for part in parts]} for label, parts in rows if label != GATE_SPLIT
        ],
        "differences": {
            "names": [name for name, _ in found],
            "rows": [
                {"name": label, "cells": [_difference(parts.get(label) or {}) for _, parts in found]}
                for label in labels
            ],
            "drawing": figures.add(plots.differences(labels, dict(found))),
        }
        if found
        else None,
        "positions": list(_positions(drafts, figures)),
        "parts": [
            {"name": str(draft["name"]), **evaluated(draft, figures.part(f"draft-{place}-"))}
            for place, draft in enumerate(drafts, start=1)
        ],
    }


def _key(draft: Mapping[str, Any]) -> str:
    return f"{draft['kind']}/{draft['key']}" if draft.get("key") else "a directory"


def _length(part: Mapping[str, Any]) -> dict[str, str]:
    return {"value": number(part.get("tau"), 3), "interval": interval(part.get("tau_ci95"))}


def _speed(part: Mapping[str, Any]) -> dict[str, str]:
    return {"value": times(part.get("speedup")), "interval": interval(part.get("speedup_ci95"))}


def _difference(part: Mapping[str, Any]) -> dict[str, str]:
    found = tendency(part)
    return {
        "value": signed(part.get("difference"), 3),
        "interval": signed_interval(part.get("ci95"), 3),
        "tendency": found,
        "tone": {"higher": "good", "lower": "bad"}.get(found, ""),
        "prompts": number(part.get("prompts"), 0) if "prompts" in part else "",
    }


def _positions(drafts: Drafts, figures: Figures) -> Iterator[dict[str, Any]]:
    """Conditional acceptance by slot on each benchmark, a line per draft."""
    names = dict.fromkeys(name for draft in drafts for name in draft["evaluation"].get("benchmarks") or {})
    for place, name in enumerate(names, start=1):
        parts = {
            str(draft["name"]): draft["evaluation"]["benchmarks"][name]
            for draft in drafts
            if name in (draft["evaluation"].get("benchmarks") or {})
        }
        drawing = plots.acceptance_by_slot(parts, "conditional", f"positions-{place}", title=name)
        if drawing is not None:
            yield {"drawing": figures.add(drawing), "label": f"Conditional acceptance by slot on {name}"}
