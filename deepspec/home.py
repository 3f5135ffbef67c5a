"""Where a user's artifacts are, by environment or in the home folder, and which code makes them."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from deepspec import __version__
from deepspec.store import Store, open_store

_LIBRARIES = ("torch", "transformers", "pyarrow", "datasets", "prefect", "mlflow")


def store_of(home: Path, configured: str | None = None) -> Store:
    """The artifact store: DEEPSPEC_STORE, else the recipe's (`configured`), else `store` in the home folder."""
    return open_store(os.environ.get("DEEPSPEC_STORE") or configured or str(home / "store"), code=code_version())


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
