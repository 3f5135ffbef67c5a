"""One self-contained page about one run: what the draft is worth, against whom, made from what, at what cost.

    path = write_report(folder, data)          # folder/report.html, folder/report.json, folder/plots/*.svg|png

The page needs no network and no script (a policy in it forbids both), shows the text of recipes and names escaped, and
says what is missing instead of leaving it out. Every rate stands with the number of rounds it was measured on.
Not here: measuring (metrics.py, calibration.py) and drawing (plots.py).
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.evaluation import plots

if TYPE_CHECKING:
    from jinja2 import Template

NOT_MEASURED = "—"
MACRO = "macro average"

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


def write_report(out_dir: Path, data: Mapping[str, Any]) -> Path:
    """Write the page, its figures and its data.

    Args:
        out_dir: made if missing; files of an earlier report in it are replaced.
        data: any of these, None or absent where there is nothing to tell:
            `run_id`, `recipe_name`: str; `recipe`: the resolved recipe (mapping, or text);
            `evaluation`: as in run.json; `calibration`: as calibration.py writes it;
            `verdict`: `gates.Verdict.to_json()`; `champion`: the one it was measured against, `name, version, digest`;
            `training_metrics`: records `step, name, value, unit`; `stages`: as in run.json;
            `lineage`: records `stage, key, digest`; `model`, `cost`: as in run.json.

    Returns:
        The page's path.
    """
    folder = out_dir / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, plots.Rendered] = {}
    page = out_dir / "report.html"
    page.write_text(template("report.html.j2").render(_page(data, drawings)), encoding="utf-8")
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_text(drawing.svg_file, encoding="utf-8")
        (folder / f"{name}.png").write_bytes(drawing.png_file)
    content = json.dumps(dict(data), indent=1, ensure_ascii=False, default=str)
    (out_dir / "report.json").write_text(content, encoding="utf-8")
    return page


def _page(data: Mapping[str, Any], drawings: dict[str, plots.Rendered]) -> dict[str, Any]:
    """What the template shows; every figure drawn is added to `drawings`."""
    evaluation = data.get("evaluation") or {}
    benchmarks: Mapping[str, Any] = evaluation.get("benchmarks") or {}
    return {
        "title": str(data.get("recipe_name") or "draft model"),
        "style": style(),
        "run_id": data.get("run_id") or NOT_MEASURED,
        "recipe_name": data.get("recipe_name"),
        "recipe": _recipe(data.get("recipe")),
        "model": _fields(data.get("model"), "name", "version", "aliases", "uri"),
        "verdict": _verdict(data.get("verdict")),
        "champion": _champion(data),
        "gate": _row("gate", evaluation["gate"]) if evaluation.get("gate") else None,
        "results": _results(evaluation, benchmarks, drawings),
        "conditional": _by_slot(benchmarks, "conditional", drawings),
        "prefix": _by_slot(benchmarks, "prefix", drawings),
        "calibration": _calibration(data.get("calibration"), drawings),
        "training": _training(data.get("training_metrics"), drawings),
        "stages": [
            {**_fields(stage, "name", "status", "why"), "seconds": number(stage.get("seconds"), 1)}
            for stage in data.get("stages") or ()
        ],
        "cost": [{"name": _spelled(name), "value": quantity(name, value)} for name, value in _items(data.get("cost"))],
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


def _results(
    evaluation: Mapping[str, Any], benchmarks: Mapping[str, Any], drawings: dict[str, plots.Rendered]
) -> dict[str, Any] | None:
    if not benchmarks:
        return None
    macro = evaluation.get("macro") or {}
    rows = [_row(name, part) for name, part in benchmarks.items()]
    if len(rows) > 1:
        rows.append(_row(MACRO, macro))
    tiles = [
        {"value": number(macro.get("tau"), 2), "label": "tokens per round (τ), mean over benchmarks"},
        {"value": times(macro.get("speedup")), "label": "speed against plain decoding, mean over benchmarks"},
    ]
    drawing = plots.acceptance_lengths(benchmarks, num_draft_tokens(benchmarks))
    rounds = sum(part.get("rounds") or 0 for part in benchmarks.values())
    prompts = sum(part.get("prompts") or 0 for part in benchmarks.values())
    caption = (
        f"Acceptance length τ per benchmark with its 95 % interval, over {rounds} rounds of {prompts} prompts; "
        f"at most {num_draft_tokens(benchmarks) + 1} tokens can be committed in a round."
    )
    return {
        "rows": rows,
        "tiles": tiles,
        "lengths": _kept(drawing, drawings),
        "lengths_caption": caption,
        "time": [_time_row(name, part) for name, part in benchmarks.items() if part.get("verify_seconds") is not None],
        "left_out": [text for name, part in benchmarks.items() if (text := _left_out(name, part))],
    }


def _row(name: str, part: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": name,
        "tau": number(part.get("tau"), 3),
        "interval": interval(part.get("tau_ci95")),
        "speedup": times(part.get("speedup")),
        "speed": number(part.get("tokens_per_second"), 0),
        "plain": number(part.get("plain_tokens_per_second"), 0),
        "entropy": number(part.get("target_entropy_nats"), 3),
        "rounds": number(part.get("rounds"), 0),
        "prompts": number(part.get("prompts"), 0),
    }


def _time_row(name: str, part: Mapping[str, Any]) -> dict[str, str]:
    """Where the seconds of speculative decoding went, and the plain total."""
    kinds = ("prefill", "draft", "verify", "other")
    plain = [part.get(f"plain_{kind}_seconds") for kind in kinds]
    known = [value for value in plain if value is not None]
    seconds = {kind: number(part.get(f"{kind}_seconds"), 2) for kind in kinds}
    return {"name": name, **seconds, "plain": number(sum(known) if len(known) == len(plain) else None, 2)}


def _left_out(name: str, part: Mapping[str, Any]) -> str:
    """What a benchmark's numbers do not cover, in words; empty if they cover all of it."""
    counts = [(len(part.get(kind) or ()), kind) for kind in ("skipped", "failed")]
    told = " and ".join(f"{count} {kind}" for count, kind in counts if count)
    return f"{name}: {told} of {sum(count for count, _ in counts) + (part.get('prompts') or 0)} prompts" if told else ""


