"""What a stage shows in Prefect's pages: how far it is, and a table of what it made."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from deepspec.progress import Progress
from tasks.runtime.counts import StageCounts
from tasks.runtime.prefect.concurrency import concurrency_slots
from tasks.runtime.run import Run

_EVERY_SECONDS = 2.0


@contextmanager
def shown(run: Run[Any], stage: str, *, computes: bool, workers: str | None) -> Iterator["Page"]:
    """The page that shows a stage while the block runs; waits for the stage's concurrency slots first."""
    page = Page(stage, run.display.stage(stage))
    with concurrency_slots(run, stage, computes=computes, workers=workers):
        yield page
    page.finish()


class Page:
    """Passes progress on to a display, and now and then to a Prefect progress artifact (0 to 100 %)."""

    def __init__(self, name: str, display: Progress) -> None:
        self._name = name
        self._shown = display
        self._total = self._done = 0
        self._artifact: UUID | None = None
        self._updated = time.monotonic()

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

    def _show(self, percent: float) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._artifact is None:
            made = create_progress_artifact(percent, key=_key(self._name, "progress"), description=self._name)
            self._artifact = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(self._artifact, percent)


def cached(reference: dict[str, str]) -> Any:
    """The state of a task whose artifact was in the store already."""
    from prefect.states import Completed

    return Completed(name="Cached", message="It was in the artifact store.", data=reference)


def _key(name: str, what: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return f"{name.replace('_', '-')}-{what}"
