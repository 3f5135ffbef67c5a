"""Numbers as people read them, the same on every page and in the terminal; a dash for what was not measured."""

import re
from typing import Any

from deepspec.units import in_units

NOT_MEASURED = "—"
MACRO = "macro average"


def number(value: Any, digits: int) -> str:
    """A number with `digits` decimals and thousands apart; a dash if it was not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOT_MEASURED
    return f"{value:,.{digits}f}".replace(",", "\N{THIN SPACE}").replace("-", "\N{MINUS SIGN}")


def signed(value: Any, digits: int) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return f"+{text}" if text != NOT_MEASURED and value > 0 else text


def times(value: Any) -> str:
    """A ratio, as in 2.31×."""
    text = number(value, 2)
    return text if text == NOT_MEASURED else f"{text}\N{MULTIPLICATION SIGN}"


def interval(value: Any, digits: int = 2) -> str:
    """An interval, as in 4.21 to 4.63."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return NOT_MEASURED
    return f"{number(value[0], digits)} to {number(value[1], digits)}"


def signed_interval(value: Any, digits: int = 2) -> str:
    """An interval of a difference, as in −0.10 to +0.31."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return NOT_MEASURED
    return f"{signed(value[0], digits)} to {signed(value[1], digits)}"


def not_applicable(reason: str | None) -> str:
    """The note instead of a section about confidences."""
    return f"Not applicable: {reason or 'This draft has no confidence head.'}"


def quantity(name: str, value: Any) -> str:
    """A value with the unit that its name ends in (`_bytes`, `_seconds`)."""
    if name.startswith("bytes") or name.endswith("_bytes"):
        return _bytes(value)
    if name.endswith("_seconds"):
        return f"{number(value, 1)} s"
    return number(value, 0 if isinstance(value, int) else 2)


def spelled(name: str) -> str:
    """A record's field name as words: the unit moves to the value."""
    return re.sub(r"_(seconds|bytes)$", "", name).replace("_", " ")


def _bytes(value: Any) -> str:
    return NOT_MEASURED if isinstance(value, bool) or not isinstance(value, int | float) else in_units(value)