def _by_slot(benchmarks: Mapping[str, Any], which: str, drawings: dict[str, plots.Rendered]) -> dict[str, Any] | None:
    drawing = plots.acceptance_by_slot(benchmarks, which)
    if drawing is None:
        return None
    slots = num_draft_tokens(benchmarks)
    rows = []
    for name, part in benchmarks.items():
        rates, trials = part.get(f"{which}_acceptance") or [], part.get(f"{which}_trials") or []
        cells = [{"rate": number(_at(rates, k), 3), "trials": _at(trials, k)} for k in range(slots)]
        rows.append({"name": name, "cells": cells})
    caption = {
        "conditional": "Share of rounds in which the draft's token k was accepted, of the rounds that proposed at "
        "least k tokens and accepted all before it; that number of rounds stands below each rate.",
        "prefix": "Share of rounds in which tokens 1 to k were all accepted, of the rounds that proposed at least k "
        "tokens; that number of rounds stands below each rate.",
    }[which]
    return {
        "drawing": _kept(drawing, drawings),
        "caption": caption,
        "slots": range(1, slots + 1),
        "rows": rows,
    }


def _calibration(calibration: Mapping[str, Any] | None, drawings: dict[str, plots.Rendered]) -> dict[str, Any] | None:
    if not calibration:
        return None
    if calibration.get("applicable") is False:
        reason = str(calibration.get("reason") or "This draft has no confidence head.")
        return {"rows": [], "slots": [], "diagrams": [], "caption": "", "note": f"Not applicable: {reason}"}
    measures = (
        ("rounds", "trials", 0),
        ("temperature", "temperatures", 3),
        ("calibration error before", "ece_before", 4),
        ("calibration error after", "ece_after", 4),
        ("equal-mass error before", "ece_mass_before", 4),
        ("equal-mass error after", "ece_mass_after", 4),
        ("Brier score before", "brier_before", 4),
        ("Brier score after", "brier_after", 4),
        ("ROC-AUC before", "auc_before", 3),
        ("ROC-AUC after", "auc_after", 3),
        ("ROC-AUC of slot k alone", "conditional_auc", 3),
    )
    found = [(name, calibration[key], digits) for name, key, digits in measures if calibration.get(key)]
    slots = max((len(values) for _, values, _ in found), default=0)
    rows = [
        {"name": name, "cells": [number(_at(values, k), digits) for k in range(slots)]}
        for name, values, digits in found
    ]
    diagrams = []
    drawn: list[int] = []
    for when in ("before", "after"):
        bins = calibration.get(f"reliability_{when}") or ()
        drawing = plots.reliability(bins, f"{when} calibration", f"reliability-{when}")
        if drawing is not None:
            drawn = plots.shown_slots(bins)
            diagrams.append({"drawing": _kept(drawing, drawings), "label": f"Reliability diagram {when} calibration"})
    counts = [sum(part["rounds"] for part in (calibration.get("reliability_before") or ())[slot - 1]) for slot in drawn]
    caption = (
        "Predicted probability that the first k drafted tokens all survive, against how often they did, on prompts "
        "that the temperatures were not fitted on. One point per bin, its area after the rounds in it; rounds "
        "behind k = " + ", ".join(f"{slot}: {count}" for slot, count in zip(drawn, counts, strict=True)) + "."
    )
    return {"rows": rows, "slots": range(1, slots + 1), "diagrams": diagrams, "caption": caption, "note": None}


