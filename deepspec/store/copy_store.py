"""Copying a store into another one: for backups, to restore them, and to move from one kind of place to another.

Only what is missing is written, and nothing is ever overwritten, so a copy that was interrupted is simply made again.
Each artifact's files come first, compared with their SHA-256, then its manifest. The records under `registry/` (the
promotion log) and `history/` (runs that have ended) come last, and only those that were there when the copy began:
everything that they name was there before them. What is under way in the source while it is copied (attempts, leases,
work folders) is left out.
"""

import contextlib
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepspec.errors import ArtifactError, DeepspecError
from deepspec.progress import SILENT, Progress
from deepspec.store import layout
from deepspec.store.artifact import Artifact
from deepspec.store.artifacts import Store
from deepspec.store.backends.contract import Backend, created, full_disk
from deepspec.store.lease import leased
from deepspec.store.manifest import FileEntry
from deepspec.store.reading import pieces
from deepspec.store.records import seal, unseal

RECORDS = ("registry", layout.HISTORY)
"""The top-level folders of a store whose records are copied; those of the others say what goes on just now."""

_NUMBERED = re.compile(r"([0-9]+)")


@dataclass
class Copied:
    """What a copy did.

    Attributes:
        artifacts: how many artifacts were copied.
        present: how many were there already.
        records: how many records were copied.
        bytes_written: of the artifacts' files.
        not_whole: artifacts of the source that could not be copied, and what is wrong with them.
        other_content: artifacts whose key has other content in the destination, which was left as it is.
    """

    artifacts: int = 0
    present: int = 0
    records: int = 0
    bytes_written: int = 0
    not_whole: dict[str, str] = field(default_factory=dict)
    other_content: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the destination now holds what the source holds."""
        return not self.not_whole and not self.other_content


def copy_store(
    source: Store, destination: Store, progress: Progress = SILENT, check: Callable[[Store], object] | None = None
) -> Copied:
    """Copy every valid artifact, and the records of the registry and of runs, that the destination lacks.

    Args:
        source: is only read (damage that is found is recorded, as by any reader).
        destination: where to; may be empty, or hold an earlier copy or a store of its own.
        progress: counts artifacts.
        check: asked about the source, and about the destination, before anything is written: raises if its records
            cannot be relied on.

    Returns:
        what was done; an artifact that is not whole in the source is reported there, and the others are copied.

    Raises:
        ArtifactError: the destination's records are another history than the source's (nothing was written), one of the
            two places refuses, or a newer deepspec wrote there.
        TransientError: one of the two places does not answer.
    """
    # Listed first, copied last: see above.
    records = [path for folder in RECORDS for path in sorted(source.backend.list(folder), key=_in_order)]
    if check is not None:
        check(source)
        check(destination)
    _compare(source.backend, destination.backend, records)
    names = source.oldest_first()
    progress.start(len(names), "artifacts")
    done = Copied()
    # Nothing in the destination reaches what is copied before the records are: the lease keeps its collector off.
    with leased(destination.backend, f"runs/copy-{uuid.uuid4().hex[:12]}", keys=[]) as lease:
        for number, (kind, key) in enumerate(names, 1):
            lease.note(keys=names[:number])
            copy_artifact(source, destination, kind, key, done)
            progress.advance()
        for path in records:
            done.records += _copy_record(source.backend, destination.backend, path)
    return done


def copy_artifact(source: Store, destination: Store, kind: str, key: str, done: Copied) -> None:
    """Copy the newest valid artifact under a key, unless the destination has it, or a newer one.

    Args:
        source, destination: as for `copy_store`.
        kind, key: the artifact's name.
        done: what came of it is added here.

    Raises:
        ArtifactError, TransientError: as `copy_store`; nothing became visible.
    """
    name = f"{kind}/{key}"
    artifact = source.find(kind, key)
    if artifact is None:
        if source.numbers(kind, key):  # else a collector has just removed it
            done.not_whole[name] = "it is damaged"
        return
    existing = destination.find(kind, key)
    if existing is not None and existing.digest == artifact.digest:
        done.present += 1
    elif existing is not None and existing.number >= artifact.number:
        done.other_content.append(name)
    else:
        flaw = _write(artifact, destination)
        if flaw is None:
            done.artifacts += 1
            done.bytes_written += artifact.size_bytes
        elif source.numbers(kind, key):
            done.not_whole[name] = flaw


def _write(artifact: Artifact, destination: Store) -> str | None:
    """Copy one artifact; return what is wrong with it in the source, in which case nothing becomes visible."""
    attempt = uuid.uuid4().hex  # its own: an interrupted copy may have left files under the source's
    folder, backend = f"{artifact.kind}/{artifact.key}", destination.backend
    staging = backend.staging(f"{folder}/{attempt}")
    try:
        # The record as it stands, with what another deepspec of the same format may have added to it.
        record = unseal(artifact.store.backend.read(f"{folder}/manifest.{artifact.number}.json"))
        flaw = _stage(artifact, staging)
        if flaw is None:
            backend.publish(f"{folder}/{attempt}", staging)
    except FileNotFoundError:
        flaw = "its manifest is missing"
    except BaseException as error:
        _discard(backend, f"{folder}/{attempt}", staging)
        full = full_disk(error, backend.location)
        if full is not None:
            raise full from error
        raise
    if flaw is not None:
        _discard(backend, f"{folder}/{attempt}", staging)
        return flaw
    data = seal({**record, "attempt": attempt})
    while True:
        listing = backend.list(folder)
        taken = layout.numbers(listing, layout.MANIFEST) | layout.numbers(listing, layout.CONDEMNED)
        # Under its own number where that is free: then what replaces it in the source will replace it there too.
        number = max(artifact.number, max(taken, default=0) + 1)
        if created(backend, f"{folder}/manifest.{number}.json", data):
            return None


def _stage(artifact: Artifact, staging: Path) -> str | None:
    """Copy the files of an artifact into a folder, and compare them; return what is wrong with the first bad one."""
    names = [entry.path for entry in artifact.manifest.files]
    folder = artifact.store.backend.fetch(artifact.prefix, names)
    for entry in artifact.manifest.files:
        target = staging / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        flaw = _copy_file(folder, target, entry)
        if flaw is not None:  # perhaps only a local copy of it is damaged
            flaw = _copy_file(artifact.store.backend.fetch(artifact.prefix, [entry.path], refetch=True), target, entry)
        if flaw is not None:
            return f"{entry.path}: {flaw}"
    return None


def _copy_file(folder: Path, target: Path, entry: FileEntry) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(folder / entry.path, target)
    return pieces.damaged_file(target, entry)


def _discard(backend: Backend, prefix: str, staging: Path) -> None:
    with contextlib.suppress(DeepspecError, OSError):
        for path in backend.list(prefix):
            backend.delete(path)
        shutil.rmtree(staging, ignore_errors=True)
        backend.delete(prefix)


def _compare(source: Backend, destination: Backend, records: Sequence[str]) -> None:
    """Refuse a destination that has another record under the same name."""
    there = {path for folder in RECORDS for path in destination.list(folder)}
    for path in records:
        if path in there and destination.read(path) != source.read(path):
            raise ArtifactError(
                f"The two stores have different promotion logs: {path} says something else in {source.location}.",
                where=destination.location,
                remedy="Copy into an empty store, or into one that was copied from this one.",
            )


def _copy_record(source: Backend, destination: Backend, path: str) -> int:
    """Copy one record if it is not there; return how many were copied."""
    data = source.read(path)
    if destination.create(path, data):
        return 1
    if destination.read(path) != data:
        raise ArtifactError(
            "Another process wrote a record there while this one was copied.",
            where=f"{destination.location}/{path}",
            remedy="Copy into a store in which no model is promoted meanwhile.",
        )
    return 0


def _in_order(path: str) -> list[str | int]:
    """Sorts numbers in names by value: an entry of the log follows the one before it."""
    return [int(part) if part.isdigit() else part for part in _NUMBERED.split(path)]
