"""Writing and finding artifacts: the rules of the store in one place.

* Files go to `<kind>/<key>/<attempt>/…`; an artifact exists once `<kind>/<key>/manifest.<n>.json` has been created.
  The highest valid n wins; what is damaged is condemned and replaced by n+1. Nothing is ever overwritten.
* A hit costs one listing: every file must be there with its size, and none may be newer than the manifest. One that is
  newer has been touched since, and is checked in full before the artifact is used (`checked.<n>.<time>.json` says when
  that was done, so that the next hit need not do it again).
* Readers get checked bytes (artifact.py).
"""

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepspec.errors import (
    ArtifactError,
    ArtifactMissing,
    ArtifactUnknown,
    DeepspecError,
    RecipeError,
)
from deepspec.store import layout
from deepspec.store.artifact import Artifact
from deepspec.store.backends.contract import Backend, created, full_disk
from deepspec.store.backends.local import LocalBackend
from deepspec.store.backends.s3_location import SCHEME
from deepspec.store.keys import Ingredients, artifact_key
from deepspec.store.layout import Stat
from deepspec.store.manifest import (
    EARLIER,
    FORMAT,
    EarlierAttempt,
    FileEntry,
    Manifest,
    Parent,
    Payer,
    content_digest,
)
from deepspec.store.writing import check, entries
from deepspec.usage import added_up, counted_since, counted_so_far

logger = logging.getLogger(__name__)


