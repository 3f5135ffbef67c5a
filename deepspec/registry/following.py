"""Production follows: what was promoted here is brought to production's store, then to its MLflow.

What cannot be done now holds up nothing here: it is said, and the next run or `deepspec models reconcile` does it.

MLflow's clients read their credentials from the variables of the whole process. So production's MLflow is worked on in
a process of its own, with production's variables:

    python -m deepspec.registry.following MODEL FILE     # writes its answer into FILE
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.atomic_write import write_text
from deepspec.errors import DeepspecError, LeaseHeld, TransientError
from deepspec.home import store_of_last_run
from deepspec.registry import operations
from deepspec.registry.errors import TrackingError, TrackingLost
from deepspec.registry.production import Production, named_as_productions
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.publishing import Publishing
from deepspec.store import Store
from deepspec.store.lease import leased

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Followed:
    """How far production is.

    Attributes:
        done: what was done there, in sentences; empty where it was up to date.
        late: what it lacks, because something does not answer; None: nothing.
        error: what it lacks, and waiting will not help; None: nothing.
    """

    done: tuple[str, ...] = ()
    late: str | None = None
    error: DeepspecError | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """All of it, in sentences."""
        return (*self.done, *([self.late] if self.late else []), *([str(self.error)] if self.error else []))


def follow(store: Store, home: Path, model: str, production: Production, log: PromotionLog | None = None) -> Followed:
    """Bring production up to what the promotion log of a model says; no failure there is raised.

    Args:
        store, home: where drafts are made.
        model: registered model name.
        production: where they go on to.
        log: the store's; None: it is read again.
    """
    done: list[str] = []
    publishing: Publishing | None = None
    try:
        ours = log or PromotionLog(store.backend)
        publishing = Publishing(store, production.store(home), ours, model)
        publishing.publish()
        done += _published(publishing, production)
        if production.has_mlflow and ours.last(model) is not None:
            done += _tell_mlflow(production, home, model)
    except (TransientError, TrackingLost, LeaseHeld) as error:
        again = f"The next run, or `deepspec models reconcile {model}`, catches up."
        return Followed(tuple(done), late=f"{_behind(publishing, production, model)}: {error.what} {again}")
    except DeepspecError as error:
        if production.location in (error.where or ""):
            _rename(error)
        error.what = f"{_behind(publishing, production, model)}: {error.what}"
        return Followed(tuple(done), error=error)
    return Followed(tuple(done))


def _published(publishing: Publishing, production: Production) -> list[str]:
    """What was written in production's store, in sentences."""
    if not publishing.written:
        return list(publishing.notes)
    entries = "1 entry" if publishing.written == 1 else f"{publishing.written} entries"
    return [
        f"{publishing.model}: production ({production.location}) has followed by {entries} of the promotion log.",
        *publishing.notes,
    ]


def _behind(publishing: Publishing | None, production: Production, model: str) -> str:
    """How far production is behind, as the beginning of a sentence."""
    where = f"{model}: production ({production.location})"
    if publishing is None or publishing.behind is None:
        return f"{where} may be behind"
    if publishing.complete:
        return f"{where} has all entries, but its MLflow does not show them"
    if publishing.behind == 0:
        return f"{where} is not as it should be"
    return f"{where} is {publishing.behind} {'entry' if publishing.behind == 1 else 'entries'} behind"


def _rename(error: DeepspecError) -> None:
    """Let an error that production's side raised name the variables as they are called here."""
    error.what = named_as_productions(error.what) or error.what
    error.where, error.remedy = named_as_productions(error.where), named_as_productions(error.remedy)


def _tell_mlflow(production: Production, home: Path, model: str) -> list[str]:
    """Let production's MLflow follow its store, in a process with production's variables; say what changed.

    Costs a Python and MLflow's import: about three seconds of a processor.

    Raises:
        TrackingLost: it does not answer, or another process does the same just now.
        TrackingError: it refuses.
    """
    with tempfile.TemporaryDirectory(prefix="deepspec-") as folder:
        answered, log = (Path(folder) / name for name in ("answer.json", "log.txt"))
        code = _wait_for([model, str(answered)], {**production.environment, "DEEPSPEC_HOME": str(home)}, log)
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        logger.debug("%s", said)
        if not answered.exists():
            last = f": {said.splitlines()[-1][:300]}" if said else ""
            raise TrackingError(
                f"The process that works on production's MLflow ended with code {code}{last}.",
                where=model,
                remedy=f"`deepspec --debug models reconcile {model}` shows all that it said.",
            )
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    if "what" in answer:
        failed = (TrackingLost if answer["may_pass"] else TrackingError)(
            answer["what"], where=answer["where"], remedy=answer["remedy"]
        )
        _rename(failed)
        raise failed
    return [f"In production's MLflow: {answer['said']}"] if answer["changed"] else []


def _wait_for(arguments: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Run this module as a process of its own; return its exit code. It ends with the caller."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "deepspec.registry.following", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


def _follow_in_mlflow(model: str) -> dict[str, Any]:
    """In production's process: register what its MLflow lacks, and set the aliases; one process at a time."""
    home = Path(os.environ["DEEPSPEC_HOME"])
    try:
        store = store_of_last_run(home)
        with leased(store.backend, f"stages/mlflow-{model}"):
            done = operations.reconcile(home, store, model)
    except DeepspecError as error:
        may_pass = isinstance(error, TransientError | TrackingLost | LeaseHeld)
        return {"what": error.what, "where": error.where, "remedy": error.remedy, "may_pass": may_pass}
    return {"said": done.said, "changed": done.changed}


if __name__ == "__main__":
    write_text(Path(sys.argv[2]), json.dumps(_follow_in_mlflow(sys.argv[1])))
