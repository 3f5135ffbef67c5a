"""Attempts at artifacts, as manifests record them: who paid for each, what it used, and whether it finished."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from deepspec.store import Artifact, Manifest
from deepspec.store.artifact import Holder
from deepspec.store.manifest import EARLIER, Payer
from deepspec.usage import USED


@dataclass(frozen=True)
class Attempt:
    """One try at one artifact.

    Attributes:
        key: of the artifact.
        payer: who paid; None: not recorded, as by an earlier deepspec.
        used: by the names in `deepspec.usage.USED`; what there was none of is left out.
        finished: whether the artifact is its result.
    """

    key: str
    payer: Payer | None
    used: dict[str, float]
    finished: bool


def attempts_at(artifact: Artifact) -> list[Attempt]:
    """Every attempt at an artifact; those at manifests of the same key that were condemned are among them."""
    store: Holder = artifact.store
    numbers = range(1, artifact.number)  # mostly none
    replaced = (store.manifest(artifact.kind, artifact.key, number) for number in numbers)
    manifests = [*(manifest for manifest in replaced if manifest is not None), artifact.manifest]
    return once(attempt for manifest in manifests for attempt in attempts_in(manifest))


def attempts_in(manifest: Manifest) -> Iterator[Attempt]:
    """The attempts that a manifest records: those that did not finish, then the one that did.

    An earlier deepspec recorded what those that did not finish had used together, and GPU seconds among the counts.
    """
    cost = manifest.cost
    for one in manifest.earlier:
        yield Attempt(manifest.key, one.payer, _known(one.cost), finished=False)
    sums = {name: cost[f"{EARLIER}{name}"] for name in USED if f"{EARLIER}{name}" in cost}
    if sums and not manifest.earlier:
        yield Attempt(manifest.key, None, _known(sums), finished=False)
    counted = {"gpu_seconds": float(manifest.counts.get("gpu_seconds") or 0.0)}
    yield Attempt(manifest.key, manifest.made_by, _known({**counted, **cost}), finished=True)


def once(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Each attempt once, in order: one that a manifest and an account both tell of is the same; the first counts."""
    found: dict[object, Attempt] = {}
    for attempt in attempts:
        payer = attempt.payer
        name: object = object() if payer is None else (attempt.key, payer.run, payer.attempt)
        found.setdefault(name, attempt)
    return list(found.values())


def _known(cost: dict[str, float]) -> dict[str, float]:
    return {name: cost[name] for name in USED if cost.get(name)}
