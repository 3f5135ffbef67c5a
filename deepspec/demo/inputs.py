"""A demo's inputs as copies of artifacts in the home folder, where recipes find them."""

import filecmp
import json
import shutil
from pathlib import Path

from deepspec.atomic_write import replacing
from deepspec.store import Artifact

SOURCES = "made-from.json"
"""Next to the copies: which artifacts they were made from. Every run of the recipe rewrites it: no format version."""


def made_inputs(home: Path) -> set[tuple[str, str]]:
    """(kind, key) of what the inputs in a home folder are copies of: a collector must leave them."""
    return {
        (str(kind), str(key))
        for file in home.glob(f"*/{SOURCES}")
        for kind, key in json.loads(file.read_text(encoding="utf-8")).values()
    }


def copy(artifact: Artifact, folder: Path) -> list[Path]:
    """Make `folder` hold exactly the artifact's files; returns those that were there and had been changed."""
    source = artifact.directory()
    wanted = {entry.path for entry in artifact.manifest.files}
    for present in folder.rglob("*") if folder.is_dir() else ():
        if present.is_file() and present.relative_to(folder).as_posix() not in wanted:
            present.unlink()
    known = _artifact_of(folder) == [artifact.kind, artifact.key]
    restored = []
    for name in sorted(wanted):
        target = folder / name
        if target.is_file() and filecmp.cmp(source / name, target, shallow=False):
            continue
        if known:
            restored.append(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(source / name, temporary)
    return restored


def _artifact_of(folder: Path) -> list[str] | None:
    """Of which artifact `folder` was made a copy, if it was."""
    try:
        sources = json.loads((folder.parent / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = sources.get(folder.name)
    return list(found) if found else None
