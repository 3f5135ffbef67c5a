"""What lies in an exported draft's directory, read as serving engines read it: JSON files, weights' files, their modes.

Source: SGLang's reader of confidence temperatures, vLLM's loader of weights; spec page "Engines".
"""

import json
from pathlib import Path
from typing import Any

from deepspec.foreign_json import loose_places, parse

CALIBRATION_FILE = "calibration.json"
_MASK_FILE = "mask_embedding.pt"
_READ = 0o444
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


def file_flaws(directory: Path) -> list[str]:
    """Files that an engine would read besides the weights, or cannot read where it runs under another account."""
    masks = (directory / _MASK_FILE).exists()
    flaws = [f"{_MASK_FILE} is there: vLLM takes it for the embedding of the mask."] if masks else []
    folder = directory.stat().st_mode
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        mode = file.stat().st_mode
        if folder & _READ & ~mode:
            flaws.append(f"{file.name} has the mode {mode & 0o777:o}: others may read the folder, but not this file.")
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
