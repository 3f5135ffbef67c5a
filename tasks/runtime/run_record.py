"""`run.json`: what every run leaves behind, in the form that dashboards and checks rely on, and its report."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepspec.errors import DeepspecError
from deepspec.registry.keys import CHAMPION
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact
from deepspec.store.records import refuse_newer
from tasks.runtime.result import Part, Result

FORMAT = 1
"""Raised when a record is written that an older deepspec could not read."""

PARTS = ("evaluation", "calibration", "verdict", "model")
"""What a record says of a recipe; the rest is about the whole run."""


def run_json(result: Result) -> dict[str, Any]:
    """The record of a run in the command line's contract.

    Of a run with several recipes, each of `PARTS` is a list: one item, with its `algorithm`, for every recipe that
    came so far. Where the store does not hand out what the record quotes, that is left out, and is the run's error if
    it has no other.
    """
    run = result.run
    try:
        parts, cost = [part_json(result, part) for part in result.parts], _cost(result)
    except DeepspecError as error:
        result.error = result.error or error
        parts, cost = [dict.fromkeys(PARTS) for _ in result.parts], {"cpu_seconds": round(result.cpu_seconds, 1)}
    record: dict[str, Any] = {
        "format": FORMAT,
        "run_id": run.run_id,
        "recipe": result.name,
        "status": result.status,
        "seconds": round(result.seconds, 2),
        "peak_rss_bytes": result.peak_rss_bytes,
        "stages": [stage.to_json() for stage in run.records],
        **(parts[0] if len(parts) == 1 else _side_by_side(result, parts)),
        "cost": cost,
        "report": None,
        # Where what the record speaks of was: later commands (benches, comparisons) find it there.
        "target": result.parts[0].recipe.target.path,
        "store": run.store.backend.location,
    }
    if result.error is not None:
        record["error"] = str(result.error) or type(result.error).__name__
    return record


def part_json(result: Result, part: Part) -> dict[str, Any]:
    """What a record says of one recipe; None where it did not come so far."""
    outcome = {name: item for name, item in part.outcome.items() if isinstance(item, Artifact)}
    values = (
        _file(outcome, "evaluation", "evaluation.json"),
        _file(outcome, "calibration", "calibration.json"),
        _file(outcome, "verdict", "verdict.json"),
        _model(result, outcome),
    )
    return dict(zip(PARTS, values, strict=True))


def _side_by_side(result: Result, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    algorithms = [part.recipe.draft.algorithm for part in result.parts]
    return {
        name: [
            {"algorithm": algorithm, **part[name]}
            for algorithm, part in zip(algorithms, parts, strict=True)
            if part[name] is not None
        ]
        for name in PARTS
    }


def write_record(record: Mapping[str, Any], home: Path) -> Path:
    """Write `runs/<run id>/run.json` and `last-run.json`; both appear whole or not at all."""
    path = home / "runs" / str(record["run_id"]) / "run.json"
    for target in (path, home / "last-run.json"):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(target)
    return path


def read_record(home: Path, run_id: str | None = None) -> dict[str, Any] | None:
    """A run's record (the last one's by default), or None if there is none.

    Raises:
        ArtifactError: a newer deepspec wrote it.
    """
    path = home / "last-run.json" if run_id is None else home / "runs" / run_id / "run.json"
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    refuse_newer(record, FORMAT, what="This record of a run", where=str(path), otherwise="look at another run")
    return record


def _model(result: Result, outcome: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """The registered version; it has the alias `champion` if the promotion log says so now."""
    registration = _file(outcome, "registration", "registration.json")
    draft = outcome.get("draft")
    if registration is None or draft is None:
        return None
    champion = PromotionLog(result.run.store.backend).champion(registration["name"])
    # Equal drafts of two trainings are two versions; one of them serves.
    serves = champion is not None and (champion.digest, champion.version) == (draft.digest, registration["version"])
    return {**registration, "aliases": [CHAMPION] if serves else []}


def _file(outcome: Mapping[str, Artifact], name: str, file: str) -> Any:
    return outcome[name].json(file) if name in outcome else None


def _cost(result: Result) -> dict[str, Any]:
    """What this run used; what it found ready cost nothing.

    An amount of money stands there where the (first) recipe has prices.
    """
    written, tokens, gpu_seconds = 0.0, 0, 0.0
    states, peak = 0, 0
    for record in result.run.records:
        if record.status not in ("ran", "rebuilt"):
            continue
        artifact = result.run.store.find(record.kind, record.key)
        if artifact is None:
            continue
        written += artifact.manifest.cost.get("bytes_written", 0.0)
        gpu_seconds += float(artifact.manifest.counts.get("gpu_seconds", 0.0))
        tokens += int(artifact.manifest.counts.get("tokens", 0)) if record.name == "tokens" else 0
        states += int(artifact.manifest.counts.get("bytes", 0)) if record.name == "states" else 0
        if record.name == "train":
            peak = max(peak, int((artifact.manifest.counts.get("memory_bytes") or {}).get("peak", 0)))
    prices = result.parts[0].recipe.run
    amounts = {
        "gpu": (gpu_seconds, prices.price_per_gpu_hour),
        "cpu": (result.cpu_seconds, prices.price_per_cpu_hour),
    }
    priced = [seconds / 3600 * price for seconds, price in amounts.values() if price is not None]
    money: dict[str, Any] = {"amount": round(sum(priced), 4), "currency": prices.currency} if priced else {}
    return {
        "cpu_seconds": round(result.cpu_seconds, 1),
        "gpu_seconds": round(gpu_seconds, 1),
        "bytes_written": int(written),
        "tokens": tokens,
        "states_bytes": states,
        "training_peak_bytes": peak,
        **money,
    }
