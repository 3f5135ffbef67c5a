"""Making MLflow say what the store says: versions that it has lost, verdicts, and aliases.

The store and its promotion log are the truth. What a person moves or deletes in MLflow is repaired by the next run, and
said: an alias there decides nothing.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from deepspec.errors import ArtifactDamaged, ArtifactMissing
from deepspec.evaluation.calibration.results import rewritten
from deepspec.evaluation.results import Evaluation
from deepspec.gates.verdict import Verdict
from deepspec.registry import keys
from deepspec.registry.card import CALIBRATION_FILE, CARD_FILE
from deepspec.registry.entries import DraftReference, Promotion
from deepspec.registry.errors import TrackingError
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.mlflow.versions import Reconciled, RegisteredVersion
from deepspec.registry.promotions import PromotionLog, previous_of
from deepspec.registry.verdicts import verdicts
from deepspec.registry.version_record import VersionRecord, version_records
from deepspec.store import Artifact, Store
from deepspec.store.gc import lineage, nearest
from deepspec.store.manifest import ABOUT

REGISTRY_FILE = "registry.json"
"""Where a draft was registered, among what is said about a registration."""


@dataclass(frozen=True)
class Repaired:
    """How a run left MLflow.

    Attributes:
        version: of the run's draft, with its aliases.
        notes: what differed from the store and was repaired, in sentences.
    """

    version: RegisteredVersion
    notes: tuple[str, ...]


def reconcile_after(
    store: Store,
    log: PromotionLog,
    tracking: Tracking,
    model: str,
    draft: DraftReference,
    *,
    verdict: Verdict | None,
    since: int,
    registered_at: str | None,
) -> Repaired:
    """End a run: its version and the champions are there, the version says its verdict, the aliases follow the log.

    Costs three requests to MLflow and two listings of the log where nothing has to be repaired.

    Args:
        store, log, tracking: what is true, and what shows it.
        model: registered model name.
        draft: the run's.
        verdict: on it; None: it was not judged.
        since: number of the log's last entry when the run began (0: none): that an alias does not show yet what was
            promoted since then is no repair.
        registered_at: address of the MLflow where the draft was registered first; None: not known.

    Raises:
        TrackingError: this MLflow knows nothing of the model, and is not where it was registered; or it refuses.
    """
    entries = log.history(model)
    wanted = [draft, *([entries[-1].champion] if entries else []), *filter(None, [previous_of(entries)])]
    notes = _restored(store, tracking, model, wanted, registered_at)
    versions = tracking.list_versions(model)
    version = tracking.version_of(model, draft, versions)
    expected = _expected(tracking, model, versions, entries, since)
    if verdict is not None:
        tracking.say_verdict(version, verdict)
    done = tracking.reconcile(model, log)
    notes += _moved(done, expected)
    return Repaired(replace(version, aliases=done.of_version(version.version)), tuple(notes))


def repaired_aliases(log: PromotionLog, tracking: Tracking, model: str, *, since: int) -> tuple[str, ...]:
    """Make the aliases follow the log, whatever became of the run; what was otherwise, in sentences.

    Args:
        log, tracking: what is true, and what shows it.
        model: registered model name.
        since: as for `reconcile_after`.

    Raises:
        TrackingError: MLflow does not know the champion, or refuses.
    """
    expected = _expected(tracking, model, tracking.list_versions(model), log.history(model), since)
    return tuple(_moved(tracking.reconcile(model, log), expected))


def _expected(
    tracking: Tracking,
    model: str,
    versions: Sequence[RegisteredVersion],
    entries: Sequence[Promotion],
    since: int,
) -> list[dict[str, str]]:
    """What the aliases may say: by every state of the log since the run began."""
    meanwhile = range(min(since, len(entries)), len(entries) + 1)
    return [tracking.aliases_by_log(model, versions, entries[:number]) for number in meanwhile]


def _restored(
    store: Store, tracking: Tracking, model: str, wanted: Sequence[DraftReference], registered_at: str | None
) -> list[str]:
    """Register again those of `wanted` that this MLflow has lost; return what was done, in sentences."""
    there = {version.tags.get(keys.DRAFT_DIGEST) for version in tracking.list_versions(model)}
    lost = {draft.digest: draft for draft in wanted if draft.digest not in there}
    if not lost:
        return []
    known = f" It was registered at {registered_at}." if registered_at not in (None, tracking.shown_uri) else ""
    if not there and registered_at != tracking.shown_uri and model not in tracking.list_models():
        try:
            tracking.version_of(model, wanted[0])
        except TrackingError as error:
            error.what += known
            raise
    again = register_again(store, tracking, model, only=lost)
    where = f"in the MLflow at {tracking.shown_uri}"
    return [
        *(
            f"{model}: version {lost[digest].version or '?'} ({digest[:12]}) was missing {where}; "
            f"registered again as version {number}.{known}"
            for digest, number in again.made.items()
        ),
        *again.damaged.values(),
    ]


def _moved(done: Reconciled, expected: Sequence[Mapping[str, str]]) -> list[str]:
    """What MLflow said otherwise than the log, in sentences.

    Args:
        done: what was found, and done.
        expected: what the aliases may have said, from the beginning of the run until now.
    """
    notes = []
    for alias, (was, now) in done.aliases.items():
        if was == now or was in [one.get(alias) for one in expected]:
            continue
        if was is None and alias != keys.CHAMPION:
            continue  # earlier versions of deepspec set no other
        pointed = f"version {was}" if was else "no version"
        said = f"{done.model}: MLflow's alias {alias} pointed to {pointed}"
        rightly = (
            f"version {now} is the {alias}, and it points there again" if now else "there is none, and it is removed"
        )
        notes.append(f"{said}; by the promotion log {rightly}.")
    return notes


def say_verdicts(store: Store, tracking: Tracking, model: str) -> None:
    """Make every version of a model say what the gates said of it last."""
    newest = {
        verdict.challenger: verdict
        for verdict in (*promoted_under(PromotionLog(store.backend).history(model)), *reversed(verdicts(store)))
        if verdict.challenger
    }
    for version in tracking.list_versions(model):
        verdict = newest.get(version.tags.get(keys.DRAFT_DIGEST, ""))
        if verdict is not None:
            tracking.say_verdict(version, verdict)


def promoted_under(entries: Sequence[Promotion]) -> list[Verdict]:
    """The verdicts in a promotion log, oldest first: a store that was filled from another has no others."""
    return [entry.verdict for entry in entries if entry.verdict is not None]


@dataclass(frozen=True)
class Again:
    """What was registered again, and what could not be.

    Attributes:
        made: digest of a draft -> the number of its new version.
        damaged: digest of a draft -> what the store lacks of it, in a sentence.
    """

    made: Mapping[str, str]
    damaged: Mapping[str, str]


def register_again(store: Store, tracking: Tracking, model: str, *, only: Collection[str] | None = None) -> Again:
    """Register every version that the store knows and MLflow does not: a database restored from before them, or lost.

    In the order in which they were registered first, so that they get the numbers they had where MLflow has lost none
    but the last ones. What is damaged in the store is left out.

    Args:
        store, tracking: that know versions, and that may not.
        model: whose versions.
        only: digests of the drafts that are wanted; None: all.
    """
    known = {version.tags.get(keys.DRAFT_DIGEST) for version in tracking.list_versions(model)}
    run_id = None
    made: dict[str, str] = {}
    damaged: dict[str, str] = {}
    for digest, number, read in _registered(store, model):
        if digest in known or (only is not None and digest not in only):
            continue
        try:
            again = read()
        except (ArtifactMissing, ArtifactDamaged) as error:
            damaged[digest] = f"{model}: version {number} cannot be registered again: {error}"
            continue
        run_id = run_id or tracking.start_pipeline_run(f"reconcile {model}", {})
        # A draft that was measured again has several registrations: the last one's tags and card stay.
        version = tracking.register(
            again.folder, model, run_id, again.tags, draft=again.draft, card=again.card, notes=again.notes
        )
        if again.measures:
            tracking.measured(version, run_id, again.measures)
        made |= {digest: version.version} if version.created else {}
    if run_id is not None:
        tracking.finish(run_id)
    return Again(made, {digest: why for digest, why in damaged.items() if digest not in made})


def _registered(store: Store, model: str) -> "Iterator[tuple[str, str, Callable[[], _Registration]]]":
    """Digest and first number of what the store knows as registered, and how it is read: what was made here first."""
    for registration in sorted(registrations(store, model), key=registered_as):
        number = str(registration.json("registration.json")["version"])
        read = partial(_Registration.read, store, registration, model)
        yield registration.manifest.parents["draft"].digest, number, read
    for record in version_records(store.backend, model):
        yield record.draft.digest, record.draft.version or "?", partial(_Registration.copied, store, record)


def registrations(store: Store, model: str) -> Iterator[Artifact]:
    """Every registration of a model's drafts that was made in this store."""
    for registration in store.artifacts("register"):
        if registration.json("registration.json")["name"] == model:
            yield registration


