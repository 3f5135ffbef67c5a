"""Everything that is known of one registered version: verdict, acceptance, speed, what it was made from, and blocks."""

from pathlib import Path
from typing import Any

from deepspec.errors import BadArgument
from deepspec.evaluation.results import BenchmarkResult, Evaluation, MeanResult, Number
from deepspec.registry import keys
from deepspec.registry.blocks import block_of
from deepspec.registry.draft_names import MODELS, registered_version
from deepspec.registry.identity import identity_of
from deepspec.registry.mlflow.versions import RegisteredVersion
from deepspec.registry.open import tracking_of
from deepspec.registry.operations import reference_of
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.reconciling import promoted_under
from deepspec.registry.verdicts import verdicts_about
from deepspec.registry.version_record import Ancestor, VersionRecord, version_record
from deepspec.store import Artifact, Store
from deepspec.store.gc import absent, lineage
from deepspec.store.records import JsonRecord


class Speed(JsonRecord):
    """How fast one benchmark was decoded; None: it was not measured."""

    speedup: Number | None
    speedup_ci95: tuple[Number, Number] | None
    tokens_per_second: Number | None
    plain_tokens_per_second: Number | None


class Acceptance(JsonRecord):
    """Tokens a round on one benchmark; None: there was no round."""

    tau: Number | None
    tau_ci95: tuple[Number, Number] | None


class VersionPage(JsonRecord):
    """What is known of a registered version.

    Attributes:
        name, version, uri, aliases: in the registry.
        kind, key, digest: of the draft in the store.
        verdict: the newest about it, with its sentence; None: it was never judged.
        blocked: why no run may promote it; None: it may.
        tau, speed: by benchmark; `macro` is the mean over them.
        lineage: nearest first.
        entries: numbers of its entries in the promotion log.
    """

    name: str
    version: str
    uri: str
    aliases: tuple[str, ...]
    kind: str
    key: str
    digest: str
    verdict: dict[str, Any] | None
    blocked: str | None
    tau: dict[str, Acceptance]
    speed: dict[str, Speed]
    lineage: tuple[Ancestor, ...]
    entries: tuple[int, ...]


def show(home: Path, store: Store, name: str) -> VersionPage:
    """What is known of a version.

    Args:
        home, store: where versions and artifacts are.
        name: a draft, as `draft_names` reads it; or a model: its champion, or its newest version if it has none.

    Raises:
        BadArgument: there is no such model.
        RecipeError, TrackingError: as `registered_version`.
    """
    model = name.removeprefix(MODELS)
    version = _of_model(home, store, model) if _is_model(model) else registered_version(name, home, store, "MODEL")
    draft, log = reference_of(version), PromotionLog(store.backend)
    history = log.history(version.name)
    judged = verdicts_about(store, draft.digest) or promoted_under(
        [entry for entry in history if entry.champion.digest == draft.digest][::-1]
    )
    found = block_of(history, identity_of(store, draft))
    is_champion = bool(history) and history[-1].champion.digest == draft.digest
    evaluated = _evaluated(store, version)
    copied = None if evaluated else version_record(store.backend, version.name, draft.digest)
    measured = _measured(evaluated, copied)
    return VersionPage(
        name=version.name,
        version=version.version,
        uri=version.uri,
        aliases=version.aliases,
        kind=draft.kind,
        key=draft.key,
        digest=draft.digest,
        verdict={**judged[0].to_json(), "sentence": judged[0].sentence} if judged else None,
        blocked=found[0].sentence(found[1]) if found and not is_champion else None,
        tau=_acceptance(measured) if measured else {},
        speed=_speed(measured) if measured else {},
        lineage=copied.lineage if copied else _lineage(store, evaluated or store.find(draft.kind, draft.key)),
        entries=tuple(
            entry.number for entry in history if entry.kind != "unblock" and entry.champion.digest == draft.digest
        ),
    )


def _is_model(name: str) -> bool:
    return not any(sign in name for sign in "/@") and not Path(name).is_dir()


def _of_model(home: Path, store: Store, model: str) -> RegisteredVersion:
    tracking = tracking_of(home)
    champion = PromotionLog(store.backend).champion(model)
    if champion is not None:
        return tracking.version_of(model, champion)
    found = tracking.list_versions(model)
    if not found:
        raise BadArgument(
            f"there is no registered model {model}.", where=str(home), remedy="`deepspec models ls` lists them."
        )
    return found[0]


def _evaluated(store: Store, version: RegisteredVersion) -> Artifact | None:
    """The evaluation that the version was registered or registered again with."""
    key, _ = keys.lineage_in(version.tags).get("evaluate", ("", ""))
    return store.find("evaluate", key) if key else None


def _measured(evaluated: Artifact | None, copied: VersionRecord | None) -> Evaluation | None:
    """What the version was measured at; None: not known here."""
    if evaluated is not None:
        where = f"{evaluated.kind}/{evaluated.key[:12]}"
        return Evaluation.from_json(evaluated.json("evaluation.json"), where=where)
    if copied is None or copied.evaluation is None:
        return None
    return Evaluation.from_json(copied.evaluation, where=f"{copied.model}/versions/{copied.draft.digest[:12]}")


def _lineage(store: Store, origin: Artifact | None) -> tuple[Ancestor, ...]:
    """What a version was made from, and what of that this store does not have."""
    found = lineage(origin, store.find) if origin else []
    return (
        *(Ancestor(kind=item.kind, key=item.key, digest=item.digest) for item in found),
        *(Ancestor(kind=one.kind, key=str(one.key), digest=one.digest, in_store=False) for one in absent(found)),
    )


def _acceptance(evaluation: Evaluation) -> dict[str, Acceptance]:
    return {name: Acceptance(tau=part.tau, tau_ci95=part.tau_ci95) for name, part in evaluation.parts()}


def _speed(evaluation: Evaluation) -> dict[str, Speed]:
    found = {}
    for name, part in evaluation.parts():
        if isinstance(part, BenchmarkResult):
            found[name] = Speed(
                speedup=part.speedup,
                speedup_ci95=part.speedup_ci95,
                tokens_per_second=part.tokens_per_second,
                plain_tokens_per_second=part.plain_tokens_per_second,
            )
        elif isinstance(part, MeanResult):
            found[name] = Speed(
                speedup=part.speedup,
                speedup_ci95=None,
                tokens_per_second=None,
                plain_tokens_per_second=None,
            )
    return found
