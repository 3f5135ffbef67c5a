"""JSON that others wrote, read within bounds: one `ValueError` for everything that is wrong with it.

`json.loads` alone raises RecursionError for deep nesting, and returns what fails later: values nested so deeply that
they cannot be written or compared, and texts with half a surrogate pair, which no file and no tokenizer takes.
"""

import json
import re
from typing import Any

MAX_DEPTH = 64
"""Lists and objects inside one another; what we read from others has less than ten."""

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(data: bytes, max_bytes: int) -> Any:
    """The value that a JSON text stands for.

    Args:
        data: in one of JSON's encodings.
        max_bytes: most of them.

    Raises:
        ValueError: it is longer, nested deeper than `MAX_DEPTH`, no JSON, or no Unicode.
    """
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes:,} bytes of JSON")
    try:
        value = json.loads(data)
        deep = _is_deep(data, value)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if _HALF_PAIR.search(data):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


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
