"""A draft, as a person names it, in a format that others read."""

from collections.abc import Callable
from pathlib import Path

from deepspec.errors import RecipeError
from deepspec.registry.draft_names import draft_directory, draft_of
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.reconciling import about
from deepspec.registry.version_record import version_record
from deepspec.store import Artifact, Store


def write(
    name: str,
    format_name: str,
    out: Path,
    target_name: str,
    *,
    home: Path,
    store: Store,
    force: bool = False,
    add: Callable[[Path, Artifact | Path], None] = lambda _part, _draft: None,
) -> Path:
    """Write the draft that `name` means to the new directory `out`, with its card and calibration if it is registered.

    The directory appears whole, and only if its own check takes it for fine.

    Args:
        name: as `draft_names` reads it.
        format_name: one of the formats.
        out: a new directory.
        target_name: what the target is called.
        home, store: where versions and artifacts are.
        force: write what the check refuses, too: beside `out`, with UNCHECKED in its name.
        add: (where it is being written, the draft) -> None: writes further files, which are checked with the others.

    Returns:
        Where it was written.

    Raises:
        RecipeError: no such draft or format, or `out` is there already.
        IncompatibleDraft: the format cannot hold such a draft, or what was written has a flaw.
        ArtifactDamaged: a file of it is not the one that was published; names it.
    """
    from deepspec.export import FORMATS
    from deepspec.export.whole import unchecked, write_whole

    _known(format_name)
    for place in (out, unchecked(out)) if force else (out,):
        if place.exists():
            raise RecipeError("the directory exists already.", where=str(place), remedy="Name a new directory.")
    found = draft_of(name, home, store, model=None, where="DRAFT")
    if isinstance(found, Artifact):
        found.refuse_damaged()
    beside = about_draft(found.digest, store) if isinstance(found, Artifact) else {}
    return write_whole(
        FORMATS[format_name],
        draft_directory(found),
        out,
        target_name,
        beside,
        force=force,
        add=lambda part: add(part, found),
    )


def about_draft(digest: str, store: Store) -> dict[str, str]:
    """Card and calibration of a draft's last registration; empty if it was never registered.

    In a store that was filled from another they are in the records of versions.
    """
    registrations = store.newest_first("register")
    its = (made for made in registrations if made.manifest.parents["draft"].digest == digest)
    last = next(its, None)
    if last is not None:
        return about(last)
    records = (version_record(store.backend, model, digest) for model in PromotionLog(store.backend).models())
    return next((record.about() for record in records if record is not None), {})


def check(format_name: str, directory: Path) -> list[str]:
    """What is wrong with a directory in a format; empty if nothing is."""
    from deepspec.export import FORMATS

    _known(format_name)
    return FORMATS[format_name].check(directory)


def check_for(engine: str, directory: Path) -> tuple[str, list[str]]:
    """The format that an engine reads a directory in, and what is wrong with it; see `deepspec.export.engines`.

    Raises:
        RecipeError: no such engine.
    """
    from deepspec.export import engines

    _known(engine, "engine")
    return engines.check_for(engine, directory)


def _known(name: str, what: str = "format") -> None:
    from deepspec.export import FORMATS

    if name not in FORMATS:
        raise RecipeError(f"{name!r} is no {what}.", where=f"--{what}", remedy=f"Known: {', '.join(sorted(FORMATS))}.")
