"""Carrying out a run: plan first, then only what is missing, and always leave a record.

A run is one flow over one recipe, or over several that differ in their algorithm: a part each, one after the other, so
that a later part finds in the store what it shares with an earlier one.

A run whose stages all hit is recorded without starting Prefect or importing torch, unless a Prefect server is there to
show it. Otherwise the flow runs under Prefect; damage that a reader meets on the way sends the flow back to the
producer, once.
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deepspec.errors import ArtifactDamaged, BudgetExceeded
from deepspec.inputs import local
from deepspec.registry.open import tracking_of
from deepspec.store import Artifact, Store
from deepspec.store.lease import leased
from deepspec.usage import Usage
from tasks.runtime.display import Display, Hidden
from tasks.runtime.interrupt import INTERRUPTED, prompt_back_soon
from tasks.runtime.plan import algorithm_among, plan
from tasks.runtime.prefect import flow as prefect_flow
from tasks.runtime.prefect import server as prefect_server
from tasks.runtime.records import StageRecord
from tasks.runtime.references import Reference
from tasks.runtime.result import Flow, Part, Result, Status, Steps
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.recipe import Recipe
    from deepspec.registry.mlflow.runs import RunWriter
    from deepspec.registry.mlflow.tracking import Status as TrackedStatus

logger = logging.getLogger(__name__)


def execute(
    flow: Flow,
    recipes: "Sequence[Recipe]",
    store: Store,
    home: Path,
    *,
    name: str,
    display: Display | None = None,
    before: Steps = (),
    after: Mapping[str, tuple[Flow, Any]] = MappingProxyType({}),
    interrupted: Callable[[Result], None] | None = None,
) -> Result:
    """Run a flow.

    Args:
        flow: the DAG.
        recipes: its resolved configurations: one, or several of different algorithms.
        store: where artifacts are.
        home: where runs, databases and work folders are.
        name: of the run in its record.
        display: shows progress.
        before: flows (with their configurations) that make this one's inputs; their stages are part of the record.
        after: by name, flows (with their recipes) that follow on the parts, are tracked, and make no part themselves.
        interrupted: called with what is known when, after Ctrl-C, the process has to be ended in the middle.

    Returns:
        how it ended; errors of stages are in the result, not raised.
    """
    run: Run[Any] = Run(
        recipes[0], store, home, plan=False, display=display or Hidden(), served=prefect_server.is_configured()
    )
    usage = Usage()
    result = Result(run, name, [Part(recipe) for recipe in recipes])

    def measure() -> None:
        result.seconds = usage.seconds()
        result.cpu_seconds = usage.cpu_seconds()
        result.peak_rss_bytes = usage.peak_rss_bytes()

    def give_up() -> None:
        result.error = KeyboardInterrupt(INTERRUPTED)
        measure()
        if interrupted is not None:
            interrupted(result)

    try:
        with prompt_back_soon(give_up):
            _carry_out(run, flow, result, before, after)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  # whatever ended it: a run leaves its record
        result.error = error
    finally:
        usage.stop()
        run.fingerprints.save()
        measure()
    return result


@contextmanager
def apart(
    flow: Flow, recipe: "Recipe", store: Store, home: Path, *, display: Display
) -> "Iterator[tuple[Run[Any], Mapping[str, Reference], RunWriter | None]]":
    """Run a flow that makes no draft: no record of a run is left, and errors of stages are raised.

    Args:
        flow, recipe, store, home, display: see `execute`.

    Yields:
        the run, what the flow returned, and the tracker's run (None where all was found, and nothing is tracked). What
        the flow returned is protected from collectors, and the tracker's run goes on, until the block ends.
    """
    run: Run[Any] = Run(recipe, store, home, plan=False, display=display, served=prefect_server.is_configured())
    part = Part(recipe)
    ended: TrackedStatus = "FAILED"
    try:
        with prompt_back_soon(lambda: None), ExitStack() as stack:
            part.outcome = _carry_out_one(run, flow, recipe, part, stack)
            tracked = run.tracking and part.tracking_run and run.tracking.writer(part.tracking_run)
            yield run, part.outcome, tracked or None
        ended = "FINISHED"
    except KeyboardInterrupt:
        ended = "KILLED"
        raise
    finally:
        run.fingerprints.save()
        if run.tracking is not None and part.tracking_run is not None:
            run.tracking.finish(part.tracking_run, ended)


def _carry_out(run: Run[Any], flow: Flow, result: Result, before: Steps, after: Mapping[str, tuple[Flow, Any]]) -> None:
    """What comes before, the flow for each part, what comes after; under Prefect once there is something to do."""
    parts = result.parts
    with ExitStack() as stack:
        for earlier, recipe in before:
            run.recipe = recipe
            _carry_out_one(run, earlier, recipe, parts[0], stack)
        recipes = [part.recipe for part in parts]
        for part in parts:
            run.recipe = part.recipe
            run.algorithm = algorithm_among(recipes, part.recipe)
            if run.algorithm is not None:
                run.display.say(run.algorithm)
            promotions = _num_promotions(run.store, part.recipe)
            try:
                part.outcome = _carry_out_one(run, flow, part.recipe, part, stack)
            except BudgetExceeded:
                part.status = "budget_exhausted"
                raise
            if part.tracking_run is None:
                _start_tracking(run, part)
            part.status = _status(run, promoted=_num_promotions(run.store, part.recipe) > promotions)
        for name, (later, recipe) in after.items():
            run.recipe, run.algorithm = recipe, name
            run.display.say(name)
            part = Part(recipe)
            ended: TrackedStatus = "FAILED"
            try:
                result.further[name] = _carry_out_one(run, later, recipe, part, stack)
                ended = "FINISHED"
            finally:
                if run.tracking is not None and part.tracking_run is not None:
                    run.tracking.finish(part.tracking_run, ended)


def _carry_out_one(run: Run[Any], flow: Flow, recipe: Any, part: Part, stack: ExitStack) -> Mapping[str, Reference]:
    """Plan a flow with `recipe`; run it, leased and tracked as `part`, unless all its stages hit."""
    planned = plan(flow, recipe, run.store, run.home, display=run.display)
    if not run.served and all(record.status in ("hit", "skipped") for record in planned.records):
        for record in planned.records:
            run.record(record)
        return planned.outcome
    _refuse(run, recipe, planned)
    if run.on_lease is None:
        _start(run, part, stack)
    elif part.tracking_run is None:
        _start_tracking(run, part)
    for artifact in _artifacts(planned.outcome):
        run.lease(artifact.kind, artifact.key)
    run.recipe = local(recipe, run.home)
    return _rebuilding(run, flow, recipe)


def _refuse(run: Run[Any], recipe: Any, planned: Run[Any]) -> None:
    """Refuse what is over budget, or certainly has no room, before anything of it is made."""
    from deepspec.planning.budget import refuse
    from deepspec.recipe import Recipe

    if not isinstance(recipe, Recipe):
        return  # inputs of the demo
    try:
        refuse(local(recipe, run.home), run.home, planned.records)
    except BudgetExceeded:
        for record in planned.records:
            found = record.status in ("hit", "skipped")
            run.record(record if found else StageRecord(record.name, "skipped", kind=record.kind, why="over budget"))
        raise


def _start(run: Run[Any], part: Part, stack: ExitStack) -> None:
    """What a run that makes something needs: a lease, the tracker's run, Prefect's server."""
    # The server takes seconds to start: it does so while the tracker's libraries are imported.
    embedded = stack.enter_context(prefect_server.server(run.home))
    lease = stack.enter_context(leased(run.store.backend, f"runs/{run.run_id}", keys=[]))
    run.on_lease = lambda pairs: lease.note(keys=[list(pair) for pair in pairs])
    _start_tracking(run, part)
    if embedded is not None:
        # While the server starts on one core, this one imports what the stages will need.
        for module in ("prefect", "deepspec.decoding.engine"):
            importlib.import_module(module)
        embedded.ready()


def _start_tracking(run: Run[Any], part: Part) -> None:
    """Begin the part's pipeline run in the tracker: its parameters are the resolved recipe."""
    from deepspec.recipe import flat
    from deepspec.registry import keys

    recipe = part.recipe
    run.tracking = run.tracking or tracking_of(run.home)
    code = str(run.store.code.get("commit") or run.store.code.get("deepspec", ""))
    tags = {keys.RUN_ID: run.run_id, keys.RECIPE: recipe.name, keys.CODE_VERSION: code}
    run.tracking_run = run.tracking.start_pipeline_run(run.run_id, flat(recipe.model_dump(mode="json")), tags)
    part.tracking_run = run.tracking_run


