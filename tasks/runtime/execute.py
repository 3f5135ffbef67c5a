"""Executing a run: preview it first, then make only what is missing, and always leave a record.

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

from deepspec import history
from deepspec.errors import ArtifactDamaged, BudgetExceeded, DeepspecError
from deepspec.registry.open import tracking_of
from deepspec.registry.production import production_of
from deepspec.store import Artifact, Store
from deepspec.store.lease import leased
from deepspec.usage import Usage
from tasks.runtime.display import Display, Hidden
from tasks.runtime.flow import Flow, Outcome
from tasks.runtime.interrupt import INTERRUPTED, is_interruption, prompt_back_soon
from tasks.runtime.outlook import Outlook, expected_seconds
from tasks.runtime.prefect import flow as prefect_flow
from tasks.runtime.prefect import server as prefect_server
from tasks.runtime.preview import algorithm_among, preview
from tasks.runtime.record.alive import Alive, end_dead, ended_after
from tasks.runtime.record.result import RecipeRun, Result, Steps
from tasks.runtime.record.run_record import record_of
from tasks.runtime.records import StageRecord
from tasks.runtime.references import Reference
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.recipe import Recipe
    from deepspec.registry.mlflow.runs import RunWriter
    from deepspec.registry.mlflow.tracking import Status as TrackedStatus
    from deepspec.registry.mlflow.tracking import Tracking

logger = logging.getLogger(__name__)


def execute(
    flow: Flow,
    recipes: "Sequence[Recipe]",
    store: Store,
    home: Path,
    *,
    name: str,
    night: str | None = None,
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
        night: the Prefect deployment that started it.
        display: shows progress.
        before: flows (with their configurations) that make this one's inputs; their stages are part of the record.
        after: by name, flows (with their recipes) that run after the parts and are tracked, but are no part.
        interrupted: called with the result so far when Ctrl-C or SIGTERM has to end the process in the middle.

    Returns:
        how it ended; errors of stages are in the result, not raised.
    """
    run: Run[Any] = Run(
        recipes[0], store, home, display=display or Hidden(), on_shared_server=prefect_server.is_configured()
    )
    run.name, run.night, run.recipes = name, night, tuple(recipes)
    run.models = tuple(dict.fromkeys(recipe.registered_model for recipe in recipes))
    usage = run.usage = Usage()
    result = Result(run, name, [RecipeRun(recipe) for recipe in recipes])

    def give_up() -> None:
        result.end(KeyboardInterrupt(INTERRUPTED))
        result.measure(usage)
        if interrupted is not None:
            interrupted(result)

    try:
        with prompt_back_soon(give_up), ExitStack() as stack:
            production_of(store, home)  # for it may be set up wrongly, which is better known before hours of work
            for earlier, configuration in before:
                run.begin(configuration)
                run_or_reuse(run, earlier, result.parts[0], stack)
            for part in result.parts:
                run.begin(part.recipe, algorithm_among(recipes, part.recipe))
                if run.algorithm is not None:
                    run.display.say(run.algorithm)
                try:
                    outcome = run_or_reuse(run, flow, part, stack)
                except BudgetExceeded:
                    part.status = "budget_exhausted"
                    raise
                part.outcome = outcome.artifacts
                part.notes = outcome.notes
                connect(run)
                _reconcile(run, part)
                _let_production_follow(run, part)
                part.repaired = part.notes != outcome.notes
                part.status = outcome.status or "no_change"
            for further, (later, recipe) in after.items():
                run.begin(recipe, further)
                run.display.say(further)
                with tracked_until_its_end(run, RecipeRun(recipe)) as part:
                    result.further[further] = run_or_reuse(run, later, part, stack).artifacts
    except BaseException as error:  # noqa: BLE001  # however it ends, a run leaves its record
        result.end(error)
        if isinstance(error, Exception):
            _repair_aliases(run, result.parts)
    finally:
        usage.stop()
        run.fingerprints.save()
        result.measure(usage)
    return result


def _reconcile(run: Run[Any], part: RecipeRun) -> None:
    """Let the tracker follow the store: the part's registered version, its verdict, and the model's aliases.

    A registration that was found may be another tracker's.

    Raises:
        TrackingError: this tracker is not the one where the draft was registered, or does not answer for ten minutes.
    """
    from deepspec.gates.verdict import Verdict
    from deepspec.registry.entries import DraftReference
    from deepspec.registry.reconciling import reconcile_after, registered_at

    registration, draft, verdict = (part.outcome.get(name) for name in ("registration", "draft", "verdict"))
    tracking = run.tracking
    if tracking is None or not isinstance(registration, Artifact) or not isinstance(draft, Artifact):
        return
    said = registration.json("registration.json")
    reference = DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest, version=said["version"])
    judged = Verdict.from_json(verdict.json("verdict.json")) if isinstance(verdict, Artifact) else None
    where = registered_at(registration)
    done = tracking.patiently(
        lambda: reconcile_after(
            run.store,
            run.promotions,
            tracking,
            said["name"],
            reference,
            verdict=judged,
            since=run.began.get(said["name"], 0),
            registered_at=where,
        ),
        run.display.say,
        run.waiting,
    )
    part.version = done.version
    part.notes += done.notes
    for note in done.notes:
        run.display.say(note)


