"""Which draft a person means: a registered version, the champion, an artifact, or a directory.

Every command and recipe field that takes a draft reads its name here, and nowhere else.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import ArtifactUnknown, RecipeError
from deepspec.registry.keys import CHAMPION, DRAFT_KEY, DRAFT_KIND, PREVIOUS
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.mlflow.versions import RegisteredVersion
from deepspec.registry.open import tracking_of
from deepspec.registry.promotions import PromotionLog, previous_of
from deepspec.store import Artifact, Store

MODELS = "models:/"
FORMS = f"{MODELS}<name>/<version>, {MODELS}<name>@{CHAMPION}, train/<key>, import/<key> or a directory"
_REMEDY = f"Name {FORMS}."
_REGISTERED = re.compile(r"(?P<model>[^/@]+)(?:/(?P<version>[^/@]+)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True)
class RegisteredName:
    """`models:/NAME/VERSION` or `models:/NAME@ALIAS`, taken apart; exactly one of the last two is there."""

    model: str
    version: str | None
    alias: str | None

    def __str__(self) -> str:
        return f"{MODELS}{self.model}" + (f"/{self.version}" if self.version else f"@{self.alias}")


def registered_name(name: str, where: str) -> RegisteredName | None:
    """A name in the registry; None if it is not one.

    Raises:
        RecipeError: it begins as one and does not go on so.
    """
    if not name.startswith(MODELS):
        return None
    parts = _REGISTERED.fullmatch(name.removeprefix(MODELS))
    if parts is None:
        raise RecipeError(f"{name!r} names neither a version nor an alias.", where=where, remedy=_REMEDY)
    return RegisteredName(**parts.groupdict())


def draft_of(name: str, home: Path, store: Store, *, model: str | None, where: str) -> Artifact | Path:
    """The artifact, or the directory outside the store.

    Args:
        name: what the person wrote.
        home, store: where versions and artifacts are.
        model: whose champion `champion` means; None: no model's.
        where: what the person wrote it in, for errors.

    Raises:
        RecipeError: there is no such draft.
        TrackingError: the store has it, and this MLflow does not.
    """
    if name == CHAMPION and model is not None:
        name = f"{MODELS}{model}@{CHAMPION}"
    registered = registered_name(name, where)
    if registered is not None:
        return _artifact_of(registered, home, store, where)
    if Path(name).is_dir():
        return Path(name)
    try:
        return store.resolve(name)
    except ArtifactUnknown as error:
        raise RecipeError(
            f"{name!r} is no directory, and no draft in the store: {error.what}", where=where, remedy=_REMEDY
        ) from error


def artifact_of(name: str, home: Path, store: Store, *, where: str) -> Artifact:
    """Any artifact: by kind and key, by key alone, or by a name in the registry, which means the version's draft.

    Raises:
        ArtifactUnknown: none or several match.
        RecipeError, TrackingError: as `draft_of`.
    """
    registered = registered_name(name, where)
    return store.resolve(name) if registered is None else _artifact_of(registered, home, store, where)


def registered_version(name: str, home: Path, store: Store, where: str) -> RegisteredVersion:
    """The registered version that a name means; a draft by its key or directory must be registered.

    Raises:
        RecipeError: there is no such draft, or it is no version, or a version of several models.
        TrackingError: the store has it, and this MLflow does not.
    """
    tracking = tracking_of(home)
    registered = registered_name(name, where)
    if registered is not None:
        return version_of(registered, tracking, PromotionLog(store.backend), where)
    draft = draft_of(name, home, store, model=None, where=where)
    versions = [version for model in tracking.list_models() for version in tracking.list_versions(model)]
    found = [
        version
        for version in versions
        if isinstance(draft, Artifact)
        and (version.tags.get(DRAFT_KIND), version.tags.get(DRAFT_KEY)) == (draft.kind, draft.key)
    ]
    if len(found) != 1:
        several = ", ".join(version.uri for version in found)
        raise RecipeError(
            f"{name} is {f'registered as {several}' if found else 'no registered version'}.",
            where=where,
            remedy=f"Name {MODELS}<name>/<version>; `deepspec models ls` lists them.",
        )
    return found[0]


def version_of(name: RegisteredName, tracking: Tracking, log: PromotionLog, where: str) -> RegisteredVersion:
    """The version that a name in the registry means; who is and was champion is the promotion log's word.

    Raises:
        RecipeError: there is none.
        TrackingError: the promotion log knows it, and this MLflow does not.
    """
    entries = log.history(name.model)
    drafts = [entry.champion for entry in entries]
    if name.alias in (CHAMPION, PREVIOUS):
        draft = previous_of(entries) if name.alias == PREVIOUS else drafts[-1] if drafts else None
        if draft is None:
            raise RecipeError(
                f"{name.model} has no {name.alias}.", where=where, remedy="`deepspec models ls` lists what there is."
            )
        return tracking.version_of(name.model, draft)
    for version in tracking.list_versions(name.model):
        if version.version == name.version or name.alias in version.aliases:
            return version
    for draft in drafts:
        if draft.version == name.version:
            return tracking.version_of(name.model, draft)
    raise RecipeError(f"there is no {name} in MLflow.", where=where, remedy="`deepspec models ls` lists what there is.")


def _artifact_of(name: RegisteredName, home: Path, store: Store, where: str) -> Artifact:
    version = version_of(name, tracking_of(home), PromotionLog(store.backend), where)
    return store.get(version.tags[DRAFT_KIND], version.tags[DRAFT_KEY])


def draft_directory(found: Artifact | Path) -> Path:
    """Where the draft's files are; an artifact's are checked."""
    folder = found.directory() if isinstance(found, Artifact) else found
    return folder / "draft" if (folder / "draft").is_dir() else folder
