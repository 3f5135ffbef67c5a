"""Reads a JSON object that came with a model, carefully: whatever the file holds, the answer is an object or a refusal.

Every side file of a model directory (config, generation config, index, tokenizer, settings) goes through here, so that
a truncated, doubled, oversized or never downloaded file is one clear sentence, wherever it is met first.
"""

import json
from pathlib import Path
from typing import Any

from deepspec.errors import UnsupportedTarget

COPY_AGAIN = "Copy the directory again, all of it."
FETCH = "Fetch the file itself: `git lfs pull` in that directory, or download it again."
_POINTER = b"version https://git-lfs"
_MOST_BYTES = 256 << 20
"""The largest known tokenizer.json has 33 MB."""


def read_object(file: Path, *, large: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: the file.
        large: it has a whole vocabulary in it: repeated names are not looked for.

    Raises:
        UnsupportedTarget: it is not there, not downloaded, unreadable, too large, no JSON object, or an object in it
            has the same field twice.
    """
    where = str(file)
    try:
        size = file.stat().st_size
        if size > _MOST_BYTES:
            raise UnsupportedTarget(f"has {size:,} bytes: no such file is that large.", where=where, remedy=COPY_AGAIN)
        data = file.read_bytes()
        refuse_pointer(data, where)
        value = json.loads(data.decode("utf-8"), object_pairs_hook=None if large else _unique)
    except FileNotFoundError as error:
        raise UnsupportedTarget(
            f"there is no {file.name}.", where=str(file.parent), remedy="Name a directory in Hugging Face's layout."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedTarget(f"cannot be read as JSON: {error}.", where=where, remedy=COPY_AGAIN) from error
    if not isinstance(value, dict):
        raise UnsupportedTarget("is not a JSON object.", where=where, remedy=COPY_AGAIN)
    return value


def refuse_pointer(start: bytes, where: str) -> None:
    """Refuse a file of which only Git LFS's pointer is there.

    Args:
        start: the file's first bytes, 32 or more.
        where: the file, for the message.

    Raises:
        UnsupportedTarget: it is such a pointer.
    """
    if start.startswith(_POINTER):
        raise UnsupportedTarget("is a Git LFS pointer, not the file itself.", where=where, remedy=FETCH)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)} is there twice")
    return found