def _let_production_follow(run: Run[Any], part: RecipeRun) -> None:
    """Bring production up to the promotion log of the part's model; what it lacks fails no run, and is said."""
    from deepspec.registry.following import follow

    production, registration = production_of(run.store, run.home), part.outcome.get("registration")
    if production is None or not isinstance(registration, Artifact):
        return
    model = registration.json("registration.json")["name"]
    notes = follow(run.store, run.home, model, production, run.promotions).notes
    part.notes += notes
    for note in notes:
        run.display.say(note)


def _repair_aliases(run: Run[Any], parts: Sequence[RecipeRun]) -> None:
    """At the end of a run that failed: let the models' aliases follow their logs, and say what was otherwise.

    One try, and no error of its own: the run's says why it failed. Nothing is asked of MLflow where nothing was ever
    promoted.
    """
    from deepspec.registry.reconciling import repaired_aliases

    for part in parts:
        model = part.recipe.registered_model
        if part.outcome:
            continue  # it came to its own end
        try:
            if run.promotions.last(model) is None:
                continue
            tracking = run.tracking or tracking_of(run.home)
            notes = repaired_aliases(run.promotions, tracking, model, since=run.began.get(model, 0))
        except (DeepspecError, OSError) as error:
            logger.debug("The aliases of %s could not be looked at: %s", model, error)
            continue
        part.notes += notes
        for note in notes:
            run.display.say(note)


@contextmanager
def run_flow(
    flow: Flow, recipe: "Recipe", store: Store, home: Path, *, display: Display
) -> "Iterator[tuple[Run[Any], Mapping[str, Reference], RunWriter | None]]":
    """Run a flow that makes no draft: it leaves no `run.json`, and errors of stages are raised.

    Where it made something, the store's history has a record of it with what that cost.

    Args:
        flow, recipe, store, home, display: see `execute`.

    Yields:
        the run, what the flow returned, and the tracker's run (None where all was found, and nothing is tracked). What
        the flow returned is protected from collectors, and the tracker's run goes on, until the block ends.
    """
    run: Run[Any] = Run(recipe, store, home, display=display, on_shared_server=prefect_server.is_configured())
    usage = run.usage = Usage()
    run.name, run.recipes = flow.name, (recipe,)
    result = Result(run, flow.name, [RecipeRun(recipe)])
    try:
        run.begin(recipe)
        with ended_after(run), _paid_for(result, usage):
            with (
                prompt_back_soon(lambda: None),
                ExitStack() as stack,
                tracked_until_its_end(run, result.parts[0]) as part,
            ):
                outcome = run_or_reuse(run, flow, part, stack)
                tracked = run.tracking and part.tracking_run and run.tracking.writer(part.tracking_run)
                yield run, outcome.artifacts, tracked or None
            part.status = "no_change"
    finally:
        run.fingerprints.save()


@contextmanager
def _paid_for(result: Result, usage: Usage) -> Iterator[None]:
    """Leave in the history what a run without a draft has paid, however it ends, if it was more than a look."""
    try:
        yield
    except BaseException as error:
        result.end(error)
        raise
    finally:
        usage.stop()
        result.measure(usage)
        run = result.run
        if run.alive is not None:
            history.publish(run.store.backend, record_of(result))
            run.name = ""  # a run that ends it, should it have failed, has no record to leave


def run_or_reuse(run: Run[Any], flow: Flow, part: RecipeRun, stack: ExitStack) -> Outcome:
    """Preview a flow; then run it, leased and tracked as `part`, unless all its stages hit.

    Damage that a reader meets on the way sends the flow back to the producer, once.
    """
    looked = preview(run, flow)
    if looked.all_found and not run.on_shared_server:
        for record in looked.records:
            run.record(record)
        return looked.outcome
    refuse_over_budget(run, looked.records)
    if run.on_lease is None:
        begin(run, part, stack, makes_something=not looked.all_found)
    if not looked.all_found:
        start_tracking(run, part)
    # Where all was found, something may still have to be made: what is damaged, or judged against another champion.
    run.on_making = lambda: make_ready(run, part, stack)
    if run.on_shared_server and not looked.all_found:
        missing = [record.name for record in looked.records if record.status == "would_run"]
        run.outlook = Outlook(
            expected_seconds(missing, store=run.store, models=run.models, recipe=run.recipe, home=run.home)
        )
    run.lease_all(run.known.values())
    for attempt in (1, 2):
        try:
            with prefect_flow.FlowRun(run, flow) as flow_run:
                flow_run.call(run.given)
            return flow_run.outcome
        except ArtifactDamaged as damage:
            if attempt == 2:
                raise
            warn_of_damage(run, damage)
            protect(run, stack)
            run.known.clear()
    raise AssertionError("the second attempt returns or raises")


