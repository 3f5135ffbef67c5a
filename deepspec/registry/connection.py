"""The way to MLflow: imported late, quiet on the terminal, its errors typed, its global state left as it was."""

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

from deepspec.registry import database, schema
from deepspec.registry.errors import TrackingError

SQLITE = "sqlite:///"

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # else it writes to the terminal through handlers of its own
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_GLOBAL_URI = threading.Lock()
_GLOBAL_URI_VARIABLE = "MLFLOW_TRACKING_URI"


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

    @property
    def database(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    @property
    def shown_uri(self) -> str:
        """The address without credentials."""
        return re.sub(r"//[^/@]*@", "//", self.uri)

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
                for name, value in _QUIET.items():
                    os.environ.setdefault(name, value)
                for name in ("mlflow", "alembic"):
                    logging.getLogger(name).setLevel(logging.WARNING)
                with self.named_errors():
                    if self.database is not None:
                        self._prepare(self.database)
                    client = _client(self.uri)
                    self._opened = client, self._experiment_of(client)
            return self._opened

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """MLflow's and the database's errors as a TrackingError that names where."""
        try:
            yield
        except mlflow_errors() as error:
            revision = schema.mentioned_in(error)
            if revision is not None:
                raise schema.refusal(revision, f"{_GLOBAL_URI_VARIABLE}={self.shown_uri}", self.shown_uri) from error
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise TrackingError(
                f"MLflow failed: {lines[0][:300]}",
                where=self.shown_uri,
                remedy="Check that the tracking database or server can be reached and written.",
            ) from error

    @contextlib.contextmanager
    def as_global_uri(self) -> Iterator[None]:
        """Make this the process's tracking address for a moment, and leave no trace in the environment.

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
        """Make the database if there is none; see that one of another MLflow, or from another place, can be used."""
        database.prepare(path, _migrate)
        revision = schema.revision_of(path)
        ours = self._artifact_root is not None
        if revision is not None and revision != schema.head():
            # Somebody else's database is migrated by whoever keeps it: others may still need it as it is.
            if not (ours and schema.is_older(revision)):
                raise schema.refusal(revision, str(path), self.uri)
            schema.migrate(path)
        if self._artifact_root is not None:
            schema.relocate(path, self._experiment, Path(self._artifact_root))

    def _experiment_of(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(client.create_experiment(self._experiment, artifact_location=self._artifact_root))
            except mlflow_errors():
                found = client.get_experiment_by_name(self._experiment)
                if found is None:  # so it was not that another process made it meanwhile
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"The MLflow experiment {self._experiment!r} was deleted.",
                where=self.shown_uri,
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


def _migrate(uri: str) -> None:
    _client(uri).search_experiments(max_results=1)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
