"""What a page says of verifying less: the sweep over confidence thresholds, and throughput under load.

As acceptance.py: parts of `evaluation.json` become text and figures; None stands for what is missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.reports.formatting import interval, number
from deepspec.reports.plots import load as load_plots
from deepspec.reports.rendering import Figures

_MODES = {
    "plain": "plain decoding",
    "fixed": "all drafted tokens verified",
    "scheduled": "what is verified is scheduled",
}


def threshold_sweep(sweep: Mapping[str, Any] | None, figures: Figures) -> dict[str, Any] | None:
    """The sweep over static confidence thresholds: its figures and its table."""
    if not sweep:
        return None
    if sweep.get("applicable") is False:
        reason = str(sweep.get("reason") or "This draft has no confidence head.")
        return {"note": f"Not applicable: {reason}", "figures": [], "caption": "", "rows": []}
    points = list(sweep.get("points") or ())
    if not points:
        return None
    caption = (
        f"A drafted token is verified only while its confidence, and that of all before it, reaches the threshold; "
        f"measured on {number(sweep.get('prompts'), 0)} prompts. A higher threshold proposes fewer tokens, of which "
        "more are accepted, and commits fewer in a round."
    )
    rows = [
        {
            "threshold": number(point.get("threshold"), 2),
            "tau": number(point.get("tau"), 3),
            "interval": interval(point.get("tau_ci95")),
            "proposed": number(point.get("mean_proposed"), 2),
            "accepted": number(point.get("draft_acceptance"), 3),
            "verify_rate": number(point.get("verify_rate"), 3),
            "rounds": number(point.get("rounds"), 0),
        }
        for point in points
    ]
    drawings = (
        (load_plots.threshold_rates(points), "Share of drafted tokens accepted, by threshold"),
        (load_plots.threshold_lengths(points), "Acceptance length, by threshold"),
    )
    return {"note": None, "figures": _drawn(drawings, figures), "caption": caption, "rows": rows}


def load(measured: Mapping[str, Any] | None, figures: Figures) -> dict[str, Any] | None:
    """Throughput and speed per request at several concurrencies, each way of decoding beside the others."""
    points = list((measured or {}).get("points") or ())
    if not measured or not points:
        return None
    told = measured.get("modes") or ()
    found = [mode for mode in told if any(point.get(mode) for point in points)]
    drawings = (
        (load_plots.throughput(points, found), "Throughput of all requests together, by concurrency"),
        (load_plots.trade_off(points, found), "Throughput against the speed that each request sees"),
    )
    rows = [
        {"concurrency": number(point.get("concurrency"), 0), **_mode_row(mode, point[mode])}
        for point in points
        for mode in found
        if point.get(mode)
    ]
    return {
        "figures": _drawn(drawings, figures),
        "caption": _load_caption(measured, found),
        "rows": rows,
        "costs": _costs(measured.get("costs")),
    }


def _load_caption(measured: Mapping[str, Any], modes: Sequence[str]) -> str:
    known = "; ".join(f"{mode}: {_MODES[mode]}" for mode in modes if mode in _MODES)
    told = [f"Tokens per second with so many requests at once ({known})."]
    if measured.get("max_new_tokens"):
        told.append(f"Each request is answered with at most {number(measured['max_new_tokens'], 0)} new tokens.")
    if measured.get("repeats"):
        told.append(
            f"Every point is the mean of {number(measured['repeats'], 0)} runs, in which the ways of decoding took "
            "turns, with its 95 % interval."
        )
    where = measured.get("device")
    if where:
        count = number(measured.get("threads"), 0)
        threads = f" with {count} thread{'s' if count != '1' else ''}" if where == "cpu" else ""
        told.append(f"Measured on: {where}{threads}.")
    if measured.get("by_rows"):
        told.append(_rule(measured["by_rows"]))
    if measured.get("most_rows") is not None:
        told.append(f"Scheduling drafts nothing while more than {measured['most_rows']} requests are decoded at once.")
    return " ".join(told)


def _rule(by_rows: Mapping[str, str]) -> str:
    """What the scheduler does at which load."""
    spelled = {"none": "drafts nothing", "all": "verifies everything", "scheduled": "chooses"}
    parts = [
        f"{mode} with {', '.join(rows for rows, chosen in by_rows.items() if chosen == name)}"
        for name, mode in spelled.items()
        if name in by_rows.values()
    ]
    return f"By the number of requests alone, scheduling {'; '.join(parts)}."


def _mode_row(mode: str, part: Mapping[str, Any]) -> dict[str, str]:
    return {
        "mode": mode,
        "speed": number(part.get("tokens_per_second"), 0),
        "interval": interval(part.get("ci95"), 0),
        "request": number(part.get("request_tokens_per_second"), 1),
        "request_interval": interval(part.get("request_ci95"), 1),
        "tau": number(part.get("tau"), 2),
        "proposed": number(part.get("mean_proposed"), 2),
    }


def _costs(costs: Mapping[str, Any] | None) -> list[dict[str, str]] | None:
    """What a step takes, by requests and by the tokens that the target verifies in it; the scheduler goes by it."""
    drafting: Mapping[str, Mapping[str, float]] = (costs or {}).get("drafting_seconds") or {}
    plain: Mapping[str, float] = (costs or {}).get("plain_seconds") or {}
    rows = []
    for requests in sorted({*drafting, *plain}, key=_as_number):
        course = sorted((drafting.get(requests) or {}).items(), key=lambda item: _as_number(item[0]))
        for place, (verified, seconds) in enumerate(course or [("", None)]):
            undrafted = _milliseconds(plain.get(requests)) if place == 0 else ""
            rows.append(
                {"requests": requests, "verified": verified, "drafting": _milliseconds(seconds), "plain": undrafted}
            )
    return rows or None


def _milliseconds(seconds: float | None) -> str:
    return number(None if seconds is None else seconds * 1000, 2)


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _drawn(drawings: Sequence[tuple[Any, str]], figures: Figures) -> list[dict[str, Any]]:
    return [{"drawing": figures.add(drawing), "label": label} for drawing, label in drawings if drawing is not None]