def refuse_over_budget(run: Run[Any], records: Sequence[StageRecord]) -> None:
    """Refuse what is over budget, or certainly has no room, before anything of it is made."""
    from deepspec.planning.budget import refuse
    from deepspec.recipe import Recipe

    if not isinstance(run.recipe, Recipe):
        return  # inputs of the demo
    try:
        refuse(run.recipe, run.home, records)
    except BudgetExceeded:
        for record in records:
            found = record.status in ("hit", "skipped")
            run.record(record if found else StageRecord(record.name, "skipped", kind=record.kind, why="over budget"))
        raise


def begin(run: Run[Any], part: RecipeRun, stack: ExitStack, *, makes_something: bool) -> None:
    """What a run under Prefect needs: its server; and a lease and the tracker's run, if it makes something."""
    # The server takes seconds to start: it does so while the tracker's libraries are imported.
    embedded = stack.enter_context(prefect_server.server(run.home))
    run.alive = run.alive or Alive(run)  # a flow in which all was found has begun, too
    connect(run)
    if makes_something:
        make_ready(run, part, stack)
    if embedded is not None:
        # While the server starts on one core, this one imports what the stages will need.
        for module in ("prefect", "deepspec.decoding.engine"):
            importlib.import_module(module)
        embedded.ready()
    end_dead(run)


def make_ready(run: Run[Any], part: RecipeRun, stack: ExitStack) -> None:
    """What a run needs that makes something: protection of what it relies on, and the part's run in the tracker."""
    protect(run, stack)
    start_tracking(run, part)


def connect(run: Run[Any]) -> "Tracking":
    """The tracker, where what came of the run is shown, and what died is ended; it is not asked for anything yet."""
    run.tracking = run.tracking or tracking_of(run.home)
    return run.tracking


def protect(run: Run[Any], stack: ExitStack) -> None:
    """Protect the artifacts that the run relies on from collectors, from now on."""
    if run.on_lease is None:
        lease = stack.enter_context(leased(run.store.backend, f"runs/{run.run_id}", keys=[], models=run.models))
        run.on_lease = lambda pairs: lease.note(keys=[list(pair) for pair in pairs])


def start_tracking(run: Run[Any], part: RecipeRun) -> None:
    """Begin the part's pipeline run in the tracker, if it has none: its parameters are the resolved recipe."""
    from deepspec.recipe import flat
    from deepspec.registry import keys

    if part.tracking_run is not None:
        return
    recipe = part.recipe
    tracking = connect(run)
    if run.alive is not None:
        run.alive.write()  # from here on there may be runs in MLflow of which this process never hears
    name = keys.run_name(recipe.registered_model, run.run_id)
    parameters = flat(recipe.model_dump(mode="json"))
    run.tracking_run = tracking.start_pipeline_run(name, parameters, _tags_of(run, recipe, tracking))
    part.tracking_run = run.tracking_run
    if run.alive is not None:
        run.alive.tracking_runs.append(run.tracking_run)
        run.alive.write()


def _tags_of(run: Run[Any], recipe: "Recipe", tracking: "Tracking") -> dict[str, str]:
    """What a pipeline run in the tracker says from its beginning: which run it is, of what, by whom."""
    from deepspec.account import local_user
    from deepspec.registry import keys

    commit = run.store.code.get("commit")
    user = tracking.current_user() or local_user()
    return {
        keys.RUN_ID: run.run_id,
        keys.RECIPE: recipe.name,
        keys.CODE_VERSION: str(commit or run.store.code.get("deepspec", "")),
        keys.USER: user.name or str(user),
        keys.SOURCE_NAME: run.night or f"deepspec run {recipe.name}",
        keys.SOURCE_TYPE: "JOB" if run.night else "LOCAL",
        **({keys.COMMIT: str(commit)} if commit else {}),
    }


@contextmanager
def tracked_until_its_end(run: Run[Any], part: RecipeRun) -> Iterator[RecipeRun]:
    """End the tracker's run of a part that no report is written of, however the block ends."""
    ended: TrackedStatus = "FAILED"
    try:
        yield part
        ended = "FINISHED"
    except BaseException as error:
        ended = "KILLED" if is_interruption(error) else "FAILED"
        raise
    finally:
        if run.tracking is not None and part.tracking_run is not None:
            run.tracking.finish(part.tracking_run, ended)


def warn_of_damage(run: Run[Any], damage: ArtifactDamaged) -> None:
    """Warn of damage that a reader has met; the artifact is condemned if it is damaged in the store, too.

    A reader by range, in another process, cannot condemn.
    """
    warning = str(damage)
    artifact = run.store.find(damage.kind, damage.key)
    if artifact is not None and (damage.file is None or not artifact.settle(damage.file)):
        warning = f"{damage.where}: What came over the network was damaged; the artifact is not. It is read again."
    logger.warning("%s", warning)
    run.display.say(f"Warning: {warning}")