class Writing:
    """An artifact that is being made: fill `directory`, set `counts`; it exists when the `with` block ends.

    Attributes:
        directory: what is written there becomes the artifact.
        counts: what was counted.
        gpu_seconds: of all GPUs.
        made_by: who pays.
        earlier: attempts that did not finish.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.counts: dict[str, Any] = {}
        self.gpu_seconds = 0.0
        self.made_by: Payer | None = None
        self.earlier: tuple[EarlierAttempt, ...] = ()
        self._artifact: Artifact | None = None

    def published(self, artifact: Artifact) -> None:
        """Called by the store when the artifact exists."""
        self._artifact = artifact

    @property
    def artifact(self) -> Artifact:
        """The published artifact (a concurrent writer's, if that was first)."""
        if self._artifact is None:
            raise ArtifactError("The artifact is not published before its `with` block has ended.")
        return self._artifact


@dataclass(frozen=True)
class LookUp:
    """What was found under a kind and a key.

    Attributes:
        artifact: the newest valid one.
        numbers: of all manifests, condemned or not.
    """

    artifact: Artifact | None
    numbers: frozenset[int]

    @property
    def damaged(self) -> bool:
        """Whether there is no valid artifact, but manifests of earlier ones are."""
        return self.artifact is None and bool(self.numbers)


class Store:
    """Artifacts on a backend.

    Args:
        backend: where they are.
        code: recorded in manifests (versions of deepspec and of libraries).
    """

    def __init__(self, backend: Backend, code: Mapping[str, Any] | None = None) -> None:
        self.backend = backend
        self.code = dict(code or {})

    @property
    def shared(self) -> bool:
        """Whether other machines may use it at the same time."""
        return self.backend.location.startswith(SCHEME)

    def find(self, kind: str, key: str) -> Artifact | None:
        """The newest valid artifact under `kind` and `key`, or None; see `look_up`."""
        return self.look_up(kind, key).artifact

    def look_up(self, kind: str, key: str) -> "LookUp":
        """What is under `kind` and `key`.

        Costs one listing, and one small read where something is there. An invalid candidate is reported as a warning
        and passed over.

        Raises:
            ArtifactError: a newer deepspec wrote it.
        """
        return self._look_up(kind, key, self.backend.list(f"{kind}/{key}"))

    def _look_up(self, kind: str, key: str, listing: Mapping[str, Stat]) -> "LookUp":
        condemned = layout.numbers(listing, layout.CONDEMNED)
        numbers = frozenset(layout.numbers(listing, layout.MANIFEST) | condemned)
        for number in sorted(numbers - condemned, reverse=True):
            manifest = self.manifest(kind, key, number)
            if manifest is None:
                continue
            artifact = Artifact(self, manifest, number)
            flaw = self._flaw(artifact, listing)
            if flaw is None:
                return LookUp(artifact, numbers)
            # A listing is no snapshot: meanwhile the files may have come, or a collector may have removed them.
            again = self.backend.list(f"{kind}/{key}")
            if number not in layout.numbers(again, layout.MANIFEST):
                continue
            flaw = self._flaw(artifact, again)
            if flaw is None:
                return LookUp(artifact, numbers)
            logger.warning("%s/%s is damaged and will be rebuilt: %s", kind, key[:12], flaw)
            artifact.condemn(flaw)
        return LookUp(None, numbers)

    def get(self, kind: str, key: str) -> Artifact:
        """Like `find`, but raises ArtifactMissing instead of returning None."""
        artifact = self.find(kind, key)
        if artifact is None:
            raise ArtifactMissing(
                "There is no such artifact (or only a damaged one).",
                where=f"{kind}/{key}",
                remedy="Run the recipe that makes it.",
            )
        return artifact

    @contextlib.contextmanager
    def write(
        self,
        kind: str,
        ingredients: Ingredients,
        parents: Mapping[str, Parent] | None = None,
        looked_up: LookUp | None = None,
    ) -> Iterator[Writing]:
        """Make the artifact of `ingredients`.

        The block fills `Writing.directory`. If it raises, nothing becomes visible and the attempt is removed. If
        another writer published the same key meanwhile, that artifact is taken and this attempt removed.

        Args:
            kind: of the artifact.
            ingredients: what its key is made of.
            parents: the artifacts and external inputs among them, by name.
            looked_up: what an earlier look-up found, which saves one now.

        Raises:
            StoreFull: no room left, for the store or for what the block wrote.
            ArtifactError: `kind` cannot name artifacts, `parents` are not those of the key, or what the block left
                cannot be an artifact.
        """
        check(kind, ingredients, parents or {})
        prefix = f"{kind}/{artifact_key(ingredients)}/{uuid.uuid4().hex}"
        staging = self.backend.staging(prefix)
        writing = Writing(staging)
        started, started_cpu, counted = time.monotonic(), _cpu_seconds(), counted_so_far()
        try:
            yield writing
            files = tuple(entries(staging))
            self.backend.publish(prefix, staging)
            cost = {
                "seconds": round(time.monotonic() - started, 3),
                "cpu_seconds": round(_cpu_seconds() - started_cpu, 3),
                **({"gpu_seconds": writing.gpu_seconds} if writing.gpu_seconds else {}),
                "bytes_written": float(sum(entry.size for entry in files)),
                **counted_since(counted),
            }
            data = self._manifest(prefix, ingredients, parents or {}, files, writing, cost).to_bytes()
            # As readers will see it; what could not be read back is not published.
            manifest = Manifest.from_bytes(data, where=prefix)
        except BaseException as error:
            self._discard(prefix, staging)
            full = full_disk(error, str(getattr(error, "filename", None) or staging))
            if full is not None:
                raise full from error
            raise
        try:
            artifact = self._create(manifest, data, looked_up)
        except ArtifactError:
            self._discard(prefix, staging)
            raise
        # Any other failure (no answer, an interrupt) leaves the attempt: the manifest may be there, or come yet.
        writing.published(artifact)
        if artifact.manifest.attempt != manifest.attempt:
            self._discard(prefix, staging)

    def condemn(self, kind: str, key: str, number: int, reason: str) -> None:
        """Record that manifest `number` must not be used again."""
        record = {"reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self.backend.create(f"{kind}/{key}/condemned.{number}.json", json.dumps(record).encode())

    def manifest(self, kind: str, key: str, number: int) -> Manifest | None:
        """Manifest `number` of `kind` and `key`, condemned or not; None if it is gone, damaged or another's.

        Raises:
            ArtifactError: a newer deepspec wrote it.
        """
        path = f"{kind}/{key}/manifest.{number}.json"
        try:
            manifest = Manifest.from_bytes(self.backend.read(path), where=path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s cannot be used: %s", path, error)
            return None
        if (manifest.kind, manifest.key) != (kind, key):
            logger.warning("%s cannot be used: it is about %s/%s", path, manifest.kind, manifest.key)
            return None
        return manifest

    def numbers(self, kind: str, key: str) -> list[int]:
        """The numbers of all manifests of `kind` and `key`, condemned or not."""
        return sorted(layout.numbers(self.backend.list(f"{kind}/{key}"), layout.MANIFEST))

    def names(self, kind: str | None = None) -> list[tuple[str, str]]:
        """(kind, key) of every manifest (of one kind), whether what it describes is whole or not."""
        return sorted({(found_kind, key) for found_kind, key, _ in self._written(kind)})

    def _written(self, kind: str | None) -> dict[tuple[str, str, int], float]:
        """(kind, key, number) of every manifest (of one kind) -> when it was written, by the store's clock."""
        found: dict[tuple[str, str, int], float] = {}
        for path, stat in self.backend.list(kind or "").items():
            parts = path.split("/")
            if len(parts) == 3 and parts[0] not in layout.RESERVED and (match := layout.MANIFEST.fullmatch(parts[2])):
                found[parts[0], parts[1], int(match.group(1))] = stat.modified
        return found

    def oldest_first(self) -> list[tuple[str, str]]:
        """The same as `names`, in the order in which they were written first: a copy in it has the order, too."""
        written = self._written(None)
        first: dict[tuple[str, str], float] = {}
        for (kind, key, _), modified in written.items():
            first[kind, key] = min(modified, first.get((kind, key), modified))
        return sorted(first, key=lambda name: (first[name], name))

    def latest(self, kind: str, limit: int) -> Iterator[Manifest]:
        """The manifests of a kind that were written last, newest first; what they describe is not looked at.

        Costs one listing of the kind and `limit` small reads.
        """
        found = [(modified, key, number) for (_, key, number), modified in self._written(kind).items()]
        for _, key, number in sorted(found, reverse=True)[:limit]:
            manifest = self.manifest(kind, key, number)
            if manifest is not None:
                yield manifest

    def newest_first(self, kind: str) -> list[Artifact]:
        """Every valid artifact of a kind, the one that was written last first.

        By the store's clock, which is the same for all machines that write there; of the same moment, by theirs.
        """
        written = self._written(kind)
        found = [artifact for key in {key for _, key, _ in written} if (artifact := self.find(kind, key)) is not None]

        def when(artifact: Artifact) -> tuple[float, str, str]:
            return written[kind, artifact.key, artifact.number], artifact.manifest.created_at, artifact.key

        # One that was published since the listing is left out.
        known = [artifact for artifact in found if (kind, artifact.key, artifact.number) in written]
        return sorted(known, key=when, reverse=True)

    def artifacts(self, kind: str | None = None) -> Iterator[Artifact]:
        """Every valid artifact (of one kind), newest manifest of each key, by kind and key."""
        for found_kind, key in self.names(kind):
            artifact = self.find(found_kind, key)
            if artifact is not None:
                yield artifact

    def resolve(self, name: str) -> Artifact:
        """The artifact that a person means by `kind/key-prefix` or a key prefix alone.

        Raises:
            ArtifactUnknown: none or several match.
        """
        kind, _, prefix = name.rpartition("/")
        found = (self.find(*pair) for pair in self.names(kind or None) if prefix and pair[1].startswith(prefix))
        matches = [artifact for artifact in found if artifact is not None]
        if len(matches) == 1:
            return matches[0]
        count = f"{len(matches)} artifacts match" if matches else "No artifact matches"
        raise ArtifactUnknown(f"{count} {name!r}.", remedy="`deepspec artifacts ls` lists kinds and keys.")

    def _flaw(self, artifact: Artifact, listing: Mapping[str, Stat]) -> str | None:
        """What a listing says is wrong with an artifact; files newer than their manifest are read in full."""
        folder = f"{artifact.kind}/{artifact.key}"
        checked_until = listing[f"{folder}/manifest.{artifact.number}.json"].modified
        for match in layout.records(listing, layout.CHECKED):
            if int(match.group(1)) == artifact.number:
                checked_until = max(checked_until, int(match.group(2)) / 1000)
        touched = []
        for entry in artifact.manifest.files:
            stat = listing.get(f"{artifact.prefix}/{entry.path}")
            if stat is None:
                return f"{entry.path}: it is missing"
            if stat.size != entry.size:
                return f"{entry.path}: it has {stat.size} bytes instead of {entry.size}"
            if stat.modified > checked_until:
                touched.append(entry)
        return self._recheck(artifact, touched) if touched else None

    def _recheck(self, artifact: Artifact, touched: list[FileEntry]) -> str | None:
        """What is wrong with files that were touched after they were published."""
        try:
            started = self.backend.clock()
        except ArtifactError:  # a place that may only be read
            started = 0.0
        flaws = artifact.verify([entry.path for entry in touched])
        if flaws:
            return f"{flaws[0]} (it was touched)"
        # The same content (a copied store): remembered, so that the next hit need not read it again.
        record = f"{artifact.kind}/{artifact.key}/checked.{artifact.number}.{int(started * 1000)}.json"
        with contextlib.suppress(ArtifactError):
            self.backend.create(record, b"{}")
        return None

    def _manifest(
        self,
        prefix: str,
        ingredients: Ingredients,
        parents: Mapping[str, Parent],
        files: tuple[FileEntry, ...],
        writing: Writing,
        cost: dict[str, float],
    ) -> Manifest:
        kind, key, attempt = prefix.split("/")
        earlier = added_up(one.cost for one in writing.earlier)
        return Manifest(
            format=FORMAT,
            kind=kind,
            key=key,
            attempt=attempt,
            ingredients=ingredients.canonical(),
            parents=dict(parents),
            files=files,
            digest=content_digest(files),
            counts=writing.counts,
            code=self.code,
            cost={**cost, **{f"{EARLIER}{name}": used for name, used in earlier.items()}},
            made_by=writing.made_by,
            earlier=writing.earlier,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _create(self, manifest: Manifest, data: bytes, looked_up: LookUp | None) -> Artifact:
        kind, key = manifest.kind, manifest.key
        number = 0
        while True:
            # What comes after the look-up makes the create below fail, never a second valid manifest.
            there = looked_up or self.look_up(kind, key)
            if there.artifact is not None:
                return there.artifact
            number = max(there.numbers | {number}) + 1
            if created(self.backend, f"{kind}/{key}/manifest.{number}.json", data):
                return Artifact(self, manifest, number)
            looked_up = None

    def _discard(self, prefix: str, staging: Path) -> None:
        with contextlib.suppress(DeepspecError, OSError):
            for path in self.backend.list(prefix):
                self.backend.delete(path)
            shutil.rmtree(staging, ignore_errors=True)
            self.backend.delete(prefix)


def open_store(
    location: str,
    code: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Store:
    """The store at `location`: a folder, or a bucket by its URL.

    Args:
        location: a path, or `s3://bucket/prefix`.
        code: recorded in manifests.
        cache: folder for local copies of what is in a bucket; `cache` in the home folder where none is given.
        environment: with the AWS variables of a bucket; None: the process's own.

    Raises:
        RecipeError: a URL of a kind that no backend serves.
    """
    if location.startswith(SCHEME):
        from deepspec.store.backends.s3 import S3Backend

        home = Path(os.environ.get("DEEPSPEC_HOME") or ".deepspec")
        return Store(S3Backend(location, cache or home / "cache", environment), code)
    if "://" in location:
        scheme = location.split("://", 1)[0]
        raise RecipeError(
            f"No store backend supports {scheme}://.",
            where="DEEPSPEC_STORE",
            remedy="Use a local folder, or s3://bucket/prefix.",
        )
    return Store(LocalBackend(Path(location)), code)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
