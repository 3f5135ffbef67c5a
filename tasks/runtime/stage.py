"""The one decorator: what a stage's key is, when its result is reused, how it is made and published.

    @dataclass(frozen=True)
    class Inputs:
        responses: Artifact
        target: External

    @stage(version=1, reads=("data.mask", "data.max_length_tokens"))
    def tokens(inputs: Inputs, config: Recipe, out: Path, job: Job) -> StageCounts:
        ...write files into `out`, return counts...

    reference = tokens(run, responses=responses_reference, target=external)      # in a flow

A stage's function sees its inputs, the fields of the recipe that it declares, where to write, and how it is to run:
nothing else can influence what it makes. Calling a stage looks its key up in the store, once, under the key's lock:
that is the only truth about what exists. In a preview nothing else happens. What is missing is made as a Prefect task,
whose own cache is decoration: its cache key is the store key where the artifact exists and nothing where it does not,
and its result is a reference, never data.
"""

import inspect
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.config import left_out_of_key, narrowed, path_in_key
from deepspec.errors import BudgetExceeded, DataError, DeepspecError, TransientError
from deepspec.progress import Progress
from deepspec.record import StageStatus
from deepspec.store import Artifact, Ingredients, LookUp, Parent, artifact_key
from deepspec.store.fingerprint import External
from tasks.runtime.allowance import allowance_of
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job, device_of
from tasks.runtime.paid import paid, payer_of
from tasks.runtime.prefect import pages
from tasks.runtime.prefect.flow import state_of
from tasks.runtime.reasons import DAMAGED, MADE_MEANWHILE, UNCHANGED, reason_to_make
from tasks.runtime.records import StageRecord
from tasks.runtime.references import Pending, Reference, Value
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from prefect import Task

Function = Callable[[Any, Any, Path, Job], StageCounts]
"""A stage's function: (inputs, config, out, job) -> counts."""

Computes = Callable[[Any, Any], bool]
"""Whether a stage needs a device: (inputs, recipe) -> bool."""

RETRY_POLICY: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 10], "retry_jitter_factor": 0.5}
"""The one retry policy: for failures that may pass by themselves, and for nothing else (see `is_transient`)."""


def is_transient(error: BaseException) -> bool:
    """Whether running a stage again may help: never after an error of data, recipe or gate."""
    if isinstance(error, DeepspecError):
        return isinstance(error, TransientError)
    return isinstance(error, ConnectionError | TimeoutError)


class Stage:
    """A cached step of a flow; call it with a run and its inputs."""

    def __init__(
        self,
        function: Function,
        *,
        version: int,
        reads: tuple[str, ...] = (),
        by_input: Mapping[str, tuple[str, ...]] | None = None,
        computes: bool | Computes = False,
        workers: str | None = None,
    ) -> None:
        self.function = function
        self.name = function.__name__.removesuffix("_")  # of a name that is a word of Python
        self.version = version
        self.reads = reads
        self.by_input = dict(by_input or {})
        self.computes = computes
        self.workers = workers
        self.Inputs: Callable[..., Any] = inspect.signature(function).parameters["inputs"].annotation
        self.purpose = inspect.getdoc(function) or ""
        self.__doc__ = function.__doc__

    def ingredients(self, run: Run[Any], inputs: Mapping[str, Reference]) -> Ingredients:
        """Everything the result depends on; `inputs` must not be pending."""
        # A field that was added later is not in the key while it has the value that changes nothing.
        read = (path for path in self.reads if not left_out_of_key(run.recipe, path))
        sections = {path_in_key(run.recipe, path): run.section(path) for path in read}
        sections |= {name: item.value for name, item in inputs.items() if isinstance(item, Value)}
        parents = {name: parent.digest for name, parent in _parents(inputs).items()}
        return Ingredients(self.name, self.version, sections, parents)

    def config(self, recipe: Any) -> Any:
        """What the function sees of the recipe: the fields it declares, and those that its inputs' content covers."""
        return narrowed(recipe, [*self.reads, *(path for paths in self.by_input.values() for path in paths)])

    def __call__(self, run: Run[Any], **inputs: Reference) -> Artifact | Pending:
        """The stage's artifact: found, or made now.

        Returns:
            the artifact; in a preview, `Pending` if it or one of its inputs would have to be made.

        Raises:
            DeepspecError: the stage failed; nothing of it is visible.
        """
        waiting = [name for name, item in inputs.items() if isinstance(item, Pending)]
        if waiting:
            run.record(StageRecord(self.name, "would_run", kind=self.name, why=f"after {', '.join(waiting)}"))
            return Pending(self.name)
        making = Making(run, self, inputs)
        if run.previewing:
            return making.preview()
        with making.recorded(), making.alone():
            if making.found is None or run.on_shared_server:  # a shared server's pages show what is reused, too
                self.task(making)
            if making.over_budget is not None:
                raise making.over_budget
        return making.artifact

    @cached_property
    def task(self) -> "Task[..., dict[str, str]]":
        """The Prefect task: same name, key from the store, JSON result, the one retry policy."""
        from prefect import task

        return task(
            name=self.name,
            description=self.purpose,
            cache_key_fn=_prefect_cache_key,
            persist_result=True,
            result_serializer="json",
            retry_condition_fn=_prefect_retries,
            **RETRY_POLICY,
        )(make)