@dataclass(frozen=True)
class _Registration:
    """What a draft is registered with, read from the store; all of it is checked."""

    folder: Path
    tags: Mapping[str, str]
    draft: DraftReference
    card: str | None
    notes: Mapping[str, str]
    measures: Mapping[str, float]

    @classmethod
    def read(cls, store: Store, registration: Artifact, model: str) -> "_Registration":
        """Read it.

        Raises:
            ArtifactMissing, ArtifactDamaged: something that it was made from is not whole.
        """
        parents = registration.manifest.parents
        ancestors = nearest(lineage(registration, store.get)[1:])
        draft = ancestors[parents["draft"].kind]
        evaluation = evaluation_in(ancestors[parents["evaluation"].kind])
        artifacts = {kind: (item.key, item.digest) for kind, item in ancestors.items()}
        tags = tags_of(registration, model, artifacts, evaluation)
        notes = about(registration)
        card = notes.pop(CARD_FILE, None)
        reference = DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest)
        return cls(draft.directory() / "draft", tags, reference, card, notes, keys.tau_metrics(evaluation))

    @classmethod
    def copied(cls, store: Store, record: VersionRecord) -> "_Registration":
        """Read what was copied from the store in which the draft was made.

        Raises:
            ArtifactMissing, ArtifactDamaged: the draft is not whole.
        """
        draft = store.get(record.draft.kind, record.draft.key)
        reference = DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest)
        measured = None if record.evaluation is None else Evaluation.from_json(record.evaluation, where=record.model)
        measures = {} if measured is None else keys.tau_metrics(measured)
        return cls(draft.directory() / "draft", record.tags, reference, record.card, record.notes, measures)


