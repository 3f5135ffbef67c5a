"""What is wrong with a directory: fields against what they have to say, tensors against those it has to have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from deepspec.drafts.files.weights_file import WEIGHTS_FILE


def field_flaws(found: Mapping[str, Any], must: Mapping[str, Any], within: str = "") -> list[str]:
    """Fields that are missing or say something else, one sentence each.

    Args:
        found: of the directory.
        must: what has to stand there; a mapping in it is compared field by field.
        within: the name of the field that all of these stand in.
    """
    flaws = []
    for name, value in must.items():
        full = f"{within}{name}"
        if isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            flaws += field_flaws(found[name], value, f"{full}.")
        elif found.get(name) is None and value is not None:
            flaws.append(f"field {full} is missing: readers have no default for it, or not the same one.")
        elif found.get(name) != value:
            flaws.append(f"field {full} is {_shown(found.get(name))}, not {_shown(value)}.")
    return flaws


def tensor_flaws(directory: Path, expected: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> list[str]:
    """Tensors that are missing, unknown, mis-shaped, of another dtype or not finite, one sentence each.

    Args:
        directory: with the weights.
        expected: names and shapes; the tensors may be without memory.
        dtype: of all; None: it is not compared.
    """
    flaws: list[str] = []
    try:
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as tensors:
            names: list[str] = tensors.keys()
            flaws += [f"tensor {name} is missing." for name in sorted(expected.keys() - set(names))]
            flaws += [f"tensor {name} is not known to this layout." for name in sorted(set(names) - expected.keys())]
            for name in sorted(set(names) & expected.keys()):
                flaws += _flaws_of(name, tensors.get_tensor(name), expected[name], dtype)
    except (OSError, SafetensorError) as error:
        return [f"{WEIGHTS_FILE} cannot be read: {error}."]
    return flaws


def _flaws_of(name: str, found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None) -> list[str]:
    if found.shape != expected.shape:
        return [f"tensor {name} has shape {list(found.shape)}, not {list(expected.shape)}."]
    if dtype is not None and found.dtype != dtype:
        return [f"tensor {name} is {_name_of(found.dtype)}, not {_name_of(dtype)}."]
    if not bool(torch.isfinite(found).all()):
        return [f"tensor {name} has values that are not finite."]
    return []


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
