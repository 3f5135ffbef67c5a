"""The one decorator: what a stage's key is, when its result is reused, how it runs and is published.

    @stage(version=1, reads=("data.mask", "data.max_length_tokens"))
    def tokens(run: Run[Any], out: Path, *, responses: Path, target: Path) -> dict[str, Any]:
        ...write files into `out`, return counts...

    reference = tokens(run, responses=responses_reference, target=external)

Calling a stage looks its key up in the store: that is the only truth about what exists. In planning nothing else
happens. In a run, what is missing is executed as a Prefect task, whose own cache is decoration: its cache key is the
store key where the artifact exists and nothing where it does not, and its result is a reference, never data.
"""

import inspect
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.config import left_out_of_key
from deepspec.errors import DataError, DeepspecError, TransientError
from deepspec.store import Artifact, Ingredients, Parent, artifact_key
from deepspec.store.fingerprint import External
from deepspec.store.keys import differences
from tasks.runtime.records import StageRecord, StageStatus
from tasks.runtime.references import Pending, Reference, Value
from tasks.runtime.run import Current, Run

if TYPE_CHECKING:
    from prefect import Task

logger = logging.getLogger(__name__)

_MOST_REASONS = 4
_MOST_COMPARED = 20
"""Of the artifacts of a kind, so many of the newest are asked what changed: each is a request to the store."""

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
        function: Callable[..., dict[str, Any]],
        *,
        version: int,
        reads: tuple[str, ...],
        streams: tuple[str, ...] = (),
        computes: bool = False,
    ) -> None:
        self.function = function
        self.name = function.__name__
        self.version = version
        self.reads = reads
        self.streams = streams
        self.computes = computes
        self.purpose = inspect.getdoc(function) or ""
        self.__doc__ = function.__doc__

    def ingredients(self, run: Run[Any], inputs: Mapping[str, Reference]) -> Ingredients:
        """Everything the result depends on; `inputs` must not be pending."""
        # A field that was added later is not in the key while it has the value that changes nothing.
        sections = {path: run.section(path) for path in self.reads if not left_out_of_key(run.recipe, path)}
        sections |= {name: item.value for name, item in inputs.items() if isinstance(item, Value)}
        parents = {name: parent.digest for name, parent in _parents(inputs).items()}
        return Ingredients(self.name, self.version, sections, parents)

    def __call__(self, run: Run[Any], **inputs: Reference) -> Artifact | Pending:
        """The stage's artifact: found, or made now.

        Returns:
            the artifact; while planning, `Pending` if it or one of its inputs would have to be made.

        Raises:
            DeepspecError: the stage failed; nothing of it is visible.
        """
        if any(isinstance(item, Pending) for item in inputs.values()):
            waiting = ", ".join(name for name, item in inputs.items() if isinstance(item, Pending))
            run.record(StageRecord(self.name, "would_run", kind=self.name, why=f"after {waiting}"))
            return Pending(self.name)
        ingredients = self.ingredients(run, inputs)
        key = artifact_key(ingredients)
        started = time.monotonic()
        found = run.store.find(self.name, key)
        if found is not None:
            run.lease(self.name, key)
            if run.served:
                self.task(run, self, ingredients, inputs)  # so that its pages show what was reused
            seconds = time.monotonic() - started
            run.record(StageRecord(self.name, "hit", round(seconds, 3), self.name, key, "nothing changed"))
            return found
        why = self._why(run, ingredients, key)
        if run.plan:
            run.record(StageRecord(self.name, "would_run", kind=self.name, key=key, why=why))
            return Pending(self.name)
        return self._make(run, ingredients, inputs, why)

    def _make(self, run: Run[Any], ingredients: Ingredients, inputs: Mapping[str, Reference], why: str) -> Artifact:
        key = artifact_key(ingredients)
        started = time.monotonic()
        run.progress = run.display.stage(self.name)
        run.current = Current(key, self.reads, inputs)
        run.lease(self.name, key)
        try:
            with run.alone_with(key, self.name):
                artifact = run.store.find(self.name, key)
                status: StageStatus = "hit"
                if artifact is not None:
                    why = "another run has just made it"
                    if run.served:
                        self.task(run, self, ingredients, inputs)
                else:
                    status = "rebuilt" if why.startswith("damaged") else "ran"
                    self.task(run, self, ingredients, inputs)
                    artifact = run.store.get(self.name, key)
                    shutil.rmtree(run.work_folder, ignore_errors=True)
        except BaseException as error:
            seconds = round(time.monotonic() - started, 3)
            run.record(StageRecord(self.name, "failed", seconds, self.name, key, str(error) or type(error).__name__))
            raise
        run.record(StageRecord(self.name, status, round(time.monotonic() - started, 3), self.name, key, why))
        return artifact

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
        )(_task)

    def _why(self, run: Run[Any], ingredients: Ingredients, key: str) -> str:
        """Which ingredient changed against the nearest earlier artifact of this kind."""
        listing = run.store.backend.list(f"{self.name}/{key}")
        if any("/manifest." in path for path in listing):
            return "damaged: its files no longer match the manifest"
        new = ingredients.canonical()
        nearest: list[str] | None = None
        for earlier in run.store.latest(self.name, _MOST_COMPARED):
            phrases = differences(new, earlier.ingredients)
            if phrases and (nearest is None or len(phrases) < len(nearest)):
                nearest = phrases
        if not nearest:
            return "nothing like it in the store"
        more = [f"and {len(nearest) - _MOST_REASONS} more"] if len(nearest) > _MOST_REASONS else []
        return ", ".join(nearest[:_MOST_REASONS] + more)


