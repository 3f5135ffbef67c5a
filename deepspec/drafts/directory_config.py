"""The `config.json` of a block draft's directory: read and checked without torch, so that registries and plans can."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspec.drafts.form import BlockForm
from deepspec.errors import IncompatibleDraft, UnsupportedTarget
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec, spec_from_config

CONFIG_FILE = "config.json"

_REQUIRED: Mapping[str, type] = {
    "block_size": int,
    "num_hidden_layers": int,
    "target_layer_ids": list,
    "mask_token_id": int,
    "num_target_layers": int,
}
_TAKEN_FROM_TARGET = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope",
    "hidden_act",
    "value_from_keys",
    "attention_scale",
    "embedding_scale",
    "logit_softcap",
)


def read_draft_config(directory: Path) -> dict[str, Any]:
    """A draft directory's config.json.

    Raises:
        IncompatibleDraft: there is none, or it is no JSON object.
    """
    where = f"{directory.name}/{CONFIG_FILE}"
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IncompatibleDraft("there is no config.json.", where=str(directory)) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IncompatibleDraft(f"cannot be read as JSON: {error}.", where=where) from error
    if not isinstance(config, dict):
        raise IncompatibleDraft("is not a JSON object.", where=where)
    return config


def form_of(config: Mapping[str, Any], directory: Path) -> BlockForm:
    """The form that a block draft's config.json describes.

    Raises:
        IncompatibleDraft: a field is missing or of another type.
    """
    where = f"{directory.name}/{CONFIG_FILE}"
    for field, kind in _REQUIRED.items():
        if field not in config:
            raise IncompatibleDraft(f"field {field} is missing.", where=where)
        if not isinstance(config[field], kind) or isinstance(config[field], bool):
            raise IncompatibleDraft(f"field {field} is {config[field]!r}, not {kind.__name__}.", where=where)
    rank = int(config.get("markov_rank") or 0)
    return BlockForm(
        block_size=config["block_size"],
        num_layers=config["num_hidden_layers"],
        layer_ids=tuple(config["target_layer_ids"]),
        mask_token_id=config["mask_token_id"],
        num_anchors=int(config.get("num_anchors") or 512),
        markov_rank=rank,
        markov_head=str(config.get("markov_head_type") or "vanilla"),
        confidence_head=bool(config.get("enable_confidence_head", False)),
        confidence_head_with_markov=bool(config.get("confidence_head_with_markov", False)) and rank > 0,
    )


def check_fits(config: Mapping[str, Any], spec: TargetSpec, directory: Path) -> None:
    """Compare every field that a draft takes from its target.

    Raises:
        IncompatibleDraft: a field differs, with both values.
    """
    where = f"{directory.name}/{CONFIG_FILE}"
    try:
        # A draft's body is a small model of its target's family, and says so in the same fields.
        body = spec_from_config(family_of(spec), config, path=directory, model_type=str(config.get("model_type")))
    except UnsupportedTarget as error:
        raise IncompatibleDraft(error.what, where=where) from error
    pairs = [(name, getattr(body, name), getattr(spec, name)) for name in _TAKEN_FROM_TARGET]
    for field, has, wants in [("num_target_layers", config["num_target_layers"], spec.num_layers), *pairs]:
        if has != wants:
            raise IncompatibleDraft(f"field {field} is {has!r} in the draft, but {wants!r} in the target.", where=where)