def tags_of(
    registration: Artifact | None,
    model: str,
    artifacts: Mapping[str, tuple[str, str]],
    evaluation: Evaluation | None,
) -> dict[str, str]:
    """The tags of a version that is registered again.

    Args:
        registration: its first one; None: there is none.
        model: registered model name.
        artifacts: stage -> (key, digest) of all that it was made from or measured by.
        evaluation: of the draft; None: not known.
    """
    code = registration.manifest.code if registration is not None else {}
    sections = registration.manifest.ingredients["sections"] if registration is not None else {}
    tags = keys.version_tags(
        recipe=str(sections.get("name", model)),
        code_version=str(code.get("commit") or code.get("deepspec", "")),
        run_id="",
        artifacts=artifacts,
        evaluation=evaluation,
    )
    del tags[keys.RUN_ID]  # the store does not know it
    return tags


def evaluation_in(artifact: Artifact) -> Evaluation:
    """The evaluation in an artifact of the stage `evaluate`."""
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


def registered_as(registration: Artifact) -> tuple[str, int, str]:
    """Sorts registrations by model, version and time."""
    record = registration.json("registration.json")
    return str(record["name"]), int(record["version"]), registration.manifest.created_at


def registered_at(registration: Artifact) -> str | None:
    """The address of the MLflow that a draft was registered at; None: an earlier deepspec left it out."""
    if all(entry.path != f"{ABOUT}{REGISTRY_FILE}" for entry in registration.manifest.files):
        return None
    return str(registration.json(f"{ABOUT}{REGISTRY_FILE}")["uri"])
