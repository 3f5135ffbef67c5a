"""The target that a bundled draft is for: its name and revision at a hub, its licence, and whether it has changed."""

import re
from dataclasses import dataclass
from pathlib import Path

from deepspec.drafts.files.public_files import licence_of
from deepspec.errors import IncompatibleDraft
from deepspec.store.fingerprint import Fingerprints, model_files

_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class ServedTarget:
    """What is known of the target; None: not known.

    Attributes:
        name: at a hub (`owner/name`).
        revision: the commit there.
        licence: that its README.md states.
        fingerprint: of its files as they are now.
    """

    name: str | None = None
    revision: str | None = None
    licence: str | None = None
    fingerprint: str | None = None


def served_target(named: str, trained_for: str | None, *, memo: Path | None) -> ServedTarget:
    """What is known of the target that a person names.

    Args:
        named: its folder, or its name at a hub; "": none.
        trained_for: fingerprint that the draft's lineage has of it; None: not known.
        memo: remembers fingerprints of files.

    Raises:
        IncompatibleDraft: the folder's files are not those that the draft was trained for.
        DataError: they cannot be read.
    """
    folder = Path(named)
    if not named or not folder.is_dir():
        return ServedTarget(name=named if _REPOSITORY.fullmatch(named) else None)
    fingerprints = Fingerprints(memo)
    found = fingerprints.files(model_files(folder), within=folder)
    fingerprints.save()
    if trained_for is not None and found != trained_for:
        raise IncompatibleDraft(
            f"the target's files are not those that the draft was trained for ({trained_for[:12]}, now {found[:12]}).",
            where=str(folder),
            remedy="Name the revision that it was trained for, or train for this one.",
        )
    snapshot = _SNAPSHOT.search(folder.absolute().as_posix())
    return ServedTarget(
        name=f"{snapshot['owner']}/{snapshot['name']}" if snapshot else None,
        revision=snapshot["revision"] if snapshot else None,
        licence=licence_of(folder),
        fingerprint=found,
    )
