"""What is done with registered models: list, promote, roll back, reconcile."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import GateFailed, RecipeError
from deepspec.gates.verdict import Verdict
from deepspec.registry import keys
from deepspec.registry.asker import asker
from deepspec.registry.draft_names import MODELS, registered_version
from deepspec.registry.entries import DraftReference, Promotion
from deepspec.registry.errors import DraftDamaged, TrackingError
from deepspec.registry.identity import identity_of
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.mlflow.versions import Reconciled, RegisteredVersion
from deepspec.registry.open import tracking_of
from deepspec.registry.promotions import PromotionLog, earlier_of
from deepspec.registry.reconciling import register_again, say_verdicts
from deepspec.registry.verdicts import verdicts_about
from deepspec.store import Store
from deepspec.store.records import JsonRecord


@dataclass(frozen=True)
class Promoted:
    """What `promote` did.

    Attributes:
        model: registered model name.
        serves: whether the version is champion now.
        entry: number of the entry that made it champion; None: none was written.
        said: all of it, in sentences.
    """

    model: str
    serves: bool
    entry: int | None
    said: tuple[str, ...]


class VersionSummary(JsonRecord):
    """A registered version, as it is listed.

    Attributes:
        name, version, uri, aliases: in the registry.
        tau: benchmark -> acceptance length, as text.
        draft: content digest of the draft.
        run_id: the run that registered it; empty: not known.
    """

    name: str
    version: str
    uri: str
    aliases: tuple[str, ...]
    tau: dict[str, str]
    draft: str
    run_id: str


def versions(home: Path, model: str | None) -> list[VersionSummary]:
    """Every registered version (of one model), newest first."""
    tracking = tracking_of(home)
    names = [model] if model else tracking.list_models()
    return [
        VersionSummary(
            name=version.name,
            version=version.version,
            uri=version.uri,
            aliases=version.aliases,
            tau=_taus(version),
            draft=version.tags.get(keys.DRAFT_DIGEST, ""),
            run_id=version.tags.get(keys.RUN_ID, ""),
        )
        for name in names
        for version in tracking.list_versions(name)
    ]


@dataclass(frozen=True)
class Repair:
    """What `reconcile` did.

    Attributes:
        said: in sentences.
        changed: whether MLflow said anything otherwise than the store.
    """

    said: str
    changed: bool


def reconcile(home: Path, store: Store, model: str) -> Repair:
    """Register again what MLflow has lost, and repair the aliases."""
    tracking = tracking_of(home)
    restored = register_again(store, tracking, model)
    again = f" Registered again: version {', '.join(restored.made.values())}." if restored.made else ""
    again += "".join(f" {sentence}" for sentence in restored.damaged.values())
    say_verdicts(store, tracking, model)
    done = tracking.reconcile(model, PromotionLog(store.backend))
    others = "".join(
        f" {alias} was {before or 'none'}, is now {after or 'none'}."
        for alias, (before, after) in done.aliases.items()
        if alias != keys.CHAMPION and before != after
    )
    if not done.changed:
        said = f"{model}: the alias already says {done.after or 'nothing'}.{others}{again}"
        return Repair(said, changed=bool(others or again))
    said = f"{model}: champion was {done.before or 'none'}, is now {done.after or 'none'}.{others}{again}"
    return Repair(said, changed=True)


def differences(home: Path, store: Store, model: str | None) -> list[str]:
    """What MLflow lacks, or says otherwise than the promotion log, about champions (of one model), in sentences."""
    log, tracking = PromotionLog(store.backend), tracking_of(home)
    found = []
    for name in [model] if model else log.models():
        champion = log.champion(name)
        if champion is None:
            continue
        try:
            version = tracking.version_of(name, champion)
        except TrackingError as error:
            found.append(str(error))
            continue
        if keys.CHAMPION not in version.aliases:
            found.append(
                f"{name}: version {version.version} is champion by the store's promotion log, and has no such alias in "
                f"MLflow. `deepspec models reconcile {name}` sets it."
            )
    return found


def promote(
    home: Path, store: Store, name: str, reason: str, *, unblock: bool = False, claimed: str | None = None
) -> Promoted:
    """Promote a registered version under the verdict its gate gave it.

    Args:
        home, store: where versions and artifacts are.
        name: the version, as `draft_names` reads it. The champion stays champion, and the log as it is.
        reason: why.
        unblock: first let a draft that was rolled back be promoted again, by this and by any later run.
        claimed: the name that the person gave who asks; see `asker`.

    Raises:
        RecipeError: it is to be unblocked without a reason.
        GateFailed: its verdict refuses it, or none was measured against the present champion.
        DraftBlocked: it was rolled back, and is not to be unblocked.
        DraftDamaged: its bytes are not what was registered.
    """
    if unblock and not reason:
        raise RecipeError(
            "a draft that was rolled back is unblocked for a reason.", where="--unblock", remedy="Add --reason …."
        )
    tracking = tracking_of(home)
    chosen = registered_version(name, home, store, where="DRAFT")
    model, draft = chosen.name, reference_of(chosen)
    log, identity = PromotionLog(store.backend), identity_of(store, draft)
    who = asker(tracking, store.backend, claimed)
    lifted = log.unblock(model, identity, who=who, reason=reason) if unblock else None
    done = [f"{model}: version {chosen.version} is unblocked (entry {lifted.number})."] if lifted else []
    last = log.last(model)
    if last is not None and last.champion.digest == draft.digest:
        tracking.reconcile(model, log)
        already = f"{model}: version {chosen.version} is the champion already; nothing was promoted."
        return Promoted(model, serves=True, entry=None, said=(*done, already))
    try:
        verdict = verdict_on(store, log, model, draft)
    except GateFailed as error:
        if lifted is None:
            raise
        return Promoted(model, serves=False, entry=None, said=(*done, str(error)))
    flaw = _flaw(store, draft)
    if flaw is not None:
        raise DraftDamaged(
            f"Version {draft.version} is damaged: {flaw}.", where=model, remedy="Run its recipe: it is made again."
        )
    entry = log.promote(model, draft, verdict, identity=identity, who=who, reason=reason)
    _follow(tracking, log, entry)
    tracking.name_waiting(chosen)
    now = f"{model}: version {entry.champion.version} is champion (entry {entry.number})."
    return Promoted(model, serves=True, entry=entry.number, said=(*done, now))


@dataclass(frozen=True)
class RolledBack:
    """What `rollback` did.

    Attributes:
        model: registered model name.
        said: in a sentence.
    """

    model: str
    said: str


def rollback(home: Path, store: Store, name: str, to: str | None, reason: str) -> RolledBack:
    """Append an earlier champion again.

    Args:
        home, store: where versions and artifacts are.
        name: a model, or the version to go back to (`models:/<name>/<version>`).
        to: the version to go back to: its number, its draft's key or digest, or a name that `draft_names` reads.
        reason: why.

    Raises:
        NothingToRollBackTo: there is no such earlier champion.
        DraftDamaged: its bytes are not what was registered.
        TrackingError: this MLflow does not have it.
    """
    tracking, log = tracking_of(home), PromotionLog(store.backend)
    model = name.removeprefix(MODELS)
    if "/" in model or "@" in model:
        model, to = _champion_named(name, home, store, where="MODEL")
    elif to is not None and "/" in to:
        named, to = _champion_named(to, home, store, where="--to")
        if named != model:
            raise RecipeError(f"this is a version of {named}.", where="--to", remedy=f"Name a version of {model}.")

    def check(draft: DraftReference) -> None:
        _refuse_damaged(store, log, model, draft)
        tracking.version_of(model, draft)

    entry = log.rollback(
        model,
        to,
        check=check,
        identify=lambda draft: identity_of(store, draft),
        who=asker(tracking, store.backend),
        reason=reason,
    )
    version = _follow(tracking, log, entry).after
    return RolledBack(model, f"{model}: rolled back to version {version} (entry {entry.number}).")


def _follow(tracking: Tracking, log: PromotionLog, entry: Promotion) -> Reconciled:
    """Let the aliases follow an entry that is written.

    Raises:
        TrackingError: MLflow fails; it says that the entry is written: who rolls back again goes one further back.
    """
    try:
        return tracking.reconcile(entry.model, log)
    except TrackingError as error:
        version = f"version {entry.champion.version or entry.champion.digest[:12]}"
        error.what = f"{version} is champion (entry {entry.number}), but MLflow's aliases do not say so: {error.what}"
        error.remedy = f"Do not repeat this: `deepspec models reconcile {entry.model}` sets them, as any run does."
        raise


def _refuse_damaged(store: Store, log: PromotionLog, model: str, draft: DraftReference) -> None:
    """See that a draft's bytes are what was registered, by reading all of them.

    Raises:
        DraftDamaged: they are not; it names the next earlier champion that is whole.
    """
    flaw = _flaw(store, draft)
    if flaw is None:
        return
    others = (one for one in earlier_of(log.history(model)) if one.digest != draft.digest)
    whole = next((one for one in others if _flaw(store, one) is None), None)
    remedy = (
        "No other earlier champion is whole: restore the artifact from a backup."
        if whole is None
        else f"Whole is version {whole.version}: `deepspec rollback {model} --to {whole.version or whole.digest[:12]}`."
    )
    raise DraftDamaged(f"Version {draft.version} is damaged: {flaw}.", where=model, remedy=remedy)


def _flaw(store: Store, draft: DraftReference) -> str | None:
    """What is wrong with a draft's artifact; None: nothing is."""
    artifact = store.find(draft.kind, draft.key)
    if artifact is None:
        return f"{draft.kind}/{draft.key[:12]} is gone, or not whole"
    if artifact.digest != draft.digest:
        return f"{draft.kind}/{draft.key[:12]} was made again, with other bytes"
    return next(iter(artifact.verify()), None)


