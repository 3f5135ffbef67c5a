"""A draft, as a person names it, in a format that others read."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from deepspec.errors import IncompatibleDraft, RecipeError
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

    _known(format_name)
    unchecked = out.with_name(f"{out.name}-UNCHECKED")
    for place in (out, unchecked) if force else (out,):
        if place.exists():
            raise RecipeError("the directory exists already.", where=str(place), remedy="Name a new directory.")
    found = draft_of(name, home, store, model=None, where="DRAFT")
    if isinstance(found, Artifact):
        found.refuse_damaged()
    draft, form = draft_directory(found), FORMATS[format_name]
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        form.write(draft, part, target_name)
        for file, text in _about(found, store).items():
            (part / file).write_text(text, encoding="utf-8", newline="\n")
        add(part, found)
        flaws = form.check(part)
        if flaws and not force:
            more = f" ({len(flaws) - 1} more)" if len(flaws) > 1 else ""
            raise IncompatibleDraft(
                f"as {format_name} it would have a flaw: {flaws[0].rstrip('.')}{more}.",
                where=str(out),
                remedy=f"Nothing was written; --force writes {unchecked.name}.",
            )
        part.rename(unchecked if flaws else out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return unchecked if flaws else out


def _about(found: Artifact | Path, store: Store) -> dict[str, str]:
    """Card and calibration of a draft's last registration; empty if it was never registered or is outside the store.

    In a store that was filled from another they are in the records of versions.
    """
    if not isinstance(found, Artifact):
        return {}
    registrations = store.newest_first("register")
    its = (made for made in registrations if made.manifest.parents["draft"].digest == found.digest)
    last = next(its, None)
    if last is not None:
        return about(last)
    records = (version_record(store.backend, model, found.digest) for model in PromotionLog(store.backend).models())
    return next((record.about() for record in records if record is not None), {})


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
