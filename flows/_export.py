"""What the command `export` does."""

from pathlib import Path

from deepspec.errors import RecipeError
from deepspec.registry.card import CARD_FILE
from deepspec.store import Artifact, Store
from flows._drafts import draft_directory, draft_of
from flows._models import card_of


def write(name: str, format_name: str, out: Path, target_name: str, *, home: Path, store: Store) -> None:
    """Write the draft that `name` means to the new directory `out`, with its card if it is registered.

    Raises:
        RecipeError: no such draft or format, or `out` is there already.
        IncompatibleDraft: the format cannot hold such a draft.
    """
    from deepspec.export import FORMATS

    _known(format_name)
    if out.exists():
        raise RecipeError("it is there already.", where=str(out), remedy="Name a new directory.")
    found = draft_of(name, home, store, model=None, where="DRAFT")
    draft = draft_directory(found)
    FORMATS[format_name].write(draft, out, target_name)
    card = _card(found, store)
    if card is not None:
        (out / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")


def _card(found: Artifact | Path, store: Store) -> str | None:
    """What was last said of a draft when it was registered; None of one that never was, or lies outside the store."""
    if not isinstance(found, Artifact):
        return None
    registrations = [
        registration
        for registration in store.artifacts("register")
        if registration.manifest.parents["draft"].digest == found.digest
    ]
    last = max(registrations, key=lambda registration: registration.manifest.created_at, default=None)
    return card_of(last) if last is not None else None


def check(format_name: str, directory: Path) -> list[str]:
    """What is wrong with a directory in a format; empty if nothing is."""
    from deepspec.export import FORMATS

    _known(format_name)
    return FORMATS[format_name].check(directory)


def _known(format_name: str) -> None:
    from deepspec.export import FORMATS

    if format_name not in FORMATS:
        raise RecipeError(
            f"{format_name!r} is no format.", where="--format", remedy=f"Known: {', '.join(sorted(FORMATS))}."
        )
