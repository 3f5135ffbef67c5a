"""The one reader of a target's directory: its config.json as a `TargetSpec`, and its weight files.

No torch here: recipes, estimates and checks read a target's directory in milliseconds.
"""

import json
from pathlib import Path
from typing import Any

from deepspec import targets
from deepspec.errors import UnsupportedTarget
from deepspec.targets.family import TargetSpec, spec_from_config, text_config


def read_spec(path: Path | str) -> TargetSpec:
    """Read `path`/config.json.

    Raises:
        UnsupportedTarget: no or unreadable config.json, a model type of no family, a field missing or of the wrong
            type, or something the family refuses.
    """
    path = Path(path)
    config = _read_json(path / "config.json")
    model_type = str(config.get("model_type"))
    family = next((f for f in targets.FAMILIES.values() if model_type in f.model_types), None)
    if family is None:
        known = sorted(t for f in targets.FAMILIES.values() for t in f.model_types)
        raise UnsupportedTarget(
            f"model_type {model_type!r} belongs to no supported family.",
            where=f"{path.name}/config.json",
            remedy=f"Supported model types: {', '.join(known)}.",
        )
    return spec_from_config(family, text_config(family, config), path=path, model_type=model_type)


def weight_files(path: Path | str) -> tuple[Path, ...]:
    """The safetensors files of a model directory, sorted by name.

    Raises:
        UnsupportedTarget: there are none (with advice when there are `.bin` weights: they are pickles).
    """
    path = Path(path)
    files = tuple(sorted(path.glob("*.safetensors")))
    if files:
        return files
    if any(path.glob("*.bin")):
        raise UnsupportedTarget(
            "the weights are .bin files, which can run code when they are read.",
            where=str(path.name),
            remedy="Convert them once with save_pretrained(..., safe_serialization=True) where you trust them.",
        )
    raise UnsupportedTarget(
        "no *.safetensors weights in the target's directory.",
        where=str(path.name),
        remedy="Copy the directory again, all of it.",
    )


def _read_json(file: Path) -> dict[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedTarget(
            f"there is no {file.name}.", where=str(file.parent), remedy="Name a directory in Hugging Face's layout."
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnsupportedTarget(
            f"cannot be read as JSON: {error}.", where=where, remedy="Copy the directory again, all of it."
        ) from error
    if not isinstance(value, dict):
        raise UnsupportedTarget("is not a JSON object.", where=where, remedy="Copy the directory again, all of it.")
    return value
