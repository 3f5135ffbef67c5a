"""The layout of the public DeepSpec checkpoints: bfloat16, the target's tables included, fields at the top level.

Our own draft directories have the same tensors and fields, in the dtype they were trained in; what differs is done
here. Source: spec page "Serving", section 4.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from deepspec.drafts import algorithm_of
from deepspec.drafts.files.config_json import CONFIG_FILE, body_of, read_draft_config
from deepspec.drafts.files.weights_file import WEIGHTS_FILE, check_size, read_shapes, write_tensors
from deepspec.errors import DeepspecError, IncompatibleDraft
from deepspec.export.format import Format
from deepspec.targets import FAMILIES
from deepspec.targets.family import TargetSpec


def write(draft: Path, out: Path, target_name: str) -> None:
    """Write a draft directory in this layout; see `Format.write`."""
    config = algorithm_of(draft).release(read_draft_config(draft), draft, target_name) | {"dtype": "bfloat16"}
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(draft / WEIGHTS_FILE).items()}
    out.mkdir(parents=True)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (out / CONFIG_FILE).write_text(text, encoding="utf-8")
    write_tensors(tensors, out / WEIGHTS_FILE)


def check(directory: Path) -> list[str]:
    """What is wrong with a directory in this layout; see `Format.check`."""
    try:
        config = read_draft_config(directory)
        algorithm = algorithm_of(directory)
        described = algorithm.read_config(directory)  # sees that num_target_layers is a number
        spec = _target_of(config, config["num_target_layers"], directory)
        check_size(described.num_layers, read_shapes(directory), directory)
        with torch.device("meta"):
            expected = algorithm.build(described, spec).state_dict()
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as tensors:
            names: list[str] = tensors.keys()
            found = {name: tensors.get_tensor(name) for name in names}
    except DeepspecError as error:
        return [str(error)]
    except (OSError, SafetensorError) as error:
        return [f"{WEIGHTS_FILE} cannot be read: {error}."]
    flaws = [f"tensor {name} is missing." for name in sorted(expected.keys() - found.keys())]
    flaws += [f"tensor {name} is not known to this layout." for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if found[name].shape != expected[name].shape:
            flaws.append(f"tensor {name} has shape {list(found[name].shape)}, not {list(expected[name].shape)}.")
        elif found[name].dtype != torch.bfloat16:
            flaws.append(f"tensor {name} is {found[name].dtype}, not bfloat16.")
        elif not bool(torch.isfinite(found[name]).all()):
            flaws.append(f"tensor {name} has values that are not finite.")
    for field, wanted in {"dtype": "bfloat16", "tie_word_embeddings": False}.items():
        if config.get(field) != wanted:
            flaws.append(f"field {field} is {config.get(field)!r}, not {wanted!r}.")
    return flaws


def _target_of(config: Mapping[str, Any], num_target_layers: int, directory: Path) -> TargetSpec:
    """What the draft's config.json says of the target: the body's shape and the number of layers."""
    model_type = str(config.get("model_type"))
    family = next((family for family in FAMILIES.values() if model_type in family.model_types), None)
    if family is None:
        raise IncompatibleDraft(
            f"model_type {model_type!r} belongs to no supported family.",
            where=f"{directory.name}/{CONFIG_FILE}",
            remedy="Export a draft that was trained for a supported target.",
        )
    return replace(body_of(config, family, directory), num_layers=num_target_layers)


FORMAT = Format(name="deepspec", write=write, check=check)
