"""What is done with registered models: list, promote, roll back, reconcile."""

from pathlib import Path

from deepspec.errors import GateFailed, RecipeError
from deepspec.evaluation.calibration.results import rewritten
from deepspec.evaluation.results import Evaluation
from deepspec.gates.verdict import Verdict
from deepspec.registry import keys
from deepspec.registry.asker import asker
from deepspec.registry.card import CALIBRATION_FILE, CARD_FILE
from deepspec.registry.draft_names import MODELS, registered_version
from deepspec.registry.entries import DraftReference
from deepspec.registry.errors import TrackingError
from deepspec.registry.identity import identity_of
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.mlflow.versions import RegisteredVersion
from deepspec.registry.open import tracking_of
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, Store
from deepspec.store.gc import lineage
from deepspec.store.manifest import ABOUT
from deepspec.store.records import JsonRecord


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


def reconcile(home: Path, store: Store, model: str) -> str:
    """Register again what MLflow has lost, and repair the alias; return what was done, in words."""
    tracking = tracking_of(home)
    restored = _register_again(store, tracking, model)
    again = f" Registered again: version {', '.join(restored)}." if restored else ""
    done = tracking.reconcile(model, PromotionLog(store.backend))
    if not done.changed:
        return f"{model}: the alias already says {done.after or 'nothing'}.{again}"
    return f"{model}: champion was {done.before or 'none'}, is now {done.after or 'none'}.{again}"


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


def promote(home: Path, store: Store, name: str, reason: str, *, unblock: bool = False) -> list[str]:
    """Promote a registered version under the verdict its gate gave it; return what was done, in words.

    Args:
        home, store: where versions and artifacts are.
        name: the version, as `draft_names` reads it. The champion stays champion, and the log as it is.
        reason: why.
        unblock: first let a draft that was rolled back be promoted again, by this and by any later run.

    Raises:
        RecipeError: it is to be unblocked without a reason.
        GateFailed: its verdict refuses it, or none was measured against the present champion.
        DraftBlocked: it was rolled back, and is not to be unblocked.
    """
    if unblock and not reason:
        raise RecipeError(
            "a draft that was rolled back is unblocked for a reason.", where="--unblock", remedy="Add --reason …."
        )
    tracking = tracking_of(home)
    chosen = registered_version(name, home, store, where="DRAFT")
    model, draft = chosen.name, reference_of(chosen)
    log, identity = PromotionLog(store.backend), identity_of(store, draft)
    who = asker(tracking, store.backend)
    lifted = log.unblock(model, identity, who=who, reason=reason) if unblock else None
    done = [f"{model}: version {chosen.version} is unblocked (entry {lifted.number})."] if lifted else []
    last = log.last(model)
    if last is not None and last.champion.digest == draft.digest:
        tracking.reconcile(model, log)
        return [*done, f"{model}: version {chosen.version} is the champion already; nothing was promoted."]
    try:
        verdict = verdict_on(store, log, model, draft)
    except GateFailed as error:
        if lifted is None:
            raise
        return [*done, str(error)]
    entry = log.promote(model, draft, verdict, identity=identity, who=who, reason=reason)
    tracking.reconcile(model, log)
    return [*done, f"{model}: version {entry.champion.version} is champion (entry {entry.number})."]


def rollback(home: Path, store: Store, name: str, to: str | None, reason: str) -> str:
    """Append an earlier champion again; return what was done, in words.

    Args:
        home, store: where versions and artifacts are.
        name: a model, or the version to go back to (`models:/<name>/<version>`).
        to: the version to go back to: its number, its draft's key or digest, or a name that `draft_names` reads.
        reason: why.
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
        tracking.version_of(model, draft)

    entry = log.rollback(
        model,
        to,
        check=check,
        identify=lambda draft: identity_of(store, draft),
        who=asker(tracking, store.backend),
        reason=reason,
    )
    version = tracking.reconcile(model, log).after
    return f"{model}: rolled back to version {version} (entry {entry.number})."


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


def _register_again(store: Store, tracking: Tracking, model: str) -> list[str]:
    """Register every version that the store knows and MLflow does not: a database restored from before them, or lost.

    In the order in which they were registered first, so that they get the numbers they had where MLflow has lost none
    but the last ones.

    Returns:
        the numbers of the versions made.
    """
    known = {version.tags.get(keys.DRAFT_DIGEST) for version in tracking.list_versions(model)}
    run_id = None
    made = []
    for registration in sorted(store.artifacts("register"), key=_registered_as):
        parents = registration.manifest.parents
        if registration.json("registration.json")["name"] != model or parents["draft"].digest in known:
            continue
        ancestors = {item.kind: item for item in lineage(registration, store.get)[1:]}
        draft = ancestors[parents["draft"].kind]
        code = registration.manifest.code
        tags = keys.version_tags(
            recipe=model,
            code_version=str(code.get("commit") or code.get("deepspec", "")),
            run_id="",
            artifacts={kind: (item.key, item.digest) for kind, item in ancestors.items()},
            evaluation=_evaluation(ancestors[parents["evaluation"].kind]),
        )
        del tags[keys.RUN_ID]  # the store does not know it
        run_id = run_id or tracking.start_pipeline_run(f"reconcile {model}", {})
        reference = DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest)
        # A draft that was measured again has several registrations: the last one's tags and card stay.
        said = about(registration)
        card = said.pop(CARD_FILE, None)
        version = tracking.register(
            draft.directory() / "draft", model, run_id, tags, draft=reference, card=card, notes=said
        )
        made += [version.version] if version.created else []
    if run_id is not None:
        tracking.finish(run_id)
    return made


def _evaluation(artifact: Artifact) -> Evaluation:
    return Evaluation.from_json(artifact.json("evaluation.json"), where=f"{artifact.kind}/{artifact.key[:12]}")


def about(registration: Artifact) -> dict[str, str]:
    """What was registered about a draft, by file: its card and its calibration.

    Earlier versions of deepspec wrote no calibration, the first ones no card either; and calibrations with nulls in
    their lists, which serving engines do not read.
    """
    written = {entry.path for entry in registration.manifest.files}
    said = {
        name: registration.path(f"{ABOUT}{name}").read_text(encoding="utf-8")
        for name in (CARD_FILE, CALIBRATION_FILE)
        if f"{ABOUT}{name}" in written
    }
    if CALIBRATION_FILE in said:
        where = f"{registration.kind}/{registration.key[:12]}"
        said[CALIBRATION_FILE] = rewritten(said[CALIBRATION_FILE], where=where)
    return said


def _registered_as(registration: Artifact) -> tuple[str, int, str]:
    """Sorts registrations by model, version and time."""
    record = registration.json("registration.json")
    return str(record["name"]), int(record["version"]), registration.manifest.created_at


def verdict_on(store: Store, log: PromotionLog, model: str, draft: DraftReference) -> Verdict:
    """The newest verdict about `draft` that was measured against the present champion."""
    champion = log.champion(model)
    serving = champion.digest if champion else None
    verdicts = [
        Verdict.from_json(artifact.json("verdict.json"), where=f"gate/{artifact.key[:12]}")
        for artifact in sorted(store.artifacts("gate"), key=lambda item: item.manifest.created_at, reverse=True)
    ]
    about = [verdict for verdict in verdicts if verdict.challenger == draft.digest]
    fitting = [verdict for verdict in about if verdict.champion == serving]
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
