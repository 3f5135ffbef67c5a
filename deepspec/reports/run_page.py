"""One self-contained page about one run: what the draft is worth, against whom, made from what, at what cost.

    path = write_report(folder, data)          # folder/report.html, folder/report.json, folder/plots/*.svg|png

The page needs no network and no script (a policy in it forbids both), shows the text of recipes and names escaped, and
says what is missing instead of leaving it out. Every rate stands with the number of rounds it was measured on.
Not here: measuring (evaluation/metrics.py, evaluation/calibration/fit.py) and drawing (plots/acceptance.py).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepspec.reports.formatting import NOT_MEASURED, number, quantity, spelled
from deepspec.reports.plots import acceptance as plots
from deepspec.reports.rendering import Figures, render
from deepspec.reports.sections.acceptance import evaluated

_CURVES = (
    ("training-loss", re.compile(r"loss"), "loss", "Loss"),
    (
        "training-tau",
        re.compile(r"tau"),
        "tokens per round",
        "Acceptance length: tau is decoded, tau_probabilistic what the loss expects",
    ),
    ("training-acceptance", re.compile(r"accept"), "rate", "Expected conditional acceptance, from the distributions"),
)


def write_report(out_dir: Path, data: Mapping[str, Any], *, earlier: Path | None = None) -> Path:
    """Write the page, its figures and its data.

    Args:
        out_dir: made if missing; files of an earlier report in it are replaced.
        data: any of these, None or absent where there is nothing to tell:
            `run_id`, `recipe_name`: str; `recipe`: the resolved recipe (mapping, or text);
            `evaluation`: as in run.json; `calibration`: as evaluation/calibration/fit.py writes it; `samples`: answers
            with what came of the draft, records `benchmark`, `prompt`, `answer` (records `text, round, kind`);
            `verdict`: `gates.Verdict.to_json()`; `champion`: the one it was measured against, `name, version, digest`;
            `training_metrics`: records `step, name, value, unit`; `stages`: as in run.json;
            `lineage`: records `stage, key, digest`; `model`, `cost`: as in run.json.
        earlier: the folder of another report: figures that would be equal are taken from it.

    Returns:
        The page's path.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = Figures(earlier=None if earlier is None else earlier / "plots")
    page = out_dir / "report.html"
    page.write_text(render("report.html.j2", _page(data, figures)), encoding="utf-8")
    figures.write(out_dir / "plots")
    content = json.dumps(dict(data), indent=1, ensure_ascii=False, default=str)
    (out_dir / "report.json").write_text(content, encoding="utf-8")
    return page


def _page(data: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    """What the template shows; every figure drawn is added to `figures`."""
    return {
        "title": str(data.get("recipe_name") or "draft model"),
        "run_id": data.get("run_id") or NOT_MEASURED,
        "recipe_name": data.get("recipe_name"),
        "recipe": recipe_text(data.get("recipe")),
        "model": _fields(data.get("model"), "name", "version", "aliases", "uri"),
        "verdict": _verdict(data.get("verdict")),
        "champion": _champion(data),
        "part": evaluated(data, figures),
        "training": _training(data.get("training_metrics"), figures),
        "stages": [
            {**_fields(stage, "name", "status", "why"), "seconds": number(stage.get("seconds"), 1)}
            for stage in data.get("stages") or ()
        ],
        "cost": [{"name": spelled(name), "value": quantity(name, value)} for name, value in _items(data.get("cost"))],
        "lineage": [_fields(row, "stage", "key", "digest") for row in data.get("lineage") or ()],
    }


def _verdict(verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not verdict:
        return None
    reasons = [_fields(reason, "gate", "passed", "sentence") for reason in verdict.get("reasons") or ()]
    return {"accepted": bool(verdict.get("accepted")), "reasons": reasons}


def _champion(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The champion the verdict is bound to, by whatever names are known."""
    digest = (data.get("verdict") or {}).get("champion")
    known = data.get("champion")
    if known:
        return {
            "name": known.get("name") or "",
            "version": known.get("version"),
            "digest": known.get("digest") or digest,
        }
    return {"name": "", "version": None, "digest": digest} if digest else None


def _training(metrics: Sequence[Mapping[str, Any]] | None, figures: Figures) -> dict[str, Any] | None:
    if not metrics:
        return None
    series: dict[str, list[tuple[int, float]]] = {}
    units: dict[str, str] = {}
    for record in metrics:
        series.setdefault(str(record["name"]), []).append((int(record["step"]), float(record["value"])))
        units[str(record["name"])] = str(record.get("unit") or "")
    drawn = []
    for name, pattern, label, title in _CURVES:
        chosen = {metric: points for metric, points in series.items() if pattern.search(metric)}
        drawing = plots.curves(chosen, name, label)
        if drawing is not None:
            thinned = max(plots.thinning(points) for points in chosen.values())
            kept = f" Of long curves one point in {thinned} is drawn." if thinned > 1 else ""
            drawn.append({"drawing": figures.add(drawing), "caption": f"{title}, by training step.{kept}"})
    last = [
        {"name": metric, "step": points[-1][0], "value": f"{points[-1][1]:.5g}", "unit": units[metric]}
        for metric, points in sorted(series.items())
    ]
    return {"figures": drawn, "last": last}


def _fields(record: Mapping[str, Any] | None, *names: str) -> dict[str, Any]:
    """These fields of a record, empty where it lacks them; nothing for no record."""
    return {name: record.get(name, "") for name in names} if record else {}


def _items(value: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    return list((value or {}).items())


def recipe_text(recipe: Any) -> str | None:
    """The resolved recipe as people write it; text is taken as it is."""
    if recipe is None:
        return None
    if isinstance(recipe, str):
        return recipe
    import yaml

    return str(yaml.safe_dump(json.loads(json.dumps(recipe, default=str)), sort_keys=False, allow_unicode=True))