class Making:
    """One call of a stage: its key, what the store has of it, and what becomes of it."""

    def __init__(self, run: Run[Any], stage: Stage, inputs: Mapping[str, Reference]) -> None:
        self.run = run
        self.stage = stage
        self.inputs = inputs
        self.ingredients = stage.ingredients(run, inputs)
        self.key = artifact_key(self.ingredients)
        self.found = run.known.get((stage.name, self.key))
        self.looked_up: LookUp | None = None
        self.reason = UNCHANGED
        self.over_budget: BudgetExceeded | None = None

    @property
    def artifact(self) -> Artifact:
        """What was found or made."""
        if self.found is None:
            raise RuntimeError(f"{self.stage.name} is not made yet")
        return self.found

    def preview(self) -> Artifact | Pending:
        """Look it up; what is not there would be made."""
        self._look_up()
        status: StageStatus = "hit" if self.found is not None else "would_run"
        self.run.record(StageRecord(self.stage.name, status, 0.0, self.stage.name, self.key, self.reason.why))
        return self.found or Pending(self.stage.name)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold off other runs that would make it, too, and look it up unless it is known."""
        self.run.lease(self.stage.name, self.key)
        if self.found is not None:
            yield
            return
        with self.run.alone_with(self.key, self.stage.name):
            self._look_up()
            yield
            shutil.rmtree(self.run.work_folder(self.key), ignore_errors=True)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Leave the stage's line in the run's record; what it waited for others is not its time."""
        started = time.monotonic() - self.run.waited
        self.run.begin_making(self.stage.name, self.key)
        try:
            yield
        except BaseException as error:
            self._record("failed", str(error) or type(error).__name__, started)
            raise
        self.run.making = None
        self._record(self.reason.status, self.reason.why, started)

    def handed(self) -> Any:
        """The stage's `inputs`: artifacts, external inputs, and values as they are."""
        return self.stage.Inputs(
            **{name: item.value if isinstance(item, Value) else item for name, item in self.inputs.items()}
        )

    def job(self, progress: Progress) -> Job:
        """The stage's `job`."""
        run = self.run
        return Job(
            self.stage.name,
            self.key,
            run.run_id,
            run.home,
            run.store,
            run.artifact,
            execution=run.execution,
            progress=progress,
            sections={path: run.section(path) for path in self.stage.reads},
            inputs=self.inputs,
            tracking=run.tracking,
            tracking_run=run.tracking_run,
            say=run.display.say,
            waiting=run.waiting,
        )

    def _look_up(self) -> None:
        """Ask the store, once in a run."""
        run, name = self.run, self.stage.name
        if self.found is not None:
            return
        there = self.looked_up = run.store.look_up(name, self.key)
        expected = run.reasons.get(self.key)
        if there.artifact is not None:
            self.found = run.known[name, self.key] = there.artifact
            self.reason = UNCHANGED if expected is None else MADE_MEANWHILE
        else:
            self.reason = DAMAGED if there.damaged else expected or reason_to_make(run.store, self.ingredients)
            run.reasons[self.key] = self.reason

    def _record(self, status: StageStatus, why: str, started: float) -> None:
        seconds = round(time.monotonic() - self.run.waited - started, 3)
        self.run.record(StageRecord(self.stage.name, status, seconds, self.stage.name, self.key, why))


