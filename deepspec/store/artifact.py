"""One artifact: its manifest, and its files, every piece of which is compared with its checksum before it is used.

What is damaged in the store itself, and not only in a copy of it, is condemned. Not here: how artifacts are found and
written (artifacts.py).
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from deepspec.errors import ArtifactDamaged, ArtifactError, TransientError
from deepspec.store.backends.contract import Backend
from deepspec.store.manifest import FileEntry, Manifest
from deepspec.store.reading import pieces

logger = logging.getLogger(__name__)

_LOOKS = 5
"""How often a file that seems damaged is fetched again, until the same bytes have come twice."""


class Holder(Protocol):
    """The store that an artifact is in, as the artifact needs it.

    Attributes:
        backend: where its files are.
    """

    backend: Backend

    @property
    def shared(self) -> bool:
        """Whether other machines may use it at the same time."""

    def manifest(self, kind: str, key: str, number: int) -> Manifest | None:
        """Manifest `number` of `kind` and `key`; None if it is gone, damaged or another's."""

    def condemn(self, kind: str, key: str, number: int, reason: str) -> None:
        """Record that manifest `number` must not be used again."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact: its manifest, and where its files can be read."""

    store: Holder
    manifest: Manifest
    number: int

    @property
    def kind(self) -> str:
        """The kind: a stage's name."""
        return self.manifest.kind

    @property
    def key(self) -> str:
        """The key: 64 hex digits."""
        return self.manifest.key

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted list of its files: what its children's keys contain."""
        return self.manifest.digest

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.manifest.files)

    @cached_property
    def _checked(self) -> set[str]:
        return set()

    def directory(self) -> Path:
        """A local folder with all files and nothing else, every piece of them compared with its checksum.

        Raises:
            ArtifactDamaged: a file is missing or differs; the artifact is condemned, so that it will be rebuilt.
            ArtifactError: another file lies there, which a reader might take for a part of it.
        """
        names = [entry.path for entry in self.manifest.files]
        folder = self._read(names)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        foreign = sorted(name for name in found - set(names) if not name.rpartition("/")[2].startswith("."))
        if foreign:
            raise ArtifactError(
                "This file is not part of the artifact whose folder it is in.",
                where=str(folder / foreign[0]),
                remedy="Remove it: artifacts never change.",
            )
        return folder

    def path(self, name: str) -> Path:
        """One file, and only this one, checked once for this object; ArtifactDamaged as for `directory`."""
        return self._read([name]) / name

    def location(self) -> str:
        """Where `open_files` reads its files: a folder, checked; or the URL of a manifest that readers check them by.

        Raises:
            as `directory`, where the files are local.
        """
        if not self.store.shared:
            return str(self.directory())
        return f"{self.store.backend.location}/{self.kind}/{self.key}/manifest.{self.number}.json"

    def json(self, name: str) -> Any:
        """A JSON file of the artifact, checked."""
        return json.loads(self.path(name).read_text())

    def verify(self, names: Sequence[str] | None = None) -> list[str]:
        """Compare SHA-256 of every file (or of those named) with the manifest; return what is wrong, a sentence a file.

        Raises:
            TransientError: a file comes differently each time.
        """
        wanted = [entry for entry in self.manifest.files if names is None or entry.path in names]
        folder = self._fetch([entry.path for entry in wanted], refetch=True)
        suspects = [entry for entry in wanted if pieces.damaged_file(folder / entry.path, entry) is not None]
        flaws = [(entry.path, self._damage(entry, pieces.damaged_file)) for entry in suspects]
        return [f"{path}: {flaw}" for path, flaw in flaws if flaw is not None]

    def refuse_damaged(self) -> None:
        """Compare SHA-256 of every file with the manifest, before what is made from them leaves the store.

        Raises:
            ArtifactDamaged: a file differs; the artifact is condemned, so that it will be rebuilt.
            TransientError: a file comes differently each time.
        """
        for flaw in self.verify():
            file, _, what = flaw.partition(": ")
            self.condemn(flaw)
            raise ArtifactDamaged(f"An artifact is damaged: {what}.", kind=self.kind, key=self.key, file=file)

    def settle(self, name: str) -> bool:
        """Look again at a file that a reader found damaged; condemn the artifact if it is damaged in the store, too.

        Returns:
            whether it is; if not, only the copy that the reader got was damaged.

        Raises:
            TransientError: it comes differently each time.
        """
        entry = self._entry(name)
        flaw = self._damage(entry, pieces.damaged_piece)
        if flaw is not None:
            self.condemn(f"{entry.path}: {flaw}")
        return flaw is not None

    def condemn(self, reason: str) -> None:
        """Record that this manifest must not be used again; its producer will write the next one.

        A place that may only be read is left as it is, with a warning: what is damaged is refused all the same.
        """
        try:
            current = self.store.manifest(self.kind, self.key, self.number)
            # A collector may have removed this artifact, and a writer made it again under the same number.
            if current is not None and current.attempt == self.manifest.attempt:
                self.store.condemn(self.kind, self.key, self.number, reason)
        except ArtifactError as error:
            logger.warning("%s", error)

    @property
    def prefix(self) -> str:
        """Where its files lie in the store."""
        return f"{self.kind}/{self.key}/{self.manifest.attempt}"

    def _read(self, names: list[str]) -> Path:
        """The local folder of the artifact, after the files `names` in it have been checked."""
        unchecked = [self._entry(name) for name in names if name not in self._checked]
        folder = self._fetch(names)
        for entry in unchecked:
            flaw = pieces.damaged_piece(folder / entry.path, entry)
            if flaw is not None:
                flaw = self._damage(entry, pieces.damaged_piece)
            if flaw is not None:
                self.condemn(f"{entry.path}: {flaw}")
                raise ArtifactDamaged(f"An artifact is damaged: {flaw}.", kind=self.kind, key=self.key, file=entry.path)
            self._checked.add(entry.path)
        return folder

    def _damage(self, entry: FileEntry, damaged: Callable[[Path, FileEntry], str | None]) -> str | None:
        """What is wrong with a file in the store itself, rather than with a copy of it.

        A good artifact must not be condemned because a transfer failed: bytes count that came twice.
        """
        seen: set[str | None] = set()
        for _ in range(_LOOKS):
            path = self._fetch([entry.path], refetch=True) / entry.path
            flaw = damaged(path, entry)
            if flaw is None:
                return None
            content = _content(path)
            if content in seen:
                return flaw
            seen.add(content)
        raise TransientError(
            f"{entry.path} has different bytes each time it is read.",
            where=f"{self.store.backend.location}/{self.prefix}",
            remedy="Check the network to the store, and run again: what was finished is kept.",
        )

    def _fetch(self, names: list[str], *, refetch: bool = False) -> Path:
        return self.store.backend.fetch(self.prefix, names, refetch=refetch)

    def _entry(self, name: str) -> FileEntry:
        for entry in self.manifest.files:
            if entry.path == name:
                return entry
        raise ArtifactError(
            f"The artifact has no file {name!r}.",
            where=f"{self.kind}/{self.key}",
            remedy="Run the recipe that makes it.",
        )


def _content(path: Path) -> str | None:
    """What a file holds; None if it cannot be read."""
    try:
        return pieces.sha256_of(path)
    except OSError:
        return None
