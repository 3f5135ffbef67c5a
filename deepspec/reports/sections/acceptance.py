"""What a page says of one draft's evaluation: tables as text, figures, and the sentences under them.

Each function turns a part of `evaluation.json` (or `calibration.json`) into what a template shows; None stands for
what is missing. Not here: measuring, drawing (plots/acceptance.py), the sections about load and samples (load.py,
samples.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.reports.formatting import MACRO, interval, number, times
from deepspec.reports.plots import acceptance as plots
from deepspec.reports.rendering import Figures
from deepspec.reports.sections.load import load, threshold_sweep
from deepspec.reports.sections.samples import samples

_SLOT_CAPTIONS = {
    "conditional": "Share of rounds in which the draft's token k was accepted, of the rounds that proposed at "
    "least k tokens and accepted all before it; that number of rounds stands below each rate.",
    "prefix": "Share of rounds in which tokens 1 to k were all accepted, of the rounds that proposed at least k "
    "tokens; that number of rounds stands below each rate.",
}

_CALIBRATION_MEASURES = (
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


def evaluated(data: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    """Everything a page says of one draft's evaluation.

    Args:
        data: `evaluation`, `calibration` and `samples`, each None or absent where there is nothing to tell.
        figures: takes what is drawn.
    """
    evaluation = data.get("evaluation") or {}
    benchmarks: Mapping[str, Any] = evaluation.get("benchmarks") or {}
    return {
        "gate": _acceptance_row("gate", evaluation["gate"]) if evaluation.get("gate") else None,
        "results": _results(evaluation, benchmarks, figures),
        "conditional": _by_slot(benchmarks, "conditional", figures),
        "prefix": _by_slot(benchmarks, "prefix", figures),
        "calibration": _calibration(data.get("calibration"), figures),
        "threshold": threshold_sweep(evaluation.get("threshold_sweep"), figures),
        "load": load(evaluation.get("load"), figures),
        "samples": samples(data.get("samples")),
    }


def num_draft_tokens(benchmarks: Mapping[str, Any]) -> int:
    """K, as far as the evaluation shows it: the longest list of acceptance rates."""
    lists = (
        part.get(f"{which}_acceptance") or () for part in benchmarks.values() for which in ("conditional", "prefix")
    )
    return max((len(rates) for rates in lists), default=1)


def means(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What stands below the benchmarks: the means of every domain that has several, and of all; none for a single one.

    A domain may be called like a benchmark: its label also says of how many it is the mean.
    """
    if len(evaluation.get("benchmarks") or ()) < 2:
        return []
    counted = [(name, part, len(part.get("benchmarks") or ())) for name, part in _domains(evaluation)]
    return [*((f"{name} ({count})", part) for name, part, count in counted if count > 1), _macro(evaluation)]


def _domains(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, part) for name, part in (evaluation.get("domains") or {}).items() if part]


def _macro(evaluation: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    return MACRO, evaluation.get("macro") or {}


def _results(evaluation: Mapping[str, Any], benchmarks: Mapping[str, Any], figures: Figures) -> dict[str, Any] | None:
    if not benchmarks:
        return None
    macro = evaluation.get("macro") or {}
    parts = list(benchmarks.items())
    averages = means(evaluation)
    drawing = plots.acceptance_lengths(benchmarks, num_draft_tokens(benchmarks))
    rounds = sum(part.get("rounds") or 0 for part in benchmarks.values())
    prompts = sum(part.get("prompts") or 0 for part in benchmarks.values())
    caption = (
        f"Acceptance length τ per benchmark with its 95 % interval, over {rounds} rounds of {prompts} prompts; "
        f"at most {num_draft_tokens(benchmarks) + 1} tokens can be committed in a round."
    )
    return {
        "rows": [_acceptance_row(name, part) for name, part in parts],
        "means": [_acceptance_row(name, part) for name, part in averages],
        "speeds": [_speed_row(name, part) for name, part in parts],
        "mean_speeds": [_speed_row(name, part) for name, part in averages],
        "tiles": [
            {"value": number(macro.get("tau"), 2), "label": "tokens per round (τ), mean over benchmarks"},
            {"value": times(macro.get("speedup")), "label": "speed against plain decoding, mean over benchmarks"},
        ],
        "lengths": figures.add(drawing),
        "lengths_caption": caption,
        "time": [_time_row(name, part) for name, part in parts if part.get("verify_seconds") is not None],
        "left_out": [text for name, part in parts if (text := _left_out(name, part))],
    }


def _acceptance_row(name: str, part: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": name,
        "domain": str(part.get("domain") or ""),
        "tau": number(part.get("tau"), 3),
        "interval": interval(part.get("tau_ci95")),
        "proposed": number(part.get("mean_proposed"), 2),
        "verify_rate": number(part.get("verify_rate"), 3),
        "entropy": number(part.get("target_entropy_nats"), 3),
        "rounds": number(part.get("rounds"), 0),
        "prompts": number(part.get("prompts"), 0),
        "turns": number(part.get("turns"), 0),
        "batch": number(part.get("batch"), 0),
    }


def _speed_row(name: str, part: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": name,
        "speedup": times(part.get("speedup")),
        "interval": interval(part.get("speedup_ci95")),
        "speed": number(part.get("tokens_per_second"), 0),
        "plain": number(part.get("plain_tokens_per_second"), 0),
        "prompts": number(part.get("speed_prompts"), 0),
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


def _by_slot(benchmarks: Mapping[str, Any], which: str, figures: Figures) -> dict[str, Any] | None:
    drawing = plots.acceptance_by_slot(benchmarks, which)
    if drawing is None:
        return None
    slots = num_draft_tokens(benchmarks)
    rows = []
    for name, part in benchmarks.items():
        rates, trials = part.get(f"{which}_acceptance") or [], part.get(f"{which}_trials") or []
        cells = [{"rate": number(_at(rates, k), 3), "trials": _at(trials, k)} for k in range(slots)]
        rows.append({"name": name, "cells": cells})
    return {
        "drawing": figures.add(drawing),
        "caption": _SLOT_CAPTIONS[which],
        "slots": range(1, slots + 1),
        "rows": rows,
    }


def _calibration(calibration: Mapping[str, Any] | None, figures: Figures) -> dict[str, Any] | None:
    if not calibration:
        return None
    if calibration.get("applicable") is False:
        reason = str(calibration.get("reason") or "This draft has no confidence head.")
        return {"rows": [], "slots": [], "diagrams": [], "caption": "", "note": f"Not applicable: {reason}"}
    found = [(name, calibration[key], digits) for name, key, digits in _CALIBRATION_MEASURES if calibration.get(key)]
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
            diagrams.append({"drawing": figures.add(drawing), "label": f"Reliability diagram {when} calibration"})
    counts = [sum(part["rounds"] for part in (calibration.get("reliability_before") or ())[slot - 1]) for slot in drawn]
    caption = (
        "Predicted probability that the first k drafted tokens all survive, against how often they did, on prompts "
        "that the temperatures were not fitted on. One point per bin, its area after the rounds in it; rounds "
        "behind k = " + ", ".join(f"{slot}: {count}" for slot, count in zip(drawn, counts, strict=True)) + "."
    )
    return {"rows": rows, "slots": range(1, slots + 1), "diagrams": diagrams, "caption": caption, "note": None}


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None
