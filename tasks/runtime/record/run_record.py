"""`run.json`: what every run leaves behind, in the form that dashboards and checks rely on, and its report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from deepspec.atomic_write import write_text
from deepspec.cost.attempts import attempts_at
from deepspec.cost.making import made_from
from deepspec.errors import DeepspecError
from deepspec.record import (
    FORMAT,
    Cost,
    Failure,
    RecordedCalibration,
    RecordedEvaluation,
    RecordedModel,
    RecordedVerdict,
    RunRecord,
    StageEntry,
)
from deepspec.registry.identity import DRAFT_KINDS
from deepspec.registry.keys import CHAMPION
from deepspec.store import Artifact
from deepspec.store.records import refuse_newer
from deepspec.usage import added_up
from tasks.runtime.counts import StageCounts
from tasks.runtime.interrupt import INTERRUPTED, is_interruption
from tasks.runtime.record.result import PartResults, RecipeRun, Result
from tasks.runtime.record.spent import cost_of, prices_of, with_costs

Recorded = TypeVar("Recorded", RecordedEvaluation, RecordedCalibration, RecordedVerdict, RecordedModel)


def record_of(result: Result) -> RunRecord:
    """The record of a run in the command line's contract.

    What the store cannot provide is left out, and is the run's error if it has no other.
    """
    run = result.run
    try:
        parts, stages = [results_of(result, part) for part in result.parts], _stages(result)
        cost, making_cost = _cost(result, stages), _making_cost(result)
    except DeepspecError as error:
        result.error = result.error or error
        parts, stages = [PartResults() for _ in result.parts], tuple(stage.entry() for stage in run.records)
        used = {"cpu_seconds": result.cpu_seconds, **result.counted}
        cost, making_cost = cost_of(used, prices_of(result.parts[0].recipe)), None
    recipes = tuple(part.recipe.model_dump(mode="json") for part in result.parts)
    record = RunRecord(
        format=FORMAT,
        run_id=run.run_id,
        recipe=result.name,
        status=result.status,
        seconds=round(result.seconds, 2),
        peak_rss_bytes=result.peak_rss_bytes,
        stages=stages,
        evaluation=_told(result, [part.evaluation for part in parts]),
        calibration=_told(result, [part.calibration for part in parts]),
        verdict=_told(result, [part.verdict for part in parts]),
        model=_told(result, [part.model for part in parts]),
        cost=cost,
        making_cost=making_cost,
        report=None,
        # Where what the record speaks of was: later commands (benches, comparisons) find it there.
        target=result.parts[0].recipe.target.path,
        store=run.store.backend.location,
        resolved_recipe=recipes[0] if len(recipes) == 1 else recipes,
        registered_models=run.models,
        **_elsewhere(result),
    )
    notes = tuple(note for part in result.parts for note in part.notes)
    record = record.model_copy(update={"notes": notes}) if notes else record  # only what was given is written
    return with_error(record, result)


def _elsewhere(result: Result) -> dict[str, Any]:
    """Where else the run is seen; only what there is."""
    alive = result.run.alive
    tracked = [part.tracking_run for part in result.parts if part.tracking_run is not None]
    found = {"flow_runs": alive.flow_runs if alive else [], "tracking_runs": tracked, "night": result.run.night}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value}


def with_error(record: RunRecord, result: Result) -> RunRecord:
    """The record with what ended the run early, if anything did."""
    error = result.error
    if error is None:
        return record
    name = type(error).__name__
    said = str(error) or (INTERRUPTED if is_interruption(error) else name)
    at = result.ended_at or datetime.now(UTC).isoformat(timespec="seconds")
    failure = Failure(error=name, message=said, stage=result.run.making, at=at)
    return record.model_copy(update={"error": said, "failure": failure})


def results_of(result: Result, part: RecipeRun) -> PartResults:
    """What a record says of one recipe.

    Raises:
        DeepspecError: the store does not hand it out.
    """
    if part.results is not None:
        return part.results
    outcome = {name: item for name, item in part.outcome.items() if isinstance(item, Artifact)}
    evaluation, calibration, verdict = (outcome.get(name) for name in ("evaluation", "calibration", "verdict"))
    part.results = PartResults(
        _read(RecordedEvaluation, evaluation, "evaluation.json") if evaluation is not None else None,
        _read(RecordedCalibration, calibration, "calibration.json").without_nulls() if calibration else None,
        _read(RecordedVerdict, verdict, "verdict.json") if verdict is not None else None,
        _model(result, part, outcome),
    )
    return part.results


def _told(result: Result, found: Sequence[Recorded | None]) -> Recorded | tuple[Recorded, ...] | None:
    """The recipe's result; of several recipes a tuple, where each names its algorithm."""
    if len(found) == 1:
        return found[0]
    algorithms = [part.recipe.draft.algorithm for part in result.parts]
    return tuple(
        one.model_copy(update={"algorithm": algorithm})
        for algorithm, one in zip(algorithms, found, strict=True)
        if one is not None
    )


