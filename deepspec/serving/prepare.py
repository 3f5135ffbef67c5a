"""A draft as an engine loads it: exported next to the files that were pulled, and checked before anything starts."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.drafts.files.config_json import CONFIG_FILE, read_draft_config
from deepspec.errors import BadArgument
from deepspec.export import FORMATS
from deepspec.export.described import Described
from deepspec.export.matrix import Layout, loaded
from deepspec.export.side_files import CALIBRATION_FILE
from deepspec.export.whole import write_whole
from deepspec.foreign_json import parse

ENGINES = ("vllm", "sglang")
"""The formats that are an engine's own, and so servers that can be started."""

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Prepared:
    """A draft directory that an engine loads.

    Attributes:
        engine: whose format it is in.
        directory: where it lies.
        method: what the engine calls the algorithm.
        num_draft_tokens: tokens proposed per round.
        block_size: positions of a block, where the engine wants them; None: it has no blocks.
        temperatures: the file with the temperatures of its confidences; None: it has none.
    """

    engine: str
    directory: Path
    method: str
    num_draft_tokens: int
    block_size: int | None = None
    temperatures: Path | None = None


def known_engine(name: str) -> str:
    """The engine's name.

    Raises:
        BadArgument: no server of it can be started.
    """
    if name not in ENGINES:
        raise BadArgument(f"{name!r} is no engine.", where="--engine", remedy=f"Known: {', '.join(ENGINES)}.")
    return name


def prepared(draft: Path, engine: str, out: Path, target: str, beside: Mapping[str, str]) -> Prepared:
    """The draft in the engine's format; what was written before and is still fine is used again.

    Args:
        draft: a draft directory, as we write it or in a format of ours.
        engine: one of ENGINES.
        out: where the export goes; nothing else may be there.
        target: what the target is called.
        beside: further files of the export, name -> text.

    Raises:
        IncompatibleDraft: the engine loads no such draft, with the reason and what works; or it has a flaw.
    """
    form, described = FORMATS[engine], Described.read(draft)
    cell = loaded(engine, described.spec.family, described.row, f"{draft.name}/{CONFIG_FILE}")
    if not out.is_dir() or form.check(out):
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(form, draft, out, target, beside)
    written = read_draft_config(out)
    blocks = cell.layout is not Layout.UNROLLED
    return Prepared(
        engine=engine,
        directory=out,
        method=cell.method,
        num_draft_tokens=described.num_draft_tokens,
        block_size=int(written["block_size"]) if blocks else None,
        temperatures=_temperatures(out, written),
    )


def has_confidences(draft: Path) -> bool:
    """Whether a draft directory says that it has a head whose confidences are calibrated."""
    return bool(read_draft_config(draft).get("enable_confidence_head"))


def _temperatures(directory: Path, written: Mapping[str, Any]) -> Path | None:
    file = directory / CALIBRATION_FILE
    if not written.get("enable_confidence_head") or not file.is_file():
        return None
    calibration = parse(file.read_bytes(), _MOST_BYTES)
    return file if isinstance(calibration, dict) and calibration.get("applicable") is not False else None