def make(making: Making) -> Any:
    """Make one artifact: the body of every stage's Prefect task.

    Returns:
        the reference (kind, key and digest); as a state `Cached` where the artifact is there already. Where the budget
        is used up, the state BudgetExhausted: the stage raises the error.
    """
    if making.found is not None:
        return pages.cached(_reference(making.found))
    run, stage = making.run, making.stage
    run.on_making()
    computes = stage.computes if isinstance(stage.computes, bool) else stage.computes(making.handed(), run.recipe)
    try:
        with pages.shown(run, stage.name, computes=computes, workers=stage.workers) as page:
            job = making.job(page)
            parents = _parents(making.inputs)
            num_gpus = getattr(run.execution, stage.workers) if stage.workers else 1
            used_gpus = num_gpus if computes and device_of(run.execution) == "cuda" else 0
            payer = payer_of(run)
            account = paid(run.accounts, run.home, making.key, payer, num_gpus=used_gpus)
            with (
                account as paying,
                run.store.write(stage.name, making.ingredients, parents, making.looked_up) as writing,
            ):
                job.allowance = allowance_of(run, paying.earlier, num_gpus=used_gpus)
                started = time.monotonic()
                try:
                    counts = stage.function(making.handed(), stage.config(run.recipe), writing.directory, job)
                except DataError as error:
                    _keep_quarantine(run, stage.name, writing.directory, error)
                    raise
                if job.computes_on_gpu or counts.device == "cuda":
                    writing.gpu_seconds = round((time.monotonic() - started) * num_gpus, 3)
                    counts = counts.model_copy(update={"gpu_seconds": writing.gpu_seconds})
                writing.counts, writing.made_by, writing.earlier = counts.to_json(), payer, paying.earlier()
                _check_unchanged(making.inputs)
                paying.close_with(writing)
            making.found = run.known[stage.name, making.key] = writing.artifact
            page.show_table(making.key, counts)
    except BudgetExceeded as error:
        making.over_budget = error
        return state_of("budget_exhausted", str(error))
    return _reference(making.found)


def _reference(artifact: Artifact) -> dict[str, str]:
    return {"kind": artifact.kind, "key": artifact.key, "digest": artifact.digest}


def _check_unchanged(inputs: Mapping[str, Reference]) -> None:
    """Refuse a result whose input was edited while it was read: it would stand under the old key."""
    for name, item in inputs.items():
        if isinstance(item, External) and item.again is not None and item.again() != item.fingerprint:
            raise DataError(
                f"The input {name} was changed while it was read.", where=item.location, remedy="Run again."
            )


def _keep_quarantine(run: Run[Any], name: str, directory: Path, error: DataError) -> None:
    """A failed stage leaves no artifact, but the rows that it refused must stay where their owner can read them."""
    if error.where is None or not Path(error.where).is_relative_to(directory):
        return  # it is about something else than what the stage has written
    source = Path(error.where)
    target = run.folder / f"{source.stem}-{name}{source.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    error.where = str(target)


def stage(
    *,
    version: int,
    reads: tuple[str, ...] = (),
    by_input: Mapping[str, tuple[str, ...]] | None = None,
    computes: bool | Computes = False,
    workers: str | None = None,
) -> Callable[[Function], Stage]:
    """Make a stage of a function `(inputs, config, out, job) -> counts`.

    Args:
        version: bumped whenever the function's output changes for equal inputs.
        reads: dotted recipe paths whose values the key contains.
        by_input: input -> dotted recipe paths that its digest stands for; with `reads`, all that `config` has.
        computes: whether it needs a device to itself, and so takes a concurrency slot on a shared server
            (prefect/concurrency.py); of a stage that does not always, a function of its inputs and the recipe.
        workers: the field of `run:` that says on how many devices it runs; None: one.
    """

    def decorate(function: Function) -> Stage:
        return Stage(function, version=version, reads=reads, by_input=by_input, computes=computes, workers=workers)

    return decorate


def _parents(inputs: Mapping[str, Reference]) -> dict[str, Parent]:
    parents = {}
    for name, item in inputs.items():
        if isinstance(item, Artifact):
            parents[name] = Parent(kind=item.kind, key=item.key, digest=item.digest)
        elif isinstance(item, External):
            parents[name] = Parent(kind="external", digest=item.fingerprint)
    return parents


def _prefect_cache_key(context: Any, parameters: dict[str, Any]) -> str | None:
    """The store key if the artifact is there; None, which forces execution, if not."""
    del context
    making: Making = parameters["making"]
    return None if making.found is None else f"{making.stage.name}-{making.key}"


def _prefect_retries(task: Any, task_run: Any, state: Any) -> bool:
    del task, task_run
    return is_transient(state.result(raise_on_failure=False))