def _task(run: Run[Any], stage: Stage, ingredients: Ingredients, inputs: Mapping[str, Reference]) -> Any:
    """`execute` with what Prefect's pages show beside it; what is in the store ends in the state Cached."""
    from tasks.runtime.prefect.concurrency import slot
    from tasks.runtime.prefect.pages import ProgressArtifact, cached, show_table

    found = run.store.find(stage.name, artifact_key(ingredients))
    if found is not None:
        return cached(_reference(found))
    told = ProgressArtifact(stage.name, run.progress)
    run.progress = told
    with slot(run, stage.name, computes=stage.computes):
        made = execute(run, stage, ingredients, inputs)
    told.finish()
    show_table(stage.name, made["key"], run.store.get(made["kind"], made["key"]).manifest.counts)
    return made


def execute(run: Run[Any], stage: Stage, ingredients: Ingredients, inputs: Mapping[str, Reference]) -> dict[str, str]:
    """Make one artifact: check the inputs' bytes, call the stage's function, publish; the body of every task.

    Returns:
        the reference: kind, key and digest.
    """
    found = run.store.find(stage.name, artifact_key(ingredients))
    if found is None:
        paths = {name: _handed(item, streamed=name in stage.streams) for name, item in inputs.items()}
        with run.store.write(stage.name, ingredients, _parents(inputs)) as writing:
            run.num_gpus, started = 0, time.monotonic()
            try:
                writing.counts = stage.function(run, writing.directory, **paths)
                if run.num_gpus:
                    writing.counts |= {"gpu_seconds": round((time.monotonic() - started) * run.num_gpus, 3)}
            except DataError as error:
                _keep_quarantine(run, stage.name, writing.directory, error)
                raise
            _check_unchanged(inputs)
        found = writing.artifact
    return _reference(found)


def _reference(artifact: Artifact) -> dict[str, str]:
    return {"kind": artifact.kind, "key": artifact.key, "digest": artifact.digest}


def _check_unchanged(inputs: Mapping[str, Reference]) -> None:
    """Refuse a result that was read from an input while somebody edited it: it would stand under the old key."""
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
    *, version: int, reads: tuple[str, ...] = (), streams: tuple[str, ...] = (), computes: bool = False
) -> Callable[[Callable[..., dict[str, Any]]], Stage]:
    """Make a stage of a function `(run, out, **inputs) -> counts`.

    Args:
        version: bumped whenever the function's output changes for equal inputs.
        reads: dotted recipe paths that the function reads; nothing else of the recipe may influence it.
        streams: inputs that are read where they are, a piece at a time (see `deepspec.store.reading.files`): the
            function is handed their location instead of a folder with all their files.
        computes: whether it runs a model, and so takes a slot where machines are shared (see `prefect/concurrency.py`).
    """

    def decorate(function: Callable[..., dict[str, Any]]) -> Stage:
        return Stage(function, version=version, reads=reads, streams=streams, computes=computes)

    return decorate


def _parents(inputs: Mapping[str, Reference]) -> dict[str, Parent]:
    parents = {}
    for name, item in inputs.items():
        if isinstance(item, Artifact):
            parents[name] = Parent(kind=item.kind, key=item.key, digest=item.digest)
        elif isinstance(item, External):
            parents[name] = Parent(kind="external", digest=item.fingerprint)
    return parents


def _handed(item: Reference, *, streamed: bool) -> Any:
    """What a stage's function is handed: a checked folder, where to read from, an external location, or the value."""
    if isinstance(item, Artifact):
        return item.location() if streamed else item.directory()
    if isinstance(item, External):
        return Path(item.location)
    if isinstance(item, Value):
        return item.value
    raise TypeError(f"{item} has no content yet")


def _prefect_cache_key(context: Any, parameters: dict[str, Any]) -> str | None:
    """The store key if the artifact is there; None, which forces execution, if not."""
    del context
    run, current, ingredients = parameters["run"], parameters["stage"], parameters["ingredients"]
    key = artifact_key(ingredients)
    return f"{current.name}-{key}" if run.store.find(current.name, key) is not None else None


def _prefect_retries(task: Any, task_run: Any, state: Any) -> bool:
    del task, task_run
    return is_transient(state.result(raise_on_failure=False))
