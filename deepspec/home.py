"""Where a user's artifacts are, by environment or in the home folder, and which code makes them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from deepspec import __version__
from deepspec.foreign_json import parse
from deepspec.store import Store, open_store

_LIBRARIES = ("torch", "transformers", "pyarrow", "datasets", "prefect", "mlflow")


BACKUP_MARKER = "backup-of.txt"
"""Of a home that is a copy of another: its store lies in it, wherever the other's does."""

_RECORD_BYTES = 64 << 20


def store_of(home: Path, configured: str | None, cache: Path | None = None) -> Store:
    """The artifact store of a recipe: DEEPSPEC_STORE, else its `store.url`, else `store` in the home folder.

    Args:
        home: the home folder.
        configured: the recipe's `store.url`.
        cache: folder for local copies of what is in a bucket; None: `cache` in the home folder.
    """
    location = os.environ.get("DEEPSPEC_STORE") or configured or str(home / "store")
    return open_store(location, code=code_version(), cache=cache)


def store_of_last_run(home: Path, cache: Path | None = None) -> Store:
    """The artifact store for a command that is about no recipe: DEEPSPEC_STORE, else where the last run's lies."""
    return store_of(home, last_store(home).get("url"), cache)


def last_store(home: Path) -> Mapping[str, Any]:
    """The section `store` of the last run's recipe; empty where there is none, or the home is a backup.

    A folder is named as the run found it: the recipe may have named it from another current folder.
    """
    try:
        record = _last_run(home)
        section = dict(_recipe_in(record)["store"])
    except (OSError, ValueError, LookupError, TypeError):  # none yet, or of an older deepspec
        return {}
    return section if section.get("url") is None else {**section, "url": record.get("store") or section["url"]}


def last_target(home: Path) -> Path | None:
    """The directory of the last run's target, as the run found it; None: it is not known."""
    try:
        record = _last_run(home)
        return Path(record.get("target") or _recipe_in(record)["target"]["path"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _last_run(home: Path) -> dict[str, Any]:
    """The last run's record.

    Raises:
        OSError, ValueError: there is none, it cannot be read, or the home is a backup.
    """
    if (home / BACKUP_MARKER).exists():
        raise FileNotFoundError(home / BACKUP_MARKER)
    with (home / "last-run.json").open("rb") as file:
        return dict(parse(file.read(_RECORD_BYTES + 1), _RECORD_BYTES))


def _recipe_in(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The resolved recipe, or the first of several."""
    recipe = record["resolved_recipe"]
    return dict(recipe[0] if isinstance(recipe, list) else recipe)


def code_version() -> dict[str, Any]:
    """Versions of deepspec, its commit where it is run from a checkout, Python and the libraries that matter."""
    versions = {"deepspec": __version__, "python": sys.version.split()[0]}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return {**versions, "commit": commit} if commit else versions


def _commit() -> str | None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(root), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return answer.stdout.strip() or None