def _rebuilding(run: Run[Any], flow: Flow, recipe: Any) -> Mapping[str, Reference]:
    """Run[Any] the flow; after damage found on the way run it once more: the producer of what is damaged runs again."""
    try:
        return dict(prefect_flow.run_as_flow(run, flow, recipe))
    except ArtifactDamaged as damage:
        warning = str(damage)
        if not _damaged_in_store(run.store, damage):
            warning = f"{damage.where}: What came over the network was damaged; the artifact is not. It is read again."
        logger.warning("%s", warning)
        run.display.say(f"Warning: {warning}")
        return dict(prefect_flow.run_as_flow(run, flow, recipe))


def _damaged_in_store(store: Store, damage: ArtifactDamaged) -> bool:
    """Whether what a reader found damaged is so in the store; a reader by range, in another process, cannot condemn."""
    artifact = store.find(damage.kind, damage.key)
    return artifact is None or (damage.file is not None and artifact.settle(damage.file))


def _status(run: Run[Any], *, promoted: bool) -> Status:
    own = (record for record in run.records if record.algorithm == run.algorithm)
    if any(record.name == "promote" and record.status == "skipped" for record in own):
        return "refused"
    return "promoted" if promoted else "no_change"


def _num_promotions(store: Store, recipe: "Recipe") -> int:
    """How often a champion of the recipe's model was appointed; what was promoted is what the log says."""
    from deepspec.registry.promotions import PromotionLog

    last = PromotionLog(store.backend).last(recipe.name)
    return 0 if last is None else last.number


def _artifacts(outcome: Mapping[str, Reference]) -> Iterator[Artifact]:
    for reference in outcome.values():
        if isinstance(reference, Artifact):
            yield reference
