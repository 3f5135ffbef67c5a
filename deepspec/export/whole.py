"""Writing an exported directory: it appears whole, and only if its own check takes it for fine."""

import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from deepspec.errors import IncompatibleDraft
from deepspec.export.format import Format


def write_whole(
    form: Format,
    draft: Path,
    out: Path,
    target_name: str,
    beside: Mapping[str, str],
    *,
    force: bool = False,
    add: Callable[[Path], None] = lambda _part: None,
) -> Path:
    """Write a draft to the new directory `out`.

    Args:
        form: the format.
        draft: a draft directory.
        out: a new directory.
        target_name: what the target is called.
        beside: further files, name -> text.
        force: write what the check refuses, too: beside `out`, with UNCHECKED in its name.
        add: (where it is being written) -> None: writes further files, which are checked with the others.

    Returns:
        Where it was written.

    Raises:
        IncompatibleDraft: the format cannot hold such a draft, or what was written has a flaw.
    """
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        form.write(draft, part, target_name)
        for file, text in beside.items():
            (part / file).write_text(text, encoding="utf-8", newline="\n")
        add(part)
        flaws = form.check(part)
        if flaws and not force:
            more = f" ({len(flaws) - 1} more)" if len(flaws) > 1 else ""
            raise IncompatibleDraft(
                f"as {form.name} it would have a flaw: {flaws[0].rstrip('.')}{more}.",
                where=str(out),
                remedy=f"Nothing was written; `deepspec export --force` writes {unchecked(out).name}.",
            )
        return part.rename(unchecked(out) if flaws else out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def unchecked(out: Path) -> Path:
    """Where a directory with flaws is written."""
    return out.with_name(f"{out.name}-UNCHECKED")
