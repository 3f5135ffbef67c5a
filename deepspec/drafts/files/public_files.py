"""The files of a draft that others have published: which of a directory's count, and that they are safe to read.

A directory in the layout of the public checkpoints has config.json and safetensors weights, in one file or several with
an index, and often a README.md. Whatever else lies there (a trainer's state, its settings as Python) is not opened:
no pickle and no code is read. Torch is not needed to look at this.

Source of the layout: spec page "Serving", section 4.
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.drafts.files.config_json import CONFIG_FILE, COPY_AGAIN, read_draft_config
from deepspec.drafts.files.stored import about_a_draft, stored_weights
from deepspec.errors import IncompatibleDraft
from deepspec.foreign_json import read_object
from deepspec.store.reading.pieces import sha256_of
from deepspec.store.records import JsonRecord
from deepspec.targets.weight_files import INDEX, StoredTensor
from deepspec.yaml import NotYaml, loads

README = "README.md"
ORIGIN_FILE = "origin.json"
"""Beside the draft, in what is only about it."""
_MOST_README_BYTES = 1 << 20
_MOST_CHARACTERS = 200
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class PublicFiles:
    """A draft's directory, looked at.

    Attributes:
        directory: as it was named.
        config: what its config.json says.
        tensors: name -> where it lies, of which dtype and shape.
        paths: the files that count, sorted by name.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    paths: tuple[Path, ...]

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files with the tensors, sorted by name."""
        return tuple(sorted({tensor.file for tensor in self.tensors.values()}))


class Origin(JsonRecord):
    """Where an imported draft came from: a record of deepspec's own next to the draft, and no part of its content.

    Attributes:
        path: the directory, as it was when it was imported.
        files: SHA-256 of each of its files that count.
        name: `_name_or_path` of its config.json.
        target: what it calls its target (`target_model_name_or_path`).
        licence: that its README.md names.
    """

    path: str
    files: dict[str, str]
    name: str | None = None
    target: str | None = None
    licence: str | None = None


def origin_of(files: PublicFiles) -> Origin:
    """Where a draft came from; reads all of its files."""

    def text(field: str) -> str | None:
        value = files.config.get(field)
        return value[:_MOST_CHARACTERS] if isinstance(value, str) and value else None

    return Origin(
        path=str(files.directory),
        files={path.name: sha256_of(path) for path in files.paths},
        name=text("_name_or_path"),
        target=text("target_model_name_or_path"),
        licence=licence_of(files.directory),
    )


def public_files(directory: Path) -> PublicFiles:
    """Look at a draft's directory.

    Raises:
        IncompatibleDraft: it is no directory, a file of it is missing, damaged, no plain file or a link that leads out
            of it, the weights are pickles, or it is not clear which files count.
    """
    if not directory.is_dir():
        raise IncompatibleDraft(
            "there is no such directory.",
            where=str(directory),
            remedy="Name a draft's folder: config.json and model.safetensors.",
        )
    sides = [directory / name for name in (CONFIG_FILE, INDEX, README)]
    for file in (*sides, *sorted(directory.glob("*.safetensors"))):
        _refuse_unsafe(file)
    config = read_draft_config(directory)
    with about_a_draft():
        read_object(directory / CONFIG_FILE)  # sees a field that is there twice
    tensors = stored_weights(directory)
    found = {tensor.file for tensor in tensors.values()} | {file for file in sides if file.is_file()}
    return PublicFiles(directory, config, tensors, tuple(sorted(found)))


def licence_of(directory: Path) -> str | None:
    """The licence that the front matter of a directory's README.md names; None: it names none that can be read."""
    try:
        with (directory / README).open("rb") as opened:
            text = opened.read(_MOST_README_BYTES).decode()
    except (OSError, ValueError):
        return None
    matter = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
    try:
        fields = loads(matter[1]) if matter else None
    except NotYaml:
        return None
    if not isinstance(fields, dict):
        return None
    name = fields.get("license")
    if name == "other":  # as the hub has it: the name stands in a field of its own
        name = fields.get("license_name") or name
    names = name if isinstance(name, list) else [name]
    shown = ", ".join(one.strip() for one in names if isinstance(one, str) and one.strip())
    return shown[:_MOST_CHARACTERS] or None


def _refuse_unsafe(file: Path) -> None:
    """Refuse what is no plain file, and a link that leads elsewhere: it could bring in any file of this machine."""
    if not file.is_symlink() and not file.exists():
        return
    home, where = file.parent.resolve(), f"{file.parent.name}/{file.name}"
    # In the hub's cache a snapshot's files are links into the folder `blobs` of the same repository.
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        found = file.resolve(strict=True)
        is_plain = stat.S_ISREG(found.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise IncompatibleDraft(f"cannot be read: {error}.", where=where, remedy=COPY_AGAIN) from error
    if not any(found.is_relative_to(place) for place in allowed):
        raise IncompatibleDraft(
            f"is a symbolic link that leads out of the directory, to {found}.",
            where=where,
            remedy="Copy the directory with what its links lead to (cp -rL), and name the copy.",
        )
    if not is_plain:
        raise IncompatibleDraft("is not a plain file.", where=where, remedy=COPY_AGAIN)
