"""What the command `export` does."""

from pathlib import Path

from deepspec.errors import RecipeError
from deepspec.store import Store
from flows._drafts import draft_directory, draft_of


def write(name: str, format_name: str, out: Path, target_name: str, *, home: Path, store: Store) -> None:
    """Write the draft that `name` means to the new directory `out`.

    Raises:
        RecipeError: no such draft or format, or `out` is there already.
        IncompatibleDraft: the format cannot hold such a draft.
    """
    from deepspec.export import FORMATS

    _known(format_name)
    if out.exists():
        raise RecipeError("it is there already.", where=str(out), remedy="Name a new directory.")
    draft = draft_directory(draft_of(name, home, store, model=None, where="DRAFT"))
    FORMATS[format_name].write(draft, out, target_name)


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