def write_record(record: RunRecord, home: Path, *, is_last: bool = True) -> Path:
    """Write `runs/<run id>/run.json` and, of the last run, `last-run.json`; both appear whole or not at all."""
    path = home / "runs" / record.run_id / "run.json"
    content = json.dumps(record.to_json(), indent=1, ensure_ascii=False) + "\n"
    for target in (path, home / "last-run.json") if is_last else (path,):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, content)
    return path


def read_record(home: Path, run_id: str | None = None) -> RunRecord | None:
    """A run's record (the last one's by default), or None if there is none.

    Raises:
        ArtifactError: a newer deepspec wrote it.
    """
    path = home / "last-run.json" if run_id is None else home / "runs" / run_id / "run.json"
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        refuse_newer(content, FORMAT, what="This record of a run", where=str(path), otherwise="look at another run")
        return RunRecord.model_validate(content)
    except (OSError, ValueError):
        return None


def _model(result: Result, part: RecipeRun, outcome: Mapping[str, Artifact]) -> RecordedModel | None:
    """The registered version; it has the alias `champion` if the promotion log says so now."""
    registration, draft = outcome.get("registration"), outcome.get("draft")
    if registration is None or draft is None:
        return None
    model = _read(RecordedModel, registration, "registration.json")
    if part.version is not None:
        model = model.model_copy(update={"version": part.version.version, "uri": part.version.uri})
    elif result.run.tracking is not None:
        return None  # it is not registered there
    if part.version is not None:
        return model.model_copy(update={"aliases": part.version.aliases})
    champion = result.run.promotions.champion(model.name)
    # Equal drafts of two trainings are two versions; one of them serves.
    serves = champion is not None and (champion.digest, champion.key) == (draft.digest, draft.key)
    return model.model_copy(update={"aliases": (CHAMPION,) if serves else ()})


def _read(record: type[Recorded], artifact: Artifact, file: str) -> Recorded:
    return record.from_json(artifact.json(file), where=f"{artifact.kind}/{artifact.key[:12]}/{file}")


def _stages(result: Result) -> tuple[StageEntry, ...]:
    """The stages, with what the run itself used for each, and the one in the middle of which it was interrupted."""
    run = result.run
    making = (run.making, run.making_key) if run.making and run.making_key else None
    entries = [one.entry() for one in run.records]
    return with_costs(entries, making, run_id=run.run_id, find=run.find, accounts=run.accounts)


def _cost(result: Result, stages: Iterable[StageEntry]) -> Cost:
    """What this run used; what it found ready cost nothing."""
    made = [record for record in result.run.records if record.status in ("ran", "rebuilt")]
    found = (result.run.find(record.kind, record.key) for record in made)
    used = added_up(stage.cost for stage in stages if stage.cost)
    # Of the whole process, not of its stages alone; GPU seconds and bytes are only known by stage.
    used = {**used, "cpu_seconds": result.cpu_seconds, **result.counted}
    return _as_cost(result, [artifact for artifact in found if artifact is not None], used)


def _making_cost(result: Result) -> Cost | None:
    """What the making of the run's results has cost, whichever runs paid for it; earlier drafts are left out."""
    results = [item for part in result.parts for item in part.outcome.values() if isinstance(item, Artifact)]
    all_of_it = made_from(results, result.run.find, DRAFT_KINDS)
    if not all_of_it:
        return None
    used = added_up(attempt.used for artifact in all_of_it for attempt in attempts_at(artifact))
    return _as_cost(result, all_of_it, used)


def _as_cost(result: Result, artifacts: Iterable[Artifact], used: Mapping[str, float]) -> Cost:
    """What was used for artifacts, in the fields of a record; with money where the (first) recipe has prices."""
    tokens = states = peak = 0
    for artifact in artifacts:
        counts = StageCounts.from_json(artifact.manifest.counts, where=f"{artifact.kind}/{artifact.key[:12]}")
        tokens += counts.tokens or 0 if artifact.kind == "tokens" else 0
        states += counts.bytes or 0 if artifact.kind == "states" else 0
        if artifact.kind == "train" and counts.memory_bytes is not None:
            peak = max(peak, counts.memory_bytes.peak)
    cost = cost_of(used, prices_of(result.parts[0].recipe))
    return cost.model_copy(update={"tokens": tokens, "states_bytes": states, "training_peak_bytes": peak})
