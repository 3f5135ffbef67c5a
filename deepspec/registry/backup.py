"""Copies of a home folder, and of a store with its promotion logs."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from deepspec.errors import ArtifactError, RecipeError
from deepspec.home import BACKUP_MARKER, code_version, store_of_last_run
from deepspec.progress import Progress
from deepspec.registry.mlflow.connection import refuse_home
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Store, open_store
from deepspec.store.copy_store import Copied, copy_store

DATABASE = "mlflow.db"
STORE = "store"
FILES = ("mlartifacts", "runs", "last-run.json")
"""Further parts of a home that are copied as they are: files that MLflow refers to, and the records of runs.

Left out is what the next run makes again: inputs that a demo made (from the store), memos, locks, Prefect's own
database, and the checkpoints of trainings that go on.
"""


def copy(source: str | None, destination: str, home: Path, progress: Progress) -> Copied:
    """Copy the artifacts and promotion logs of a store (default: the last run's) that another one lacks.

    Raises:
        RecipeError: both are the same.
    """
    origin = open_store(source) if source else store_of_last_run(home)
    other = open_store(destination, code=code_version())
    if origin.backend.location == other.backend.location:
        raise RecipeError("The store would be copied into itself.", where=destination, remedy="Name another place.")
    return copy_store(origin, other, progress, check=_intact)


def backup(out: Path, home: Path, progress: Progress, say: Callable[[str], None]) -> Copied:
    """Bring `out` up to date as a copy of the home: the database first, then what it refers to, then the store.

    Raises:
        RecipeError: `out` holds something else; the database is a service's, which has tools of its own; or MLflow
            cannot name the home, so that what it tracked lies elsewhere.
        ArtifactError: something cannot be read or written, or the backup's promotion log is not the home's earlier one;
            the database of an earlier backup is still there.
    """
    out = out.absolute()
    refuse_home(home)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        raise RecipeError(
            "This backs up a home folder's own database, but MLFLOW_TRACKING_URI names another.",
            where="MLFLOW_TRACKING_URI",
            remedy="Back that one up with its own tools, then copy the store with `deepspec artifacts copy`.",
        )
    if out == home or home in out.parents or out in home.parents:
        raise RecipeError("A home cannot be copied into itself.", where=str(out), remedy="Name a folder elsewhere.")
    marker = out / BACKUP_MARKER
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise RecipeError(
            "There is something in this folder that is no backup.", where=str(out), remedy="Name a new folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{home}\n", encoding="utf-8")
    # A fixed name, here and for each file, not `atomic_write`'s random one: the next backup overwrites what a killed
    # one left, where nothing else would remove it.
    unfinished = out / f".{DATABASE}.new"
    snapshot = _snapshot(home / DATABASE, unfinished)
    copied = sum(_copy_files(home / name, out / name) for name in FILES)
    say(f"Tracked files and records of runs: {copied} new or changed.")
    done = copy_store(
        store_of_last_run(home), open_store(str(out / STORE), code=code_version()), progress, check=_intact
    )
    # Taken first, put in its place last: at every moment the database there refers to nothing that is not there too.
    if snapshot:
        for suffix in ("-wal", "-shm"):  # of a reader of the earlier backup
            (out / f"{DATABASE}{suffix}").unlink(missing_ok=True)
        unfinished.replace(out / DATABASE)
        say(f"Database: {out / DATABASE}")
    return done


def _intact(store: Store) -> None:
    """Refuse a promotion log that is damaged, or too new."""
    log = PromotionLog(store.backend)
    for model in log.models():
        log.history(model)


def _snapshot(database: Path, copy: Path) -> bool:
    """Copy a SQLite database as of one moment, also while it is written to; return whether there is one."""
    if not database.exists():
        return False
    copy.unlink(missing_ok=True)
    try:
        with (
            contextlib.closing(sqlite3.connect(database)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            # One file, which needs no write-ahead log next to it.
            target.execute("PRAGMA journal_mode=DELETE")
        with copy.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, sqlite3.Error) as error:
        raise ArtifactError(
            f"The database could not be copied: {error}.", where=str(database), remedy="Back up again."
        ) from error
    return True


def _copy_files(source: Path, out: Path) -> int:
    """Copy a file or a folder's files that are missing, or have another size or time; return how many that were."""
    copied = 0
    for path in (source, *sorted(source.rglob("*"))):
        target = out / path.relative_to(source)
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            status = path.stat()
            if not path.is_file() or path.name.startswith("."):
                continue
            if target.is_file():
                there = target.stat()
                if (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
                    continue
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.new")
            shutil.copy2(path, temporary)
            temporary.replace(target)
            copied += 1
    return copied
