"""What a stage shows in Prefect's pages: how far it is, and a table of what it made."""

import time
from typing import Any
from uuid import UUID

from deepspec.progress import Progress

_EVERY_SECONDS = 2.0


class ProgressArtifact:
    """Passes progress on to a display, and now and then to a Prefect progress artifact (0 to 100 %)."""

    def __init__(self, name: str, shown: Progress) -> None:
        self._name = name
        self._shown = shown
        self._total = self._done = 0
        self._artifact: UUID | None = None
        self._updated = time.monotonic()

    def start(self, total: int, unit: str) -> None:
        """Announce the work to both."""
        self._total, self._done = total, 0
        self._shown.start(total, unit)

    def advance(self, amount: int = 1) -> None:
        """Tell both; short stages never reach Prefect's server for it."""
        self._done += amount
        self._shown.advance(amount)
        if self._total > 0 and time.monotonic() - self._updated >= _EVERY_SECONDS:
            self._updated = time.monotonic()
            self._show(min(100.0, 100.0 * self._done / self._total))

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


def show_table(name: str, key: str, counts: dict[str, Any]) -> None:
    """A table artifact: what a stage counted, and the key of what it made."""
    from prefect.artifacts import create_table_artifact

    rows = [{"name": "key", "value": key}, *({"name": n, "value": str(v)} for n, v in sorted(counts.items()))]
    create_table_artifact(rows, key=_key(name, "result"), description=f"What the stage {name} made.")


def _key(name: str, what: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return f"{name.replace('_', '-')}-{what}"
