"""The connection to MLflow: imported late, quiet on the terminal, with typed errors and its global state unchanged."""

import contextlib
import logging
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from deepspec.account import Actor
from deepspec.errors import RecipeError
from deepspec.registry import keys
from deepspec.registry.errors import TrackingError, TrackingLost
from deepspec.registry.mlflow import database, schema

SQLITE = "sqlite:///"

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # else it writes to the terminal through handlers of its own
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PATIENCE = {
    # MLflow's own are 7 repetitions over 250 s where a server is down, and 120 s for each answer where one hangs: a
    # quarter of an hour in all. These bridge a restart (24 s), and give up on one that hangs after a minute and a half.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_FILE_SECONDS = "120"
"""A server answers once it has passed the file on to where it keeps artifacts."""
_FOUND = 200
_GLOBAL_URI = threading.Lock()
_GLOBAL_URI_VARIABLE = "MLFLOW_TRACKING_URI"


def refuse_home(home: Path) -> None:
    """See that MLflow's addresses can name a home folder: it reads them by the rules of URLs.

    Raises:
        RecipeError: its path would be read as another one (`%2F`, `?`, `#`).
    """
    path = str(home.absolute())
    # As MLflow and its database make an address of a path: without quoting it.
    parts = urlsplit(f"file://{path}")
    if (unquote(parts.path), parts.query, parts.fragment) != (path, "", "") or path.endswith(("?", "#")):
        raise RecipeError(
            "MLflow would read this folder's path as another one: it is part of an address there.",
            where=f"DEEPSPEC_HOME {path}",
            remedy="Use a home folder without %, ? and # in its path.",
        )


class Failed(Exception):
    """An error of MLflow's, where its own text may hold the credentials that stand in the address."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {_without_credentials(text)}")


class Connection:
    """An MLflow client and an experiment's id, both made at first use; safe to use from several threads.

    Args:
        uri: `sqlite:///…/mlflow.db`, or a server's address.
        artifact_root: where a new experiment keeps its artifacts; None: where the server says.
        experiment: its name.
    """

    def __init__(self, uri: str, artifact_root: str | None, experiment: str) -> None:
        self.uri = uri
        self._artifact_root = artifact_root
        self._experiment = experiment
        self._opening = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._lost: str | None = None

    @property
    def database(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    @property
    def shown_uri(self) -> str:
        """The address without credentials."""
        return _without_credentials(self.uri)

    @property
    def where(self) -> str:
        """The address for messages, with the variable that names it."""
        return self.shown_uri if self.database is not None else f"{_GLOBAL_URI_VARIABLE} {self.shown_uri}"

    @property
    def client(self) -> Any:
        """The `MlflowClient`."""
        return self.open()[0]

    @property
    def experiment_id(self) -> str:
        """The experiment's id."""
        return self.open()[1]

    def open(self) -> tuple[Any, str]:
        """The client and the experiment's id; imports MLflow and prepares the database on the first call.

        Raises:
            TrackingError: the database or server cannot be used.
        """
        with self._opening:
            if self._opened is None:
                for name, value in {**_QUIET, **_PATIENCE}.items():
                    os.environ.setdefault(name, value)
                for name in ("mlflow", "alembic"):
                    logging.getLogger(name).setLevel(logging.WARNING)
                # It warns of each repetition; if none helps, one error says so.
                logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
                with self.named_errors():
                    if self.database is not None:
                        self._prepare(self.database)
                    client = _client(self.uri)
                    self._opened = client, self._experiment_of(client)
            return self._opened

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """MLflow's and the database's errors as a TrackingError that names where.

        A server that did not answer is not asked again before `ask_again`: each call would only wait again.
        """
        if self._lost is not None:
            raise self.lost(self._lost)
        try:
            yield
        except mlflow_errors() as error:
            revision = schema.mentioned_in(error)
            cause = error if self.shown_uri == self.uri else Failed(type(error).__name__, str(error))
            if revision is not None:
                raise schema.refusal(revision, f"{_GLOBAL_URI_VARIABLE}={self.shown_uri}", self.shown_uri) from cause
            broken = None if self.database is not None else _unanswered(error)
            if broken is not None:
                reason = getattr(broken.args[0], "reason", None) if broken.args else None
                self._lost = f"MLflow's server does not answer ({type(reason or broken).__name__})."
                raise self.lost(self._lost) from cause
            status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else _status(error)
            if self.database is None and status in (401, 403):
                what = "does not accept the user and password" if status == 401 else "denies this user access"
                raise TrackingError(
                    f"MLflow's server {what} ({status}).",
                    where=self.where,
                    remedy="Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN).",
                ) from cause
            lines = _without_credentials(str(error)).strip().splitlines() or [type(error).__name__]
            raise TrackingError(
                f"MLflow failed: {lines[0][:300]}",
                where=self.where,
                remedy="Check that the tracking database or server can be reached and written.",
            ) from cause

    def ask_again(self) -> None:
        """Let the next call ask a server that did not answer."""
        self._lost = None

    def lost(self, what: str = "MLflow's server does not answer.") -> TrackingLost:
        """The error for a server that does not answer."""
        return TrackingLost(
            what, where=self.where, remedy="Start it, and run again: what was finished is kept, and goes on from there."
        )

    def current_user(self) -> Actor | None:
        """Whom the server has let in; None: it asks for no name, or this is no server."""
        if self.database is not None:
            return None
        self.open()
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        with self.named_errors():
            answer = http_request(get_default_host_creds(self.uri), "/api/2.0/mlflow/users/current", "GET")
        if answer.status_code != _FOUND:
            return None  # a server without users has no such page
        try:
            return Actor(name=str(answer.json()["user"]["username"]), known_by="MLflow user")
        except (ValueError, LookupError, TypeError):
            return None

    @contextlib.contextmanager
    def transferring(self) -> Iterator[None]:
        """Wait longer for an answer while large files go up or down, unless the user has said how long."""
        before = os.environ.get(_TIMEOUT_VARIABLE)
        if before != _PATIENCE[_TIMEOUT_VARIABLE]:
            yield
            return
        os.environ[_TIMEOUT_VARIABLE] = _FILE_SECONDS
        try:
            yield
        finally:
            os.environ[_TIMEOUT_VARIABLE] = before

    @contextlib.contextmanager
    def as_global_uri(self) -> Iterator[None]:
        """Make this the process's tracking address inside the block, and restore the environment.

        MLflow's SQL registry resolves `models:/<id>` with a client of its own, which knows only the global address;
        without one it would make a database in the current folder.
        """
        import mlflow

        with _GLOBAL_URI:
            before = os.environ.get(_GLOBAL_URI_VARIABLE)
            mlflow.set_tracking_uri(self.uri)
            try:
                yield
            finally:
                mlflow.set_tracking_uri(None)
                if before is not None:
                    os.environ[_GLOBAL_URI_VARIABLE] = before
                else:
                    os.environ.pop(_GLOBAL_URI_VARIABLE, None)

    def _prepare(self, path: Path) -> None:
        """Make the database if there is none; migrate or relocate one of another MLflow or another place."""
        database.prepare(path, _migrate)
        revision = schema.revision_of(path)
        ours = self._artifact_root is not None
        if revision is not None and revision != schema.head():
            # Another owner's database is theirs to migrate: others may still need it as it is.
            if not (ours and schema.is_older(revision)):
                raise schema.refusal(revision, str(path), self.uri)
            schema.migrate(path)
        if self._artifact_root is not None:
            schema.relocate(path, self._experiment, Path(self._artifact_root))

    def _experiment_of(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                kind = {keys.EXPERIMENT_KIND: keys.TRAINING}
                root = self._artifact_root
                return str(client.create_experiment(self._experiment, artifact_location=root, tags=kind))
            except mlflow_errors():
                found = client.get_experiment_by_name(self._experiment)
                if found is None:  # so it was not that another process made it meanwhile
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"The MLflow experiment {self._experiment!r} was deleted.",
                where=self.where,
                remedy="Restore it in MLflow, or use another name.",
            )
        return str(found.experiment_id)


def mlflow_errors() -> tuple[type[Exception], ...]:
    """What MLflow and its database raise; asked for only when something was raised, so nothing is imported for it."""
    known = (
        ("mlflow.exceptions", "MlflowException"),
        ("sqlalchemy.exc", "SQLAlchemyError"),
        ("alembic.util.exc", "CommandError"),
    )
    loaded = (getattr(sys.modules.get(module), name, None) for module, name in known)
    return (OSError, sqlite3.Error, *(error for error in loaded if error is not None))


def _unanswered(error: BaseException) -> BaseException | None:
    """The connection failure that `error` comes from, if any; MLflow reports these in words only."""
    known = sys.modules.get("requests.exceptions")
    if known is None:
        return None
    chain = (seen for seen in (error, error.__cause__, error.__context__) if seen is not None)
    return next(
        (seen for seen in chain if isinstance(seen, known.RequestException) and not isinstance(seen, known.HTTPError)),
        None,
    )


def _status(error: BaseException) -> int | None:
    """The status of an HTTP error that is not one of MLflow's own."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/\s]*@", "//", text)


def _migrate(uri: str) -> None:
    _client(uri).search_experiments(max_results=1)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
