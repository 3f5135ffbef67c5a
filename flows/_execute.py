"""Carrying out a run: plan first, then only what is missing, and always leave a record.

A run is one flow over one recipe, or over several that differ in their algorithm: a part each, one after the other, so
that a later part finds in the store what it shares with an earlier one.

A run whose stages all hit is recorded without starting Prefect or importing torch, unless a Prefect server is there to
show it. Otherwise the flow runs under Prefect; damage that a reader meets on the way sends the flow back to the
producer, once.
"""

import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from deepspec.errors import ArtifactDamaged, BudgetExceeded
from deepspec.inputs import local
from deepspec.registry.open import tracking_of
from deepspec.store import Artifact, Store
from deepspec.store.lease import leased
from deepspec.usage import Usage
from flows import _prefect
from tasks._run import Display, Hidden, Run, Sayings, StageRecord
from tasks._stage import Reference

if TYPE_CHECKING:
    from deepspec.recipe import Recipe
    from deepspec.registry.mlflow.runs import RunWriter
    from deepspec.registry.mlflow.tracking import Status as TrackedStatus

logger = logging.getLogger(__name__)

Status = Literal["promoted", "refused", "no_change", "budget_exhausted", "failed"]
Flow = Callable[[Run[Any]], Mapping[str, Reference]]
Steps = Sequence[tuple[Flow, Any]]

INTERRUPTED = "Interrupted. What was finished is kept; the same command goes on from there."
_INTERRUPT_SECONDS = 3.0


@dataclass
class Part:
    """One recipe of a run, and what came of it."""

    recipe: "Recipe"
    status: Status = "failed"
    outcome: Mapping[str, Reference] = field(default_factory=dict)
    tracking_run: str | None = None


@dataclass
class Result:
    """How a run ended.

    Attributes:
        run: with the record of its stages.
        name: what the run is called by: its recipe, or what its recipes are together.
        parts: one per recipe, in order; one that was not reached counts as failed.
        error: what ended it early.
        further: what flows returned that came after the parts, by name.
    """

    run: Run[Any]
    name: str
    parts: list[Part]
    further: dict[str, Mapping[str, Reference]] = field(default_factory=dict)
    error: BaseException | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def status(self) -> Status:
        """The part's; of several the one that most asks for attention."""
        found = {part.status for part in self.parts}
        order: tuple[Status, ...] = ("failed", "budget_exhausted", "refused", "promoted", "no_change")
        return next(status for status in order if status in found)


def plan_all(flow: Flow, recipes: "Sequence[Recipe]", store: Store, home: Path, *, before: Steps) -> list[StageRecord]:
    """The stages of the run that `execute` would make of the same arguments; nothing is written."""
    run: Run[Any] = Run(recipes[0], store, home, plan=True, dry=True)
    for step, recipe in [*before, *((flow, recipe) for recipe in recipes)]:
        run.algorithm = _algorithm(recipes, recipe)
        for record in plan(step, recipe, store, home).records:
            run.record(record)
    return run.records


def plan(flow: Flow, recipe: Any, store: Store, home: Path, *, display: Display | None = None) -> Run[Any]:
    """What a run would do now: its stages, each `hit` or `would_run`.

    Args:
        flow, recipe, store, home: see `execute`.
        display: of the run that follows; None: none does, and nothing is written.
    """
    run = Run(local(recipe, home), store, home, plan=True, dry=display is None)
    if display is not None:
        run.display = Sayings(display)
    run.outcome = flow(run)
    return run


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
        recipes[0], store, home, plan=False, display=display or Hidden(), served=_prefect.is_configured()
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
        with _prompt_back_soon(give_up):
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
    run: Run[Any] = Run(recipe, store, home, plan=False, display=display, served=_prefect.is_configured())
    part = Part(recipe)
    ended: TrackedStatus = "FAILED"
    try:
        with _prompt_back_soon(lambda: None), ExitStack() as stack:
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
            run.algorithm = _algorithm(recipes, part.recipe)
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


def _algorithm(recipes: "Sequence[Recipe]", recipe: Any) -> str | None:
    """Whose the stages of a recipe are, where a run makes the drafts of several; inputs are nobody's."""
    return str(recipe.draft.algorithm) if len(recipes) > 1 and recipe in recipes else None


def _start(run: Run[Any], part: Part, stack: ExitStack) -> None:
    """What a run that makes something needs: a lease, the tracker's run, Prefect's server."""
    # The server takes seconds to start: it does so while the tracker's libraries are imported.
    embedded = stack.enter_context(_prefect.server(run.home))
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
        return dict(_prefect.run_as_flow(run, flow, recipe))
    except ArtifactDamaged as damage:
        warning = str(damage)
        if not _damaged_in_store(run.store, damage):
            warning = f"{damage.where}: What came over the network was damaged; the artifact is not. It is read again."
        logger.warning("%s", warning)
        run.display.say(f"Warning: {warning}")
        return dict(_prefect.run_as_flow(run, flow, recipe))


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


@contextmanager
def _prompt_back_soon(leave_record: Callable[[], None]) -> Iterator[None]:
    """After Ctrl-C the prompt is back within seconds, whatever still hangs in a library's shutdown.

    Nothing is lost by that: what is published is durable, what is not is invisible, and the training process, which
    lives in a session of its own, saves and ends by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up() -> None:
        try:
            leave_record()
        finally:
            end()

    def end() -> None:
        os.write(2, INTERRUPTED.encode() + b"\n")
        os._exit(130)

    def interrupt(*_: object) -> None:
        timer = threading.Timer(_INTERRUPT_SECONDS, give_up)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
