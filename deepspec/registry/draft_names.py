"""Which draft a person means: a directory, an artifact, a registered version, or the champion."""

from pathlib import Path

from deepspec.errors import ArtifactUnknown, RecipeError
from deepspec.registry.keys import CHAMPION, DRAFT_KEY, DRAFT_KIND
from deepspec.registry.open import tracking_of
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, Store

_REMEDY = f"Name a directory, train/<key>, models:/<name>/<version>, models:/<name>@{CHAMPION} or {CHAMPION}."


def draft_of(name: str, home: Path, store: Store, *, model: str | None, where: str) -> Artifact | Path:
    """The artifact, or the directory outside the store.

    Args:
        name: what the person wrote.
        home, store: where versions and artifacts are.
        model: whose champion `champion` means; None: no model's.
        where: what the person wrote it in, for errors.

    Raises:
        RecipeError: there is no such draft.
    """
    if name == CHAMPION and model is not None:
        name = f"models:/{model}@{CHAMPION}"
    if name.startswith("models:/"):
        return _registered(name.removeprefix("models:/"), home, store, where)
    if Path(name).is_dir():
        return Path(name)
    try:
        return store.resolve(name)
    except ArtifactUnknown as error:
        raise RecipeError(
            f"{name!r} is no directory, and no draft in the store: {error.what}", where=where, remedy=_REMEDY
        ) from error


def draft_directory(found: Artifact | Path) -> Path:
    """Where the draft's files are; an artifact's are checked."""
    folder = found.directory() if isinstance(found, Artifact) else found
    return folder / "draft" if (folder / "draft").is_dir() else folder


def _registered(name: str, home: Path, store: Store, where: str) -> Artifact:
    if name.endswith(f"@{CHAMPION}"):
        model = name.removesuffix(f"@{CHAMPION}")
        champion = PromotionLog(store.backend).champion(model)
        if champion is None:
            raise RecipeError(
                f"{model} has no {CHAMPION}.", where=where, remedy="`deepspec models ls` lists what there is."
            )
        return store.get(champion.kind, champion.key)
    model, _, number = name.partition("/")
    for version in tracking_of(home).list_versions(model):
        if version.version == number:
            return store.get(version.tags[DRAFT_KIND], version.tags[DRAFT_KEY])
    raise RecipeError(
        f"there is no registered version models:/{name}.", where=where, remedy="`deepspec models ls` lists them."
    )
