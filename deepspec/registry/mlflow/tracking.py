"""MLflow, for the rest of deepspec: runs, metrics, data set inputs; registered versions are in `versions.py`.

MLflow is imported when it is first needed (connection.py, runs.py): that takes 2 to 3 s of processor time, and a fresh
SQLite database 1 s more (MLflow runs all its schema migrations), so `Tracking.warm_up` can pay for both in a thread
while other work goes on. Nothing here decides anything: the store and the promotion log are the truth, MLflow shows it.
"""

import contextlib
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from deepspec.errors import DeepspecError
from deepspec.registry import keys
from deepspec.registry.errors import TrackingLost
from deepspec.registry.mlflow.connection import SQLITE, Connection, refuse_home
from deepspec.registry.mlflow.description import with_page
from deepspec.registry.mlflow.outbox import AGAIN_SECONDS, Outbox
from deepspec.registry.mlflow.runs import RunWriter, Send, flushed
from deepspec.registry.mlflow.versions import RegisteredVersion, Versions, add_to_chart, metrics_of

Status = Literal["FINISHED", "FAILED", "KILLED"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

PATIENCE_SECONDS = 600.0
"""So long what needs MLflow waits for it."""
_SAY_SECONDS = 60.0
_LAST_SECONDS = 30.0
"""So long the end of a run waits for MLflow to hear of it."""


class Tracking(Versions):
    """An MLflow tracking server or database, and one experiment in it.

    Args:
        uri: `sqlite:///…/mlflow.db`, or a server's address.
        artifact_root: where a new experiment keeps its artifacts: a folder or a URL.
        experiment: name of the experiment; made when first needed.
    """

    def __init__(self, uri: str, artifact_root: str | Path | None, experiment: str = "deepspec") -> None:
        root = None if artifact_root is None else str(artifact_root)
        super().__init__(Connection(uri, root, experiment))
        self._outbox = Outbox(self._server.ask_again)
        self._writers: dict[str, RunWriter] = {}
        self._made: dict[str, str] = {}  # MLflow's id -> the pipeline run of whose process it is

    @classmethod
    def embedded(cls, home: Path, experiment: str = "deepspec") -> "Tracking":
        """Tracking in a folder, without a server: `<home>/mlflow.db` and `<home>/mlartifacts`.

        Raises:
            RecipeError: MLflow cannot name that folder.
        """
        home = home.absolute()
        refuse_home(home)
        return cls(f"{SQLITE}{home / 'mlflow.db'}", home / "mlartifacts", experiment)

    @property
    def ui_command(self) -> str:
        """How a person opens what was tracked; a server's own address if there is one."""
        database = self._server.database
        if database is None:
            # Without this MLflow's page opens among those for applications of language models.
            return f'open "{self._server.shown_uri}/#/experiments?workflowType=machine_learning"'
        own = Path(sys.executable).with_name("mlflow")
        on_path = shutil.which("mlflow") == str(own) or not own.exists()
        program = "mlflow" if on_path else _from_here(own)
        return f"{program} ui --backend-store-uri {SQLITE}{database.absolute()}"

    def warm_up(self) -> threading.Thread:
        """Import MLflow and prepare the database in a thread, while the caller does something else.

        Errors are not lost: the first real use raises them again. Returns the thread, for callers that want to wait.
        """

        def opened() -> None:
            with contextlib.suppress(DeepspecError, ImportError):
                self._server.open()

        thread = threading.Thread(target=opened, name="mlflow-warm-up", daemon=True)
        thread.start()
        return thread

    def start_pipeline_run(
        self, name: str, recipe_flat_params: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> str:
        """Begin the parent run of one pipeline run.

        Args:
            name: shown in MLflow's list of runs.
            recipe_flat_params: dotted field -> value; anything but text is written as JSON.
            tags: see `keys.KEYS`.

        Returns:
            MLflow's id of the run.

        Raises:
            TrackingError: MLflow does not answer or refuses.
        """
        self._show_as_training()
        run_id = self._create_run(name, _process_of(tags or {}), started=_milliseconds())
        writer = self.writer(run_id)
        writer.tags(tags or {})
        writer.params(recipe_flat_params)
        writer.flush()
        return run_id

    def _show_as_training(self) -> None:
        """Let an experiment that an earlier deepspec made open in the pages of training; what a person chose stays."""
        server = self._server
        with server.named_errors():
            tags = server.client.get_experiment(server.experiment_id).tags
            if keys.EXPERIMENT_KIND not in tags:
                server.client.set_experiment_tag(server.experiment_id, keys.EXPERIMENT_KIND, keys.TRAINING)

    def writer(self, run_id: str) -> RunWriter:
        """Write to a run that exists: parameters, metrics, tags, inputs, artifacts; one writer per run."""
        self._server.open()
        return self._writers.setdefault(run_id, RunWriter(self._sender(lambda: run_id)))

    def _sender(self, run_id: Callable[[], str]) -> Send:
        """What is sent of a run: it waits while the server does not answer."""

        def send(message: Callable[[Any, str], None]) -> None:
            def named() -> None:
                with self._server.named_errors():
                    message(self._server.client, run_id())

            self._outbox.send(named)

        return send

    @contextlib.contextmanager
    def child_run(self, parent: str, name: str) -> Iterator[RunWriter]:
        """A run below `parent`, for the stage `name`.

        It ends as FINISHED, or as FAILED (KILLED for an interrupt) when the block raises.
        """
        made: list[str] = []
        started = _milliseconds()
        tags = {
            "mlflow.parentRunId": parent,
            keys.STAGE: name,
            **_process_of({keys.RUN_ID: self._made.get(parent, "")}),
        }
        self._outbox.send(lambda: made.append(self._create_run(name, tags, started=started)))
        send = self._sender(lambda: made[0])
        with flushed(RunWriter(send), lambda status: self._end(send, status)) as writer:
            yield writer

    def finish(
        self, run_id: str, status: Status = "FINISHED", tags: Mapping[str, str] | None = None, *, name: str = ""
    ) -> None:
        """End a run, with last `tags` (its status as in `run.json`, its lineage) and a `name`, if it gets another.

        A server that does not answer is waited for a little: what it has not heard by then it will not hear.
        """
        writer = self.writer(run_id)
        writer.tags(tags or {})
        writer.flush()
        send = self._sender(lambda: run_id)
        self._end(send, status)
        if name:
            send(lambda client, run_id: client.update_run(run_id, name=name))
        if self._made.get(run_id):
            send(self._delete_doubles)
        if not self._outbox.settle(_LAST_SECONDS):
            logger.warning("MLflow does not answer: the end of this run is not tracked there.")

    def _delete_doubles(self, client: Any, run_id: str) -> None:
        """Delete runs that were made without anybody's hearing of it: the server was killed before it could answer.

        MLflow's client asks again by itself, and so do we; then there is another one, which has all there is to say.
        """
        for one in self._running(client, self._made[run_id]):
            if one.info.run_id not in self._made:
                client.delete_run(one.info.run_id)

    def _running(self, client: Any, process: str) -> list[Any]:
        """What MLflow shows as going on of a pipeline run's process."""
        wanted = f"tags.`{keys.PROCESS}` = '{process}' and attributes.status = 'RUNNING'"
        return list(client.search_runs([self._server.experiment_id], wanted))

    def measured(self, version: RegisteredVersion, run_id: str, values: Mapping[str, float]) -> None:
        """Record what was measured of a version: with the run, with the version, and in the chart of all versions.

        Args:
            version: which.
            run_id: of the pipeline run that measured it, or found it measured.
            values: name -> value (`keys.tau_metrics`, `keys.version_cost_metrics`).
        """
        self._sender(lambda: run_id)(lambda client, run: client.log_batch(run, metrics=metrics_of(version, values)))
        self._sender(lambda: self.chart_of(version.name))(partial(add_to_chart, version=version, values=values))

    def describe_model(self, model_name: str, text: str) -> None:
        """Let a registered model's page begin with this; where there is no such model yet, nothing is said.

        What a person wrote there is kept.
        """

        def send(client: Any, name: str) -> None:
            if name in self.list_models():
                client.update_registered_model(name, with_page(text, client.get_registered_model(name).description))

        self._sender(lambda: model_name)(send)

    def end_dead(self, run_id: str, status: Status, recorded: str) -> None:
        """End a run whose process died, and its child runs; those that have ended stay as they are.

        Args:
            run_id: of a pipeline run.
            status: how MLflow shows them.
            recorded: its status in `run.json`.

        Raises:
            TrackingError: MLflow does not answer, or does not know the run.
        """
        client = self._server.client
        with self._server.named_errors():
            run = client.get_run(run_id)
            children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
            for one in [*children, run]:
                if one.info.status == "RUNNING":
                    client.set_terminated(one.info.run_id, status)
            if keys.STATUS not in run.data.tags:
                client.set_tag(run_id, keys.STATUS, recorded)
                client.update_run(run_id, name=f"{run.info.run_name} · {recorded.replace('_', ' ')}")

    def end_unheard(self, process: str, status: Status) -> None:
        """End whatever still runs of a pipeline run whose process died: also what it was never told of.

        Args:
            process: its id, as in `run.json`.
            status: how MLflow shows them.

        Raises:
            TrackingError: MLflow does not answer.
        """
        with self._server.named_errors():
            client = self._server.client
            for one in self._running(client, process):
                client.set_terminated(one.info.run_id, status)

    def name_waiting(self, version: RegisteredVersion) -> None:
        """Let the names of runs whose draft waited for a person say what came of it, once a version is promoted.

        Args:
            version: the one that serves now; all others of its model wait no more.
        """
        waited = f" · {keys.WAITING.replace('_', ' ')} v"

        def send(client: Any, model: str) -> None:
            wanted = f"tags.`{keys.STATUS}` = '{keys.WAITING}' and attributes.run_name LIKE '%{waited}%'"
            for run in client.search_runs([self._server.experiment_id], wanted):
                name, _, number = run.info.run_name.rpartition(waited)
                if name.rpartition(" · ")[0] == model:
                    became = "promoted" if number == version.version else "superseded"
                    client.update_run(run.info.run_id, name=f"{name} · {became} v{number}")

        self._sender(lambda: version.name)(send)

    def patiently(
        self,
        call: Callable[[], ResultT],
        say: Callable[[str], None],
        waiting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> ResultT:
        """Call what needs MLflow's answers, after all that was to be tracked before.

        While the server does not answer it is called again, for ten minutes.

        Args:
            call: can be repeated.
            say: told every minute that it waits.
            waiting: around what is not the caller's own time.

        Raises:
            TrackingLost: the server still does not answer.
            TrackingError: it refuses.
        """
        deadline, said = time.monotonic() + PATIENCE_SECONDS, -_SAY_SECONDS
        while True:
            lost = self._server.lost()
            try:
                if self._outbox.settle(0):
                    self._server.ask_again()
                    return call()
            except TrackingLost as error:
                lost = error
            now = time.monotonic()
            if now > deadline:
                raise lost
            if now - said >= _SAY_SECONDS:
                said = now
                say(f"Waiting for MLflow ({self._server.where}), {(deadline - now) / 60:.0f} minutes more at most.")
            with waiting():
                time.sleep(AGAIN_SECONDS)

    def _end(self, send: Send, status: str) -> None:
        ended = _milliseconds()
        send(lambda client, run_id: client.set_terminated(run_id, status, end_time=ended))

    def _create_run(self, name: str, tags: Mapping[str, str], *, started: int | None = None) -> str:
        with self._server.named_errors():
            run = self._server.client.create_run(
                self._server.experiment_id, start_time=started, run_name=name, tags=dict(tags)
            )
        self._made[str(run.info.run_id)] = tags.get(keys.PROCESS, "")
        return str(run.info.run_id)


def _process_of(tags: Mapping[str, str]) -> dict[str, str]:
    """The tag by which a run is found whose id was lost with MLflow's answer: which process made it."""
    return {keys.PROCESS: tags[keys.RUN_ID]} if tags.get(keys.RUN_ID) else {}


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _from_here(path: Path) -> Path:
    """`path` as a person in the current folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
