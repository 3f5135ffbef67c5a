"""MLflow's SQLite database, made whole or not at all.

MLflow makes a new database by running all its schema migrations on it, one by one and without a lock: two first runs at
once, or one that is killed meanwhile, leave a database that no MLflow opens again. So one process at a time makes a new
one in the same folder, and moves it to its place when it is complete.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from deepspec.file_lock import FileLock

_POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"


def prepare(path: Path, migrate: Callable[[str], None]) -> None:
    """Make the database at `path` if there is none.

    Args:
        path: of the database file; its folder is made if missing.
        migrate: given a database's `sqlite:///` address, brings it to MLflow's present schema.

    Raises:
        OSError: the folder cannot be written.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path):
        if path.exists():  # another process was first
            return
        unfinished = path.with_name(f"{path.name}.new")
        for leftover in path.parent.glob(f"{unfinished.name}*"):
            leftover.unlink()
        with contextlib.closing(sqlite3.connect(unfinished)) as connection:
            # A write-ahead log: the migrations take half a second less, and the UI can read while we write.
            connection.execute("PRAGMA journal_mode=WAL")
        with _environment(_POOL, "NullPool"):  # no connection outlives the migrations
            migrate(f"sqlite:///{unfinished}")
        with contextlib.closing(sqlite3.connect(unfinished)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        unfinished.replace(path)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only process that makes or migrates the database at `path`; a lock that also ends with the process."""
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
