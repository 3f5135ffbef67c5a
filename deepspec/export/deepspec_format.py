"""The layout of the public DeepSpec checkpoints: bfloat16, the target's tables included, fields at the top level.

Our own draft directories have the same tensors and fields, in the dtype they were trained in; what differs is done
here. Nothing is left to a reader's default that another reader has otherwise: `write` says it all, and `check` takes
for missing what only our own reader could supply. Source: spec page "Serving", sections 1, 2.2 and 4.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from deepspec.drafts import algorithm_of
from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.files.config_json import CONFIG_FILE, body_of, read_draft_config
from deepspec.drafts.files.weights_file import WEIGHTS_FILE, check_size, read_shapes, write_tensors
from deepspec.errors import DeepspecError, IncompatibleDraft
from deepspec.export.format import Format
from deepspec.export.side_files import check_side_files
from deepspec.foreign_json import strict_text
from deepspec.targets import FAMILIES, family_of
from deepspec.targets.family import TargetSpec


def write(draft: Path, out: Path, target_name: str) -> None:
    """Write a draft directory in this layout; see `Format.write`."""
    config = algorithm_of(draft).release(read_draft_config(draft), draft, target_name) | {"dtype": "bfloat16"}
    config |= _rope_fields(config, _target_of(config, config["num_target_layers"], draft))
    try:
        text = strict_text(config, indent=2)
    except ValueError as error:
        raise IncompatibleDraft(
            f"others could not read it: field {error}.",
            where=f"{draft.name}/{CONFIG_FILE}",
            remedy="Correct that field, which was copied from the target's config.json.",
        ) from error
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(draft / WEIGHTS_FILE).items()}
    out.mkdir(parents=True)
    (out / CONFIG_FILE).write_text(text, encoding="utf-8")
    write_tensors(tensors, out / WEIGHTS_FILE)


def check(directory: Path) -> list[str]:
    """What is wrong with a directory in this layout; see `Format.check`."""
    try:
        config = read_draft_config(directory)
        algorithm = algorithm_of(directory)
        described = algorithm.read_config(directory)  # sees that num_target_layers is a number
        spec = _target_of(config, config["num_target_layers"], directory)
        flaws = _field_flaws(config, algorithm, described, spec, directory)
        flaws += check_side_files(directory, algorithm.num_draft_tokens(described))
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
    flaws += [f"tensor {name} is missing." for name in sorted(expected.keys() - found.keys())]
    flaws += [f"tensor {name} is not known to this layout." for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if found[name].shape != expected[name].shape:
            flaws.append(f"tensor {name} has shape {list(found[name].shape)}, not {list(expected[name].shape)}.")
        elif found[name].dtype != torch.bfloat16:
            flaws.append(f"tensor {name} is {found[name].dtype}, not bfloat16.")
        elif not bool(torch.isfinite(found[name]).all()):
            flaws.append(f"tensor {name} has values that are not finite.")
    return flaws


def _field_flaws(
    config: Mapping[str, Any], algorithm: Algorithm, described: Any, spec: TargetSpec, directory: Path
) -> list[str]:
    """Fields that a reader without our defaults would miss, and fields that say something else than we would.

    Raises:
        IncompatibleDraft: the layout has no such drafts.
    """
    family = family_of(spec)
    must = {
        **algorithm.required(described),
        "architectures": [family.draft_prefix + algorithm.architecture],
        "dtype": "bfloat16",
        "num_hidden_layers": described.num_layers,
        "layer_types": ["full_attention"] * described.num_layers,
        "tie_word_embeddings": False,
    }
    may = {**algorithm.release(must, directory, str(config.get("target_model_name_or_path"))), **must}
    body = [name for name, value in family.draft_fields(spec).items() if value is not None and name not in must]
    missing = sorted(name for name in (*must, *body) if config.get(name) is None)
    flaws = [f"field {name} is missing: readers have no default for it, or not the same one." for name in missing]
    for name in sorted(may.keys() - missing):
        if name in config and config[name] != may[name]:
            flaws.append(f"field {name} is {config[name]!r}, not {may[name]!r}.")
    return flaws


def _rope_fields(config: Mapping[str, Any], spec: TargetSpec) -> dict[str, Any]:
    """Rotary parameters in the new and the old notation; a family with several kinds of them has only one notation."""
    written = config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in written.values()):
        return {}
    rope = dict(spec.rope)
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    old = {"rope_scaling": scaling} if scaling.get("rope_type") != "default" else {}
    return {"rope_parameters": rope, "rope_theta": rope["rope_theta"], **old}


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
