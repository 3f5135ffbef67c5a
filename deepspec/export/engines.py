"""Whether an engine reads a directory: in its own format, or in another that it reads, too."""

from pathlib import Path

from deepspec.drafts.files.config_json import read_draft_config
from deepspec.drafts.layouts import read_layout
from deepspec.drafts.layouts.speculators import KIND
from deepspec.errors import DeepspecError
from deepspec.export import FORMATS
from deepspec.export.described import Described
from deepspec.export.matrix import DEEPSPEC, HEADLESS, READS, SPECULATORS, cell


def check_for(engine: str, directory: Path) -> tuple[str, list[str]]:
    """What is wrong with a directory for an engine.

    Args:
        engine: one of `READS`.
        directory: an exported draft.

    Returns:
        The format that the engine reads it in, and no flaws; or the format that it is most likely meant to be in, and
        its flaws there.
    """
    found: dict[str, list[str]] = {}
    for name in READS[engine]:
        found[name] = FORMATS[name].check(directory)
        if not found[name] and name != engine:
            found[name] = _engine_flaws(engine, directory, is_public=name == DEEPSPEC)
        if not found[name]:
            return name, []
    likely = _likely(engine, directory)
    return likely, found[likely]


def _engine_flaws(engine: str, directory: Path, *, is_public: bool) -> list[str]:
    """What an engine lacks for a directory that is fine in a format that is not its own.

    Of the public layout it reads what it has the very architecture of, with a head where it needs one.
    """
    written = read_draft_config(directory)
    described = Described.read(directory, read_layout(written, directory)[0])
    own = cell(engine, described.spec.family, described.row)
    if own.architecture is None:
        return [f"{own.reason} ({described.row})."]
    if is_public and (described.row in HEADLESS or written.get("architectures") != [own.architecture]):
        return [f"field architectures is {written.get('architectures')}, not {[own.architecture]}."]
    return []


def _likely(engine: str, directory: Path) -> str:
    try:
        is_speculators = KIND in read_draft_config(directory)
    except DeepspecError:
        return engine
    return SPECULATORS if is_speculators and SPECULATORS in READS[engine] else engine
