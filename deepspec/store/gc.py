"""Garbage collection: what no root reaches any more is removed, and nothing else.

Kept: all that a root reaches through its parents, all that a live run leases (its unfinished attempts too), and
anything younger than the grace period. Orphaned attempts (files without a manifest: a killed writer's) go after the
same grace period. Manifests are removed before the files, so that a reader meets either a whole artifact or none.
Leases and roots are read again before each removal, in this order: a run registers what it made before it gives its
lease back. Where it is unknown what is reached (a damaged manifest or lease), nothing is removed.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from deepspec.errors import ArtifactError
from deepspec.store import layout, lease
from deepspec.store.artifact import Artifact
from deepspec.store.artifacts import Store
from deepspec.store.layout import Stat
from deepspec.store.manifest import Manifest, Parent

logger = logging.getLogger(__name__)

GRACE_SECONDS = 24 * 3600.0
FORGOTTEN_SECONDS = 30 * 24 * 3600.0
"""After so long without a word a host that followed a model is forgotten."""

Roots = Iterable[tuple[str, str]] | Callable[[], Iterable[tuple[str, str]]]
"""(kind, key) of what must stay, or how to ask for it: what is registered while a collector works then stays too."""


@dataclass(frozen=True)
class Garbage:
    """One thing to remove (artifact, attempt, dead lease, silent host's record): its paths in order, and why."""

    name: str
    paths: tuple[str, ...]
    size_bytes: int
    reason: str


def reachable(store: Store, roots: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Every (kind, key) that `roots` reach through their manifests' parents, themselves included.

    Damaged artifacts count: what they were made from is needed to make them again.

    Raises:
        ArtifactError: a manifest on the way cannot be read, so that it is unknown what it reaches.
    """
    found: set[tuple[str, str]] = set()
    open_ = list(roots)
    while open_:
        kind, key = open_.pop()
        if (kind, key) not in found:
            found.add((kind, key))
            for manifest in _manifests(store, kind, key):
                open_ += [(p.kind, p.key) for p in manifest.parents.values() if p.key is not None]
    return found


def lineage(artifact: Artifact, get: Callable[[str, str], Artifact | None]) -> list[Artifact]:
    """`artifact` and everything it was made from, nearest first.

    Args:
        artifact: where to begin.
        get: (kind, key) -> the artifact; `Store.get`, or what remembers it. Where it returns None the walk goes on
            without that ancestor.
    """
    order: dict[tuple[str, str], Artifact] = {}
    open_ = [artifact]
    while open_:
        current = open_.pop(0)
        if (current.kind, current.key) in order:
            continue
        order[current.kind, current.key] = current
        for parent in current.manifest.parents.values():
            if parent.key is not None and (parent.kind, parent.key) not in order:
                ancestor = get(parent.kind, parent.key)
                open_ += [] if ancestor is None else [ancestor]
    return list(order.values())


class OfKind(Protocol):
    """An artifact, or what is known of one."""

    @property
    def kind(self) -> str:
        """The stage's that made it."""


Item = TypeVar("Item", bound=OfKind)


def nearest(found: Iterable[Item]) -> dict[str, Item]:
    """Of every kind the first: a draft that was started from another one has two of a kind, and the nearer is its own.

    Args:
        found: nearest first, as `lineage` gives it.
    """
    of_kind: dict[str, Item] = {}
    for item in found:
        of_kind.setdefault(item.kind, item)
    return of_kind


def absent(found: Iterable[Artifact]) -> list[Parent]:
    """The artifacts that those of a lineage were made from and that are not among them, nearest first."""
    found = tuple(found)
    named = {
        (parent.kind, parent.key): parent
        for artifact in found
        for parent in artifact.manifest.parents.values()
        if parent.key is not None
    }
    there = {(artifact.kind, artifact.key) for artifact in found}
    return [parent for name, parent in named.items() if name not in there]


def garbage(store: Store, roots: Roots, grace_seconds: float = GRACE_SECONDS) -> list[Garbage]:
    """What a collection would remove now.

    Raises:
        ArtifactError: it is unknown what has to stay.
    """
    return _garbage(store, _Kept(store, roots), grace_seconds)


def collect(store: Store, roots: Roots, grace_seconds: float = GRACE_SECONDS) -> list[Garbage]:
    """Remove what `garbage` finds; return what was removed; ArtifactError as there."""
    kept = _Kept(store, roots)
    removed = []
    for item in _garbage(store, kept, grace_seconds):
        # A run may have begun, or a writer published, since the list was made: only what is garbage still is removed.
        kept.ask_again()
        folder = "/".join(item.name.split("/")[:2])
        if item not in _judged(store, kept, store.backend.list(folder), _now(store), grace_seconds):
            continue
        for path in item.paths:
            store.backend.delete(path)
        removed.append(item)
    # However short the grace period: what is being written right now stays.
    store.backend.sweep(max(grace_seconds, GRACE_SECONDS))
    return removed


class _Kept:
    """What has to stay, as of the last time that leases and roots were asked."""

    def __init__(self, store: Store, roots: Roots) -> None:
        self._store = store
        self._roots = roots if callable(roots) else tuple(roots)
        self._asked: frozenset[tuple[str, str]] | None = None
        self.leased: frozenset[tuple[str, str]] = frozenset()
        self.reached: set[tuple[str, str]] = set()
        self.ask_again()

    def ask_again(self) -> None:
        """Read leases, then roots; walk again if either changed."""
        self.leased = frozenset(_leased(self._store))
        asked = self.leased | frozenset(self._roots() if callable(self._roots) else self._roots)
        if asked != self._asked:
            self.reached = reachable(self._store, asked)
            self._asked = asked


def _garbage(store: Store, kept: _Kept, grace_seconds: float) -> list[Garbage]:
    return _judged(store, kept, store.backend.list(""), _now(store), grace_seconds)


def _judged(store: Store, kept: _Kept, listing: Mapping[str, Stat], now: float, grace_seconds: float) -> list[Garbage]:
    """What of a listing is garbage."""
    groups: dict[tuple[str, str], dict[str, Stat]] = {}
    runs: dict[str, dict[str, Stat]] = {}
    followers: dict[str, dict[str, Stat]] = {}
    for path, stat in listing.items():
        kind, key = [*path.split("/"), ""][:2]
        if layout.is_artifact_path(path):
            groups.setdefault((kind, key), {})[path] = stat
        elif kind == "leases" and key in ("runs", "stages"):
            runs.setdefault(path.rpartition("/")[0], {})[path] = stat
        elif kind == layout.FOLLOWERS:
            followers[path] = {path: stat}
    found = []
    for pair, paths in sorted(groups.items()):
        if pair in kept.leased:
            continue
        if pair in kept.reached:
            found += _orphans(store, pair, paths)
        else:
            found.append(_item("/".join(pair), paths, "reached by no registered version and no live run"))
    # Names of runs are never used again, and leases on stages only save work, so their fencing tokens need not be
    # remembered; but a live run's lease stays, however short the grace period.
    ended = [_item(name, paths, "lease of a run that has ended") for name, paths in sorted(runs.items())]
    silent = [_item(name, paths, "a host that has not been heard of for long") for name, paths in followers.items()]
    at_least = max(grace_seconds, GRACE_SECONDS)
    return [
        item
        for items, seconds in ((found, grace_seconds), (ended, at_least), (silent, FORGOTTEN_SECONDS))
        for item in items
        if _older(item, listing, now, seconds)
    ]


def _older(item: Garbage, listing: Mapping[str, Stat], now: float, seconds: float) -> bool:
    return all(now - listing[path].modified >= seconds for path in item.paths)


def _orphans(store: Store, pair: tuple[str, str], paths: Mapping[str, Stat]) -> list[Garbage]:
    """Attempts under a key that is needed, which no manifest needs: of killed writers, or replaced after damage."""
    artifact = store.find(*pair)
    if artifact is not None:
        used = {artifact.manifest.attempt}
    else:
        used = {manifest.attempt for manifest in _manifests(store, *pair)}
    attempts: dict[str, dict[str, Stat]] = {}
    for path, stat in paths.items():
        parts = path.split("/")
        if len(parts) > 3 and parts[2] not in used:
            attempts.setdefault("/".join(parts[:3]), {})[path] = stat
    return [_item(name, files, "attempt that no valid manifest names") for name, files in attempts.items()]


def _item(name: str, paths: Mapping[str, Stat], reason: str) -> Garbage:
    size = sum(stat.size for stat in paths.values())
    return Garbage(name, tuple(sorted(paths, key=_removal_order)), size, reason)


def _removal_order(path: str) -> tuple[int, str]:
    """Manifests first (a condemned one must not be valid again for a moment), then other records, then files."""
    parts = path.split("/")
    if len(parts) > 3:
        return 2, path
    return (0 if layout.MANIFEST.fullmatch(parts[-1]) else 1), path


def _manifests(store: Store, kind: str, key: str) -> list[Manifest]:
    """Every readable manifest under a key; an empty list if there never was one.

    Raises:
        ArtifactError: there are manifests, but none can be read.
    """
    numbers = store.numbers(kind, key)
    manifests = [manifest for number in numbers if (manifest := store.manifest(kind, key, number)) is not None]
    if numbers and not manifests and store.numbers(kind, key):
        raise ArtifactError(
            "The manifest of an artifact in use is damaged: what it was made from is unknown.",
            where=f"{kind}/{key}",
            remedy="Run the recipe that makes it, then collect again.",
        )
    return manifests


def _leased(store: Store) -> list[tuple[str, str]]:
    """The (kind, key) pairs that live runs say they use."""
    pairs = []
    for content in lease.live(store.backend, "runs"):
        try:
            pairs += [(str(kind), str(key)) for kind, key in content.get("keys", [])]
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"A live run's lease lists keys as {content['keys']!r}.",
                where="leases/runs",
                remedy="Wait until that run has ended, or remove its lease if it is dead.",
            ) from error
    return pairs


def _now(store: Store) -> float:
    # The clock of the place itself: a collector whose own clock is ahead must not shorten the grace period.
    return store.backend.clock()
