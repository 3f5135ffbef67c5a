"""What a stage shows in Prefect's pages: how far it is, how far its run is, and a table of what it made."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from deepspec.progress import Progress
from deepspec.registry import keys
from tasks.runtime.counts import StageCounts
from tasks.runtime.prefect.concurrency import concurrency_slots
from tasks.runtime.run import Run

RUN_PROGRESS = "run-progress"
_EVERY_SECONDS = 2.0
_TRACKER_EVERY_SECONDS = 30.0


@contextmanager
def shown(run: Run[Any], stage: str, *, computes: bool, workers: str | None) -> Iterator["Page"]:
    """The page that shows a stage while the block runs; waits for the stage's concurrency slots first."""
    page = Page(stage, run.display.stage(stage), WholeRun(run))
    with concurrency_slots(run, stage, computes=computes, workers=workers):
        page.begin()
        yield page
    page.finish()


class WholeRun:
    """How far a run is, on its flow run's page and on its run's in the tracker."""

    def __init__(self, run: Run[Any]) -> None:
        self._run = run
        self._shown = self._told_tracker = 0.0

    def begin(self, stage: str) -> None:
        """A stage is being made from now on."""
        if self._run.outlook is not None:
            self._run.outlook.begin(stage)
            self._told_tracker = -_TRACKER_EVERY_SECONDS
            self._show()

    def advance(self, share: float) -> None:
        """So much of the stage is done."""
        if self._run.outlook is not None:
            self._run.outlook.advance(share)
            self._show()

    def end(self) -> None:
        """The stage is made; the next one says so, unless that comes late or there is none."""
        if self._run.outlook is not None:
            self._run.outlook.end()
            if self._run.outlook.percent >= 100 or time.monotonic() - self._shown >= _EVERY_SECONDS:
                self._show()

    def _show(self) -> None:
        run, outlook = self._run, self._run.outlook
        if outlook is None:
            return
        run.progress_artifact = _progress(RUN_PROGRESS, run.progress_artifact, outlook.percent, outlook.sentence)
        now = self._shown = time.monotonic()
        if run.tracking is not None and run.tracking_run and now - self._told_tracker >= _TRACKER_EVERY_SECONDS:
            self._told_tracker = now
            writer = run.tracking.writer(run.tracking_run)
            writer.metrics({keys.PROGRESS: outlook.percent}, step=int(outlook.seconds))
            writer.tags({keys.NOTE: outlook.sentence})
            writer.flush()


class Page:
    """Passes progress on to a display, and now and then to a Prefect progress artifact (0 to 100 %)."""

    def __init__(self, name: str, display: Progress, whole: WholeRun) -> None:
        self._name = name
        self._shown = display
        self._whole = whole
        self._total = self._done = 0
        self._artifact: UUID | None = None
        self._updated = time.monotonic()

    def begin(self) -> None:
        """The stage is being made from now on."""
        self._whole.begin(self._name)

    def start(self, total: int, unit: str) -> None:
        """Announce the work to both."""
        self._total, self._done = total, 0
        self._shown.start(total, unit)

    def advance(self, amount: int = 1) -> None:
        """Advance both; for short stages Prefect's server is never called."""
        self._done += amount
        self._shown.advance(amount)
        if self._total > 0 and time.monotonic() - self._updated >= _EVERY_SECONDS:
            self._updated = time.monotonic()
            self._show(min(100.0, 100.0 * self._done / self._total))
            self._whole.advance(self._done / self._total)

    def show_table(self, key: str, counts: StageCounts) -> None:
        """A table artifact: what the stage counted, and the key of what it made; none outside of a task run."""
        from prefect.artifacts import create_table_artifact
        from prefect.context import TaskRunContext

        if TaskRunContext.get() is None:
            return
        rows = [
            {"name": "key", "value": key},
            *({"name": n, "value": str(v)} for n, v in sorted(counts.to_json().items())),
        ]
        description = f"What the stage {self._name} made."
        create_table_artifact(rows, key=_key(self._name, "result"), description=description)

    def finish(self) -> None:
        """Complete the bar, if there is one."""
        if self._artifact is not None:
            self._show(100.0)
        self._whole.end()

    def _show(self, percent: float) -> None:
        self._artifact = _progress(_key(self._name, "progress"), self._artifact, percent, self._name)


def _progress(key: str, artifact: UUID | None, percent: float, description: str) -> UUID | None:
    """Make a progress artifact, or bring it up to date; its id."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    if artifact is None:
        made = create_progress_artifact(percent, key=key, description=description)
        return made if isinstance(made, UUID) else None
    update_progress_artifact(artifact, percent, description=description)
    return artifact


def cached(reference: dict[str, str]) -> Any:
    """The state of a task whose artifact was in the store already."""
    from prefect.states import Completed

    return Completed(name="Cached", message="It was in the artifact store.", data=reference)


def _key(name: str, what: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return f"{name.replace('_', '-')}-{what}"