def _training(
    metrics: Sequence[Mapping[str, Any]] | None, drawings: dict[str, plots.Rendered]
) -> dict[str, Any] | None:
    if not metrics:
        return None
    series: dict[str, list[tuple[int, float]]] = {}
    units: dict[str, str] = {}
    for record in metrics:
        series.setdefault(str(record["name"]), []).append((int(record["step"]), float(record["value"])))
        units[str(record["name"])] = str(record.get("unit") or "")
    figures = []
    for name, pattern, label, title in _CURVES:
        chosen = {metric: points for metric, points in series.items() if pattern.search(metric)}
        drawing = plots.curves(chosen, name, label)
        if drawing is not None:
            thinned = max(plots.thinning(points) for points in chosen.values())
            kept = f" Of long curves one point in {thinned} is drawn." if thinned > 1 else ""
            figures.append({"drawing": _kept(drawing, drawings), "caption": f"{title}, by training step.{kept}"})
    last = [
        {"name": metric, "step": points[-1][0], "value": f"{points[-1][1]:.5g}", "unit": units[metric]}
        for metric, points in sorted(series.items())
    ]
    return {"figures": figures, "last": last}


def _kept(drawing: plots.Drawing | None, drawings: dict[str, plots.Rendered]) -> Any:
    if drawing is None:
        return None
    rendered = drawings[drawing.name] = drawing.rendered()
    return _markup(rendered.svg)


def num_draft_tokens(benchmarks: Mapping[str, Any]) -> int:
    """K, as far as the evaluation shows it: the longest list of acceptance rates."""
    lists = (
        part.get(f"{which}_acceptance") or () for part in benchmarks.values() for which in ("conditional", "prefix")
    )
    return max((len(rates) for rates in lists), default=1)


def number(value: Any, digits: int) -> str:
    """A number with `digits` decimals and thousands apart; a dash if it was not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOT_MEASURED
    return f"{value:,.{digits}f}".replace(",", "\N{THIN SPACE}")


def times(value: Any) -> str:
    """A ratio, as in 2.31×."""
    text = number(value, 2)
    return text if text == NOT_MEASURED else f"{text}\N{MULTIPLICATION SIGN}"


def interval(value: Any, digits: int = 2) -> str:
    """An interval, as in 4.21 to 4.63."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return NOT_MEASURED
    return f"{number(value[0], digits)} to {number(value[1], digits)}"


def quantity(name: str, value: Any) -> str:
    """A value with the unit that its name ends in (`_bytes`, `_seconds`)."""
    if name.startswith("bytes") or name.endswith("_bytes"):
        return _bytes(value)
    if name.endswith("_seconds"):
        return f"{number(value, 1)} s"
    return number(value, 0 if isinstance(value, int) else 2)


def _bytes(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOT_MEASURED
    size = float(value)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _spelled(name: str) -> str:
    """A record's field name as words: the unit moves to the value."""
    return re.sub(r"_(seconds|bytes)$", "", name).replace("_", " ")


def _fields(record: Mapping[str, Any] | None, *names: str) -> dict[str, Any]:
    """These fields of a record, empty where it lacks them; nothing for no record."""
    return {name: record.get(name, "") for name in names} if record else {}


def _items(value: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    return list((value or {}).items())


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


def _recipe(recipe: Any) -> str | None:
    if recipe is None:
        return None
    if isinstance(recipe, str):
        return recipe
    import yaml

    return str(yaml.safe_dump(json.loads(json.dumps(recipe, default=str)), sort_keys=False, allow_unicode=True))


def _markup(text: str) -> Any:
    """Our own drawings and style: the only text that is inserted as it is."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  made by this room, never from outside


def style() -> Any:
    """The pages' style sheet, to be set into them."""
    return _markup((resources.files("deepspec.evaluation") / "templates" / "report.css").read_text("utf-8"))


@cache
def template(name: str) -> "Template":
    """One of this folder's templates; what is set into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deepspec.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
