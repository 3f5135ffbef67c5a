"""What is wrong with a directory: fields against what they have to say, tensors against those it has to have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepspec.drafts.files.config_json import CONFIG_FILE, read_draft_config
from deepspec.drafts.files.stored import stored_weights
from deepspec.drafts.files.weights_file import check_size, read_tensors
from deepspec.drafts.layouts import in_its_words, layout_of, read_layout
from deepspec.errors import DeepspecError, IncompatibleDraft
from deepspec.export.described import Described

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_OFFSETS, _MAPS, _EMBEDDING = "d2t", {"d2t", "t2d"}, "embed_tokens.weight"


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


def check_header(described: Described) -> None:
    """Before a network is made of what config.json says: see that the target can have it, and the weights hold it.

    Raises:
        DeepspecError: it cannot, or they do not; names the field or the file.
    """
    with in_its_words(layout_of(read_draft_config(described.directory))):
        described.algorithm.check_resolves(described.config, described.spec, described.directory)
    shapes = {name: tensor.shape for name, tensor in stored_weights(described.directory).items()}
    check_size(described.config.num_layers, shapes, described.directory)
    longest = max((size for shape in shapes.values() for size in shape), default=0)
    for field in _SIZES:
        size = getattr(described.spec, field)
        if size > longest:
            raise IncompatibleDraft(
                f"field {field} is {size}, but the longest side of a tensor is {longest}.",
                where=f"{described.directory.name}/{CONFIG_FILE}",
                remedy="Check that config.json and weights are of one draft.",
            )


def layout_flaws(written: Mapping[str, Any], directory: Path) -> list[str]:
    """What no draft of ours is, or what config.json says twice and differently: engines read either place.

    Args:
        written: its config.json.
        directory: for messages.
    """
    try:
        read_layout(written, directory)
    except DeepspecError as error:
        return [error.what]
    return []


def tensor_flaws(directory: Path, expected: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> list[str]:
    """Tensors that are missing, unknown, mis-shaped, of another dtype or not finite, one sentence each.

    Args:
        directory: with the weights.
        expected: names and shapes; the tensors may be without memory.
        dtype: of all; None: it is not compared.
    """
    flaws: list[str] = []
    try:
        names = stored_weights(directory).keys()
        flaws += [f"tensor {name} is missing." for name in sorted(expected.keys() - names)]
        flaws += [f"tensor {name} is not known to this layout." for name in sorted(names - expected.keys() - _MAPS)]
        for name, tensor in read_tensors(directory):
            if name in expected:
                flaws += _flaws_of(name, tensor, expected[name], dtype)
            elif name in _MAPS:
                flaws += _map_flaws(name, tensor, expected[_EMBEDDING].shape[0])
    except DeepspecError as error:
        return [str(error)]
    return flaws


def _flaws_of(name: str, found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None) -> list[str]:
    if found.shape != expected.shape:
        return [f"tensor {name} has shape {list(found.shape)}, not {list(expected.shape)}."]
    if dtype is not None and found.dtype != dtype:
        return [f"tensor {name} is {_name_of(found.dtype)}, not {_name_of(dtype)}."]
    if not bool(torch.isfinite(found).all()):
        return [f"tensor {name} has values that are not finite."]
    return []


def _map_flaws(name: str, found: torch.Tensor, vocab_size: int) -> list[str]:
    """What is wrong with a vocabulary map: that it is there, and that it has ids where offsets have to be."""
    flaws = [f"tensor {name} is of a vocabulary of the draft's own, which no draft of this layout has."]
    if name == _OFFSETS:
        ids = torch.arange(found.numel()) + found.flatten()
        if bool((ids.diff() <= 0).any()) or not bool(((ids >= 0) & (ids < vocab_size)).all()):
            flaws.append(f"tensor {name} holds no offsets: the draft's id i is the target's id i + {name}[i].")
    return flaws


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
