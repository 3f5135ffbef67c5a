"""MLflow's own SQLite database across versions of MLflow, and across places.

MLflow refuses a database of another schema than its own, or migrates it in place and without a lock, depending on what
differs. So an older one in our home folder is migrated as a copy first, and a newer one is refused before MLflow sees
it. MLflow also stores absolute paths of artifacts: those of a home folder that was moved, or restored elsewhere, are
corrected when it is opened.
"""

import contextlib
import logging
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepspec.registry.errors import TrackingError
from deepspec.registry.mlflow import database

logger = logging.getLogger(__name__)

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Columns in which MLflow writes whole paths of artifacts."""

_MISMATCH = (
    re.compile(r"found version (\w+), but expected"),
    re.compile(r"Can't locate revision identified by '(\w+)'"),
)


def revision_of(path: Path) -> str | None:
    """The schema's revision in the database at `path`; None if it is no MLflow database."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None
    return None if found is None else str(found[0])


def mentioned_in(error: BaseException) -> str | None:
    """The revision that an error of MLflow's says it cannot work with, or None if the error is about something else."""
    found = (pattern.search(str(error)) for pattern in _MISMATCH)
    return next((match.group(1) for match in found if match), None)


def refusal(revision: str, where: str, uri: str) -> TrackingError:
    """The error about a database whose `revision` is not the installed MLflow's.

    Args:
        revision: the database's.
        where: the file, or the variable and the address.
        uri: for the command that migrates it; without credentials.
    """
    installed, known = _installed()
    if known(revision):
        return TrackingError(
            f"This MLflow database is older than the installed MLflow {installed} (its schema is {revision}).",
            where=where,
            remedy=f"Back it up, then run `mlflow db upgrade {uri}`.",
        )
    return TrackingError(
        f"A newer MLflow than the installed {installed} wrote this database (its schema is {revision}).",
        where=where,
        remedy="Upgrade deepspec and MLflow, or point MLFLOW_TRACKING_URI at another database.",
    )


def is_older(revision: str) -> bool:
    """Whether the installed MLflow knows the schema `revision`, so that it can migrate it."""
    return _installed()[1](revision)


def head() -> str | None:
    """The revision of the installed MLflow's schema."""
    found = _scripts().get_current_head()
    return None if found is None else str(found)


def migrate(path: Path) -> None:
    """Bring an older database of ours to the installed MLflow's schema, all at once or not at all.

    The old database stays in the same folder, as `<name>.before-<new revision>`.

    Raises:
        TrackingError: MLflow cannot migrate it, or another process wrote to it meanwhile; it is unchanged.
    """
    with database.alone(path):
        before, after = revision_of(path), head()
        if before == after:  # another process was first
            return
        kept = path.with_name(f"{path.name}.before-{after}")
        unfinished = path.with_name(f"{path.name}.new")
        for leftover in path.parent.glob(f"{unfinished.name}*"):
            leftover.unlink()
        with contextlib.closing(sqlite3.connect(path)) as original:
            written = _counter(original)
            _copy(original, unfinished)
            _copy(original, kept)
            _upgrade(unfinished)
            if _counter(original) != written:
                raise TrackingError(
                    "Another process wrote to this MLflow database while it was brought to a newer schema.",
                    where=str(path),
                    remedy="Run again when no other run is active.",
                )
            with contextlib.closing(sqlite3.connect(unfinished)) as upgraded:
                upgraded.backup(original)
        unfinished.unlink()
    logger.warning("%s was brought to the installed MLflow's schema; as it was, it is %s.", path, kept.name)


def relocate(path: Path, experiment: str, root: Path) -> None:
    """Correct the paths of artifacts if the database was moved here together with its artifacts.

    Args:
        path: the database's file.
        experiment: name of the experiment whose artifacts lie in `root`.
        root: where they lie now.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
        try:
            query = "SELECT artifact_location FROM experiments WHERE name = ?"
            found = connection.execute(query, (experiment,)).fetchone()
        except sqlite3.OperationalError:  # no database of MLflow's: it will say so itself
            return
        if found is None or found[0] == str(root) or not root.is_dir() or _same(str(found[0]), root):
            return
        old, new = str(found[0]), str(root)
        with connection:
            for table, column in _PLACES:
                connection.execute(
                    # Names of ours, not of users.
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
    logger.info("%s was moved: its artifacts are no longer looked for in %s.", path, old)


def _scripts() -> Any:
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    return ScriptDirectory(str(Path(db_migrations.__file__).parent))


def _installed() -> tuple[str, Callable[[str], bool]]:
    """The installed MLflow's version, and which revisions it knows."""
    import mlflow
    from alembic.util.exc import CommandError

    scripts = _scripts()

    def known(revision: str) -> bool:
        try:
            return scripts.get_revision(revision) is not None
        except CommandError:
            return False

    return str(mlflow.__version__), known


def _upgrade(path: Path) -> None:
    """MLflow's own command, in a process of its own: it configures logging, and holds its connections."""
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise TrackingError(
            f"MLflow cannot bring this database to its present schema: {lines[-1][:300]}",
            where=str(path),
            remedy="It is as it was. Install the MLflow that wrote it, or point MLFLOW_TRACKING_URI elsewhere.",
        )


def _copy(source: sqlite3.Connection, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as copy:
        source.backup(copy)


def _counter(connection: sqlite3.Connection) -> int:
    """A number that changes when another connection writes."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _same(old: str, new: Path) -> bool:
    """Whether both are one folder (a link's other name), or the old place is a URL, which moves with no folder."""
    return "://" in old or (Path(old).is_dir() and new.samefile(old))