def _champion_named(name: str, home: Path, store: Store, where: str) -> tuple[str, str]:
    """Model and digest of a version that a person named."""
    version = registered_version(name, home, store, where)
    return version.name, version.tags[keys.DRAFT_DIGEST]


def reference_of(version: RegisteredVersion) -> DraftReference:
    """The draft that a registered version is."""
    return DraftReference(
        kind=version.tags[keys.DRAFT_KIND],
        key=version.tags[keys.DRAFT_KEY],
        digest=version.tags[keys.DRAFT_DIGEST],
        version=version.version,
        uri=version.uri,
    )


def verdict_on(store: Store, log: PromotionLog, model: str, draft: DraftReference) -> Verdict:
    """The newest verdict about `draft` that was measured against the present champion.

    Raises:
        GateFailed: there is none.
    """
    champion = log.champion(model)
    serving = champion.digest if champion else None
    fitting = [verdict for verdict in verdicts_about(store, draft.digest) if verdict.champion == serving]
    if fitting:
        return fitting[0]
    raise GateFailed(
        f"Version {draft.version} was never judged against the present champion.",
        where=model,
        remedy="Run its recipe again: the gate will compare the two.",
    )


def _taus(version: RegisteredVersion) -> dict[str, str]:
    prefix = keys.TAU.split("{", 1)[0]
    return {name.removeprefix(prefix): value for name, value in version.tags.items() if name.startswith(prefix)}
