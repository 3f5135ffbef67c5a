"""What lies beside an exported draft's weights and config.json, read as serving engines read it.

Source: SGLang's reader of confidence temperatures; spec page "Engines".
"""

import json
from pathlib import Path
from typing import Any

from deepspec.foreign_json import loose_places, parse

CALIBRATION_FILE = "calibration.json"
_MAX_BYTES = 64 << 20


def check_side_files(directory: Path, num_draft_tokens: int) -> list[str]:
    """What is wrong with the JSON files of a directory, one sentence each.

    Args:
        directory: of an exported draft.
        num_draft_tokens: positions that its confidences are of.
    """
    flaws = []
    for file in sorted(directory.glob("*.json")):
        try:
            value = parse(file.read_bytes(), _MAX_BYTES)
        except (OSError, ValueError) as error:
            flaws.append(f"{file.name} cannot be read: {error}.")
            continue
        flaws += [f"{file.name}: field {found}: others cannot read it." for found in loose_places(value)]
        if file.name == CALIBRATION_FILE:
            flaws += [f"{file.name}: {flaw}" for flaw in calibration_flaws(value, num_draft_tokens)]
    return flaws


def calibration_flaws(value: Any, num_draft_tokens: int) -> list[str]:
    """What SGLang's reader refuses: a temperature per position above 0, and lists of numbers."""
    if not isinstance(value, dict):
        return ["it is not a JSON object."]
    if value.get("applicable") is False:  # of a draft without confidences: no engine reads it
        return []
    flaws = [
        f"field {name} is {_shown(value[name])}, not a list of numbers."
        for name in ("temperatures", "ece_before", "ece_after")
        if name in value and not (isinstance(value[name], list) and all(map(_is_number, value[name])))
    ]
    if flaws:
        return flaws
    temperatures = value.get("temperatures", [])
    if len(temperatures) != num_draft_tokens:
        flaws.append(f"field temperatures has {len(temperatures)} of {num_draft_tokens} positions.")
    flaws += [f"field temperatures has {one}, which is not above 0." for one in temperatures if one <= 0]
    return flaws


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
