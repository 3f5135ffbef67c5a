"""Signs of life: a run says that it is there; the next one in the same home ends what failed, or died without a word.

A run that makes something keeps the note `<home>/running/<run id>.json` (what its record would say by now, its runs in
MLflow and on Prefect's server) and holds a lock beside it, which the kernel takes from a dead process. So a note whose
lock is free is of a run that was killed, or whose machine was. A home may be shared by machines whose locks do not
reach each other: there the lease in the store has to be over, too.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from deepspec import history
from deepspec.atomic_write import write_text
from deepspec.cost.prices import Prices
from deepspec.errors import DeepspecError
from deepspec.file_lock import FileLock
from deepspec.record import FORMAT, RunRecord
from deepspec.registry.errors import TrackingLost
from deepspec.store.backends.s3_location import shown as without_credentials
from deepspec.store.lease import live
from tasks.runtime.prefect.ended import end_flow_runs, ousted
from tasks.runtime.record.run_record import read_record, write_record
from tasks.runtime.record.spent import cost_of, with_cost_of_dead

if TYPE_CHECKING:
    from deepspec.registry.mlflow.tracking import Status as TrackedStatus
    from tasks.runtime.run import Run

logger = logging.getLogger(__name__)

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What a note raises that cannot be read or is another deepspec's."""


class Alive:
    """A run's note and lock, until `end`.

    Attributes:
        flow_runs: ids of its flow runs on Prefect's server.
        tracking_runs: ids of its runs in MLflow.
    """

    def __init__(self, run: "Run[Any]") -> None:
        self.flow_runs: list[str] = []
        self.tracking_runs: list[str] = []
        self._run = run
        self._started = time.time()
        folder = run.home / "running"
        folder.mkdir(parents=True, exist_ok=True)
        self._note = folder / f"{run.run_id}.json"
        self._lock = FileLock(_lock_of(self._note))
        self._lock.acquire()
        self.write()

    def write(self) -> None:
        """Write the note as things are now; without room for it the run goes on."""
        run = self._run
        content = {
            "format": FORMAT,
            "host": socket.gethostname(),
            "record": self._record().to_json() if run.name else None,
            "prefect": _server(run),
            "flow_runs": self.flow_runs,
            "mlflow": run.tracking.shown_uri if run.tracking is not None else None,
            "tracking_runs": self.tracking_runs,
            "making": [run.making, run.making_key] if run.making and run.making_key else None,
        }
        with contextlib.suppress(OSError):
            write_text(self._note, json.dumps(content))

    def end(self, *, in_order: bool = True) -> None:
        """The run has ended, and all that others see of it; else a later run ends what this one could not."""
        if in_order:
            _forget(self._note)
        else:
            self.write()
        self._lock.release()

    def _record(self) -> RunRecord:
        """What is left of the run if it goes no further; its cost is that of the process so far."""
        run = self._run
        used = {} if run.usage is None else {"cpu_seconds": run.usage.cpu_seconds_now(), **run.usage.counted()}
        recipes = tuple(recipe.model_dump(mode="json") for recipe in run.recipes)
        return RunRecord(
            format=FORMAT,
            run_id=run.run_id,
            recipe=run.name,
            status="interrupted",
            seconds=round(time.time() - self._started, 2),
            peak_rss_bytes=0,
            stages=tuple(stage.entry() for stage in run.records),
            cost=cost_of(used, Prices()),
            report=None,
            store=run.store.backend.location,
            error="The run's process ended without a word: it was killed, or its machine went down.",
            resolved_recipe=recipes[0] if len(recipes) == 1 else recipes or None,
            registered_models=run.models,
            flow_runs=tuple(self.flow_runs),
            tracking_runs=tuple(self.tracking_runs),
            night=run.night,
        )


def end_dead(run: "Run[Any]") -> None:
    """End the runs of this home that died: their records, their flow runs, their runs in MLflow.

    What cannot be ended now, because its server does not answer or is another one, is left to a later run.
    """
    notes = sorted((run.home / "running").glob("*.json"))
    alive: set[str] = set()
    dead: list[tuple[Path, FileLock, dict[str, Any]]] = []
    with contextlib.ExitStack() as held:
        for note in notes:
            lock = FileLock(_lock_of(note))
            with contextlib.suppress(*_UNREADABLE):
                content = json.loads(note.read_text(encoding="utf-8"))
                if note.stem == run.run_id or not _is_free(lock, held) or _lives_elsewhere(run, note.stem, content):
                    alive.update(content["flow_runs"])
                elif note.exists():  # and nobody else has just ended it
                    dead.append((note, lock, content))
        for note, _, content in dead:
            try:
                left = _end(run, note, content, alive)
                if left:
                    write_text(note, json.dumps({**content, **left}))
                else:
                    _forget(note)
            except (DeepspecError, *_UNREADABLE) as error:  # it is no reason for this run to fail
                logger.warning("Run %s died, and could not be ended: %s", note.stem, error)
        _end_ousted(run, alive)


