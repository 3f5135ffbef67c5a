"""Block drafts as directories: `config.json` and `model.safetensors` in the layout of the public checkpoints.

What is read is checked against the target before anything runs: a draft that does not fit loads without error elsewhere
and only its acceptance collapses. The weights' own dtype is kept.

Source of the layout: spec page "Serving", section 4.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from deepspec.drafts.block import BlockDraft, build
from deepspec.drafts.directory_config import CONFIG_FILE, check_fits, form_of, read_draft_config
from deepspec.drafts.form import BlockForm
from deepspec.errors import IncompatibleDraft
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec

WEIGHTS_FILE = "model.safetensors"


def save(draft: BlockDraft, directory: Path) -> None:
    """Write a block draft.

    Args:
        draft: with finite weights.
        directory: is made if it does not exist.

    Raises:
        IncompatibleDraft: a weight is not finite, naming the tensor.
    """
    tensors = {name: weight.detach().contiguous() for name, weight in draft.state_dict().items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise IncompatibleDraft("has weights that are not finite and is not saved.", where=name)
    directory.mkdir(parents=True, exist_ok=True)
    config = draft_config(draft.form, draft.spec, dtype=draft.fc.weight.dtype)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def draft_config(form: BlockForm, spec: TargetSpec, *, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a block draft: the target's text configuration with the draft's own fields."""
    dropped = {"torch_dtype", "transformers_version", "_name_or_path", "use_cache", "quantization_config"}
    config = {key: value for key, value in spec.raw.items() if key not in dropped}
    config |= {
        "architectures": [f"{family_of(spec).draft_prefix}DSparkModel"],
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": spec.head_dim,
        "num_hidden_layers": form.num_layers,
        "layer_types": ["full_attention"] * form.num_layers,
        "tie_word_embeddings": False,
        "block_size": form.block_size,
        "mask_token_id": form.mask_token_id,
        "target_layer_ids": list(form.layer_ids),
        "num_anchors": form.num_anchors,
        "num_target_layers": spec.num_layers,
        "markov_rank": form.markov_rank,
        "enable_confidence_head": form.confidence_head,
    }
    if form.markov_rank:
        config |= {
            "markov_head_type": form.markov_head,
            "confidence_head_with_markov": form.confidence_head_with_markov,
        }
    return config


def load(
    directory: Path, spec: TargetSpec, *, form: BlockForm | None = None, device: str = "cpu", dtype: str = "float32"
) -> BlockDraft:
    """Read a block draft and check that it fits.

    Args:
        directory: with config.json and model.safetensors.
        spec: the target it is to serve.
        form: what it has to be (layer ids of the states, say); None: what its config.json says.
        device, dtype: of the module.

    Raises:
        IncompatibleDraft: a field or tensor that is missing, extra, mis-shaped or different, with both values.
    """
    config = read_draft_config(directory)
    found = form_of(config, directory)
    check_fits(config, spec, directory)
    if form is not None:
        _check_form(found, form, directory)
    with torch.device(device):
        draft = build(found, spec)
    draft = draft.to(getattr(torch, dtype))
    expected = dict(draft.state_dict())
    file = directory / WEIGHTS_FILE
    where = f"{directory.name}/{WEIGHTS_FILE}"
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors, torch.no_grad():
            names: list[str] = tensors.keys()
            _check_tensors({name: tuple(tensors.get_slice(name).get_shape()) for name in names}, expected, where)
            for name, weight in expected.items():
                weight.copy_(tensors.get_tensor(name))
                if not bool(torch.isfinite(weight).all()):
                    raise IncompatibleDraft(f"tensor {name} has values that are not finite.", where=where)
    except FileNotFoundError as error:
        raise IncompatibleDraft("there are no weights.", where=where) from error
    except SafetensorError as error:
        raise IncompatibleDraft(f"cannot be read as safetensors: {error}.", where=where) from error
    return draft


def _check_tensors(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, torch.Tensor], where: str) -> None:
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise IncompatibleDraft(f"{_listed('tensor', missing)} missing.", where=where)
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise IncompatibleDraft(f"{_listed('tensor', extra)} not known to this draft.", where=where)
    for name, tensor in expected.items():
        if found[name] != tuple(tensor.shape):
            raise IncompatibleDraft(
                f"tensor {name} has shape {list(found[name])}, but the target needs {list(tensor.shape)}.", where=where
            )


def _check_form(found: BlockForm, wanted: BlockForm, directory: Path) -> None:
    fields = {
        "block_size": (found.block_size, wanted.block_size),
        "num_hidden_layers": (found.num_layers, wanted.num_layers),
        "target_layer_ids": (list(found.layer_ids), list(wanted.layer_ids)),
        "mask_token_id": (found.mask_token_id, wanted.mask_token_id),
        "markov_rank": (found.markov_rank, wanted.markov_rank),
        "markov_head_type": (found.markov_head, wanted.markov_head),
        "enable_confidence_head": (found.confidence_head, wanted.confidence_head),
        "confidence_head_with_markov": (found.confidence_head_with_markov, wanted.confidence_head_with_markov),
    }
    for field, (has, wants) in fields.items():
        if has != wants:
            raise IncompatibleDraft(
                f"field {field} is {has}, but the recipe says {wants}.", where=f"{directory.name}/{CONFIG_FILE}"
            )


def _listed(noun: str, names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{noun} {shown} is" if len(names) == 1 else f"{noun}s {shown} are"
