"""Which draft a consumer means, by the store's promotion log; MLflow is asked only for what no log knows."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import BadArgument
from deepspec.registry.draft_names import RegisteredName, draft_of, registered_name, registered_version
from deepspec.registry.entries import DraftReference
from deepspec.registry.keys import CHAMPION, DRAFT_DIGEST, DRAFT_KEY, DRAFT_KIND, PREVIOUS
from deepspec.registry.promotions import PromotionLog, previous_of
from deepspec.store import Artifact, Store

LOGGED = (CHAMPION, PREVIOUS)
"""Aliases that the promotion log itself answers, and that can be followed."""

WHERE = "DRAFT"


@dataclass(frozen=True)
class Draft:
    """A draft in the store.

    Attributes:
        model, version: as it is registered; empty: not by this name.
        kind, key: the artifact's name.
        digest: its content's, to which the promotion log binds the name.
    """

    model: str
    version: str
    kind: str
    key: str
    digest: str


def appointed(name: RegisteredName, store: Store) -> Draft:
    """The draft that a name with an alias of LOGGED means now.

    Costs a listing and a read for the champion; the one before takes a read for every entry.

    Raises:
        BadArgument: the model never had one.
        PromotionLogDamaged: the log cannot be read.
    """
    log = PromotionLog(store.backend)
    found = previous_of(log.history(name.model)) if name.alias == PREVIOUS else log.champion(name.model)
    if found is None:
        raise BadArgument(
            f"{name.model} has no {name.alias}.",
            where=f"{WHERE} {name}",
            remedy=f"Promote a version first; the store is {store.backend.location}.",
        )
    return _draft(name.model, found)


def draft_named(name: str, home: Path, store: Store) -> Draft:
    """The draft that a name means, in any form that `draft_names` reads but a directory.

    Raises:
        BadArgument: it is a directory, or there is no such champion.
        RecipeError, TrackingError: as `draft_names.draft_of`.
    """
    registered = registered_name(name, WHERE)
    if registered is not None:
        if registered.alias in LOGGED:
            return appointed(registered, store)
        history = PromotionLog(store.backend).history(registered.model)
        past = (_draft(registered.model, entry.champion) for entry in history)
        known = next((draft for draft in past if draft.version == registered.version), None)
        if known is not None:
            return known
        version = registered_version(name, home, store, WHERE)
        tags = version.tags
        return Draft(version.name, version.version, tags[DRAFT_KIND], tags[DRAFT_KEY], tags[DRAFT_DIGEST])
    found = draft_of(name, home, store, model=None, where=WHERE)
    if not isinstance(found, Artifact):
        raise BadArgument("this is a directory already.", where=name, remedy="Name a draft in the store.")
    return Draft("", "", found.kind, found.key, found.digest)


def _draft(model: str, reference: DraftReference) -> Draft:
    return Draft(model, reference.version or "", reference.kind, reference.key, reference.digest)
