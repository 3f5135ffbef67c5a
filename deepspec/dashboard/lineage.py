"""What a champion was made from and measured by, from the manifests of its artifacts."""

from collections.abc import Iterable

from deepspec.errors import ArtifactError
from deepspec.registry.entries import DraftReference
from deepspec.registry.identity import DRAFT_KINDS
from deepspec.registry.version_record import version_record
from deepspec.reports.dashboard.feed import Ancestor
from deepspec.store import Artifact, Store
from deepspec.store.gc import lineage

_COUNTS = ("conversations", "answers", "tokens", "steps", "rounds", "bytes")
_EXTERNAL = "external"


def ancestors_of(
    store: Store, model: str, draft: DraftReference, registration: Artifact | None
) -> tuple[Ancestor, ...]:
    """The version first, then what it was made from, nearest first; empty where nothing of it is known here.

    An earlier draft that training started from is named, and what that one was made from is left out.

    Args:
        store: where artifacts are.
        model: registered name.
        draft: the champion.
        registration: the artifact `register`, where there is one.
    """

    def get(kind: str, key: str) -> Artifact | None:
        return None if kind in DRAFT_KINDS and key != draft.key else store.find(kind, key)

    begin = registration or store.find(draft.kind, draft.key)
    if begin is not None:
        return _of_artifacts(lineage(begin, get))
    try:
        record = version_record(store.backend, model, draft.digest)
    except ArtifactError:
        record = None
    if record is None:
        return ()
    return tuple(Ancestor(kind=one.kind, key=one.key, in_store=one.in_store) for one in record.lineage)


def _of_artifacts(found: Iterable[Artifact]) -> tuple[Ancestor, ...]:
    artifacts = list(found)
    places = {(item.kind, item.key): place for place, item in enumerate(artifacts)}
    further: dict[tuple[str, str], Ancestor] = {}
    parents: list[tuple[int, ...]] = []
    for item in artifacts:
        own = []
        for name, parent in sorted(item.manifest.parents.items()):
            outside = parent.key is None
            place = (name, parent.digest) if outside else (parent.kind, str(parent.key))
            if place not in places:
                places[place] = len(places)
                further[place] = Ancestor(kind=place[0], key=place[1], in_store=outside)
            own.append(places[place])
        parents.append(tuple(own))
    known = [
        Ancestor(kind=item.kind, key=item.key, made=item.manifest.created_at, counts=_counts(item), parents=own)
        for item, own in zip(artifacts, parents, strict=True)
    ]
    return (*known, *further.values())


def _counts(item: Artifact) -> dict[str, int]:
    counted = item.manifest.counts
    return {
        name: int(counted[name])
        for name in _COUNTS
        if isinstance(counted.get(name), int | float) and not isinstance(counted[name], bool)
    }
