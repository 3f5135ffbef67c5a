"""`bundle.json`: what a bundle holds, and the SHA-256 of every file of it."""

import hashlib
from pathlib import Path
from typing import Any

from deepspec.errors import BadArgument
from deepspec.foreign_json import parse, strict_text
from deepspec.store.reading.pieces import sha256_of
from deepspec.store.records import JsonRecord, refuse_newer

INDEX_FILE = "bundle.json"
FORMAT = 1
"""Raised when an index is written that an older deepspec could not read."""
_MAX_BYTES = 16 << 20


class BundledFile(JsonRecord):
    """A file's size in bytes, and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class BundledDraft(JsonRecord):
    """Which draft it is; None: not known.

    Attributes:
        model: the registered model's name.
        version: its version there, of the first promotion.
        kind, key, digest: of the artifact.
        algorithm: its name.
        num_draft_tokens: proposed in a round.
    """

    model: str | None
    version: str | None
    kind: str | None
    key: str | None
    digest: str | None
    algorithm: str
    num_draft_tokens: int


class BundledTarget(JsonRecord):
    """The target that the draft is for; None: not known.

    Attributes:
        name: at a hub.
        revision: the commit there.
        fingerprint: of its files, as the draft's lineage has it.
    """

    name: str | None
    revision: str | None
    fingerprint: str | None


class BundledPromotion(JsonRecord):
    """When the draft became champion first."""

    model: str
    number: int
    when: str


class Bundle(JsonRecord):
    """An index.

    Attributes:
        format: version of this record.
        weights_format: the format of config.json and weights.
        draft, target: which.
        licence: that the target or an imported draft states; None: none is known.
        promotion: None: the draft never was champion.
        commands: engine -> the words that start it in the bundle's folder; `$TARGET` stands for the target.
        measured: what step costs and draft lengths were measured on; None: they are left out.
        left_out: file -> why it is not there.
        files: every other file, by its path in the bundle.
    """

    format: int = FORMAT
    weights_format: str
    draft: BundledDraft
    target: BundledTarget
    licence: str | None
    promotion: BundledPromotion | None
    commands: dict[str, tuple[str, ...]]
    measured: str | None
    left_out: dict[str, str]
    files: dict[str, BundledFile]

    def text(self) -> str:
        """As it is written."""
        return strict_text(self.to_json(), indent=1)

    @property
    def digest(self) -> str:
        """SHA-256 of the index: of all that is in the bundle."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def files_in(folder: Path) -> dict[str, BundledFile]:
    """Every file of a folder but the index; reads all of them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: BundledFile(bytes=path.stat().st_size, sha256=sha256_of(path))
        for name, path in names.items()
        if name != INDEX_FILE
    }


def read_index(folder: Path) -> Bundle:
    """The index of a bundle.

    Raises:
        BadArgument: there is none, or it cannot be read.
        ArtifactError: a newer deepspec wrote it.
    """
    where = str(folder / INDEX_FILE)
    try:
        content: Any = parse((folder / INDEX_FILE).read_bytes(), _MAX_BYTES)
        refuse_newer(content, FORMAT, what="This bundle", where=where, otherwise="write the bundle again")
        return Bundle.from_json(content, where=where)
    except FileNotFoundError as error:
        raise BadArgument(
            "this directory is no bundle.", where=str(folder), remedy="`deepspec export DRAFT --bundle` writes one."
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise BadArgument(
            f"the bundle's index cannot be read: {error}.", where=where, remedy="Write the bundle again."
        ) from error


def flaw_in(folder: Path, bundle: Bundle) -> str | None:
    """What differs between a bundle's files and its index, in words; None: nothing. Reads every file."""
    found = files_in(folder)
    for name in sorted(bundle.files.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in bundle.files:
            return f"{name} is not in its index"
        if found[name] != bundle.files[name]:
            return f"{name} is not the file that was written"
    return None
