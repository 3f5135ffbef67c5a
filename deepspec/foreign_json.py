"""JSON from others, read within bounds (`parse`, `read_object`), and for others, so that every reader takes it.

`json.loads` alone raises RecursionError for deep nesting, and returns what fails later: values nested so deeply that
they cannot be written or compared, and texts with half a surrogate pair, which no file and no tokenizer takes.

Every side file of a model directory (config, generation config, index, tokenizer, settings) goes through `read_object`,
so that a truncated, doubled, oversized or never downloaded file is one clear sentence, wherever it is met first.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from deepspec.errors import UnsupportedTarget

MAX_DEPTH = 64
"""Lists and objects inside one another; what we read from others has less than ten."""
COPY_AGAIN = "Copy the directory again, all of it."
FETCH = "Fetch the file itself: `git lfs pull` in that directory, or download it again."
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_POINTER = b"version https://git-lfs"
_MOST_BYTES = 256 << 20
"""The largest known tokenizer.json has 33 MB."""


def parse(data: bytes, max_bytes: int, *, unique: bool = False) -> Any:
    """The value that a JSON text stands for.

    Args:
        data: in one of JSON's encodings.
        max_bytes: most of them.
        unique: an object that has a field twice is refused; otherwise its last one counts.

    Raises:
        ValueError: it is longer, nested deeper than `MAX_DEPTH`, no JSON, or no Unicode.
    """
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes:,} bytes of JSON")
    try:
        value = json.loads(data, object_pairs_hook=_unique if unique else None)
        deep = _is_deep(data, value)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if _HALF_PAIR.search(data):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def read_object(file: Path, *, large: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: the file.
        large: it has a whole vocabulary in it: repeated names are not looked for.

    Raises:
        UnsupportedTarget: it is not there, not downloaded, unreadable, too large, nested too deeply, no JSON
            object, or an object in it has the same field twice.
    """
    where = str(file)
    try:
        size = file.stat().st_size
        if size > _MOST_BYTES:
            raise UnsupportedTarget(f"has {size:,} bytes: no such file is that large.", where=where, remedy=COPY_AGAIN)
        data = file.read_bytes()
        refuse_pointer(data, where)
        data.decode()  # `parse` takes UTF-16, too, which nobody else reads in these files
        value = parse(data, _MOST_BYTES, unique=not large)
    except FileNotFoundError as error:
        raise UnsupportedTarget(
            f"there is no {file.name}.", where=str(file.parent), remedy="Name a directory in Hugging Face's layout."
        ) from error
    except (OSError, ValueError) as error:
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


def strict_text(value: Any, *, indent: int) -> str:
    """A value as JSON for others: names sorted, and nothing that readers with typed lists or no NaN refuse.

    Raises:
        ValueError: a number is not finite, or a null stands among numbers; naming the place.
    """
    found = loose_places(value)
    if found:
        raise ValueError(found[0])
    return json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def loose_places(value: Any, place: str = "") -> list[str]:
    """Where a JSON value has what strict or typed readers refuse: numbers that are not finite, null among numbers."""
    if isinstance(value, dict):
        return [found for key, one in value.items() for found in loose_places(one, f"{place}.{key}".lstrip("."))]
    if isinstance(value, list | tuple):
        found = [found for index, one in enumerate(value) for found in loose_places(one, f"{place}[{index}]")]
        if None in value and all(one is None or isinstance(one, int | float) for one in value):
            found.append(f"{place}[{list(value).index(None)}] is null in a list of numbers")
        return found
    return [f"{place} is {value}"] if isinstance(value, float) and not math.isfinite(value) else []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)} is there twice")
    return found


def _is_deep(data: bytes, value: Any) -> bool:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