def _end_ousted(run: "Run[Any]", alive: set[str]) -> None:
    """End flow runs of this run's night that left no note: their processes died while they started."""
    if not run.on_shared_server:
        return
    import httpx

    try:
        found = list(ousted())
        if found:
            end_flow_runs(found, alive)
    except httpx.HTTPError as error:
        logger.warning("Flow runs of this night that died could not be ended: %s", error)


def _end(run: "Run[Any]", note: Path, content: dict[str, Any], alive: set[str]) -> dict[str, Any]:
    """End one that is dead; what of its note is still to be done."""
    record = read_record(run.home, note.stem)
    if record is None and content["record"] is not None:
        record = RunRecord.model_validate(content["record"])
        record = with_cost_of_dead(record, content.get("making"), run.store)
        write_record(record, run.home, is_last=False)
    if record is not None and record.store == run.store.backend.location:
        history.publish(run.store.backend, record)
    tracked = _end_tracking(run, note.stem, content, record)
    shown = _end_flow_runs(run, content, alive)
    if tracked and shown:
        return {}
    return {
        "tracking_runs": [] if tracked else content["tracking_runs"],
        "flow_runs": [] if shown else content["flow_runs"],
    }


def _end_tracking(run: "Run[Any]", run_id: str, content: dict[str, Any], record: RunRecord | None) -> bool:
    """End a dead run's runs in MLflow; whether nothing is left to do there."""
    if content["mlflow"] is None:
        return True
    if run.tracking is None:
        return False
    # A server that was started again may answer elsewhere; one that knows the run's id is the run's.
    elsewhere = run.tracking.shown_uri != content["mlflow"]
    ended: TrackedStatus = "KILLED"
    if record is not None and record.status != "interrupted":
        ended = "FAILED" if record.status == "failed" else "FINISHED"
    try:
        for tracking_run in content["tracking_runs"]:
            run.tracking.end_dead(tracking_run, ended, "interrupted" if record is None else record.status)
        run.tracking.end_unheard(run_id, ended)
    except TrackingLost:
        return False
    except DeepspecError as error:
        if elsewhere:
            return False
        logger.warning("Run %s died, and its end could not be tracked: %s", run_id, error)
    return True


def _end_flow_runs(run: "Run[Any]", content: dict[str, Any], alive: set[str]) -> bool:
    """End a dead run's flow runs; whether none is left."""
    if not content["flow_runs"]:
        return True
    import httpx

    try:
        known = end_flow_runs(content["flow_runs"], alive)
    except httpx.HTTPError:
        return False
    return known or content["prefect"] == _server(run)


def is_running(home: Path, run_id: str) -> bool:
    """Whether a run of this home has not ended, or has died and no later one has ended it."""
    return (home / "running" / f"{run_id}.json").exists()


def _is_free(lock: FileLock, held: contextlib.ExitStack) -> bool:
    """Whether no process holds a lock; if so, `held` does from now on."""
    try:
        held.enter_context(lock.acquire(blocking=False))
    except (Timeout, DeepspecError):
        return False
    return True


def _lives_elsewhere(run: "Run[Any]", run_id: str, content: dict[str, Any]) -> bool:
    """Whether a run may live on another machine, whose locks are not seen here."""
    if content["host"] == socket.gethostname():
        return False
    record = content["record"]
    if record is None or record.get("store") != run.store.backend.location:
        return True  # its lease is not here to be looked at
    try:
        return any(True for _ in live(run.store.backend, f"runs/{run_id}"))
    except DeepspecError:
        return True


def _server(run: "Run[Any]") -> str:
    """Prefect's server that a run uses; the temporary one is any that reads the home's database."""
    return without_credentials(os.environ.get("PREFECT_API_URL", "")) if run.on_shared_server else "temporary"


def _lock_of(note: Path) -> Path:
    return note.with_suffix(".lock")


def _forget(note: Path) -> None:
    for path in (note, _lock_of(note)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def ended_after(run: "Run[Any]", failed: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """The run is alive until the block ends, if it is at all.

    Args:
        run: the run.
        failed: whether it failed: a server that did not answer may show it, or a part of it, as going on. So does a
            block that raises.
    """
    in_order = False
    try:
        yield
        in_order = not failed()
    finally:
        if run.alive is not None:
            run.alive.end(in_order=in_order)
