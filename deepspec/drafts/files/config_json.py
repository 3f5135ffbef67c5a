"""The `config.json` of a draft's directory: written, read and checked without torch, so that registries and plans can.

The fields are those of the public checkpoints; source: spec page "Serving", section 4. One is ours, and readers that do
not know it pass over it: `tokenizer_fingerprint`, which tokenizer the draft was trained with. None is a format version.
Names that are not known (an architecture, a kind of head) are refused rather than guessed; should a draft ever need
more than that to be read rightly, it will say `deepspec_format`, and this version will refuse it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepspec.data.chat.tokenizer import tokenizer_identity
from deepspec.drafts.structure import BlockForm, UnrolledForm
from deepspec.errors import ArtifactError, IncompatibleDraft, UnsupportedTarget
from deepspec.store.records import refuse_newer
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec, spec_from_config

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TOKENIZER_FIELD = "tokenizer_fingerprint"
FORMAT_FIELD = "deepspec_format"
"""Not written yet: a draft without it is of format 1."""

_NOT_COPIED = frozenset({"torch_dtype", "transformers_version", "_name_or_path", "use_cache", "quantization_config"})
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
        IncompatibleDraft: there is none, it is no JSON object, or a newer deepspec wrote it.
    """
    where = _where(directory)
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IncompatibleDraft("there is no config.json.", where=str(directory)) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IncompatibleDraft(f"cannot be read as JSON: {error}.", where=where) from error
    if not isinstance(config, dict):
        raise IncompatibleDraft("is not a JSON object.", where=where)
    try:
        refuse_newer(config, 1, what="This draft", where=where, otherwise="train it with this one", field=FORMAT_FIELD)
    except ArtifactError as error:
        raise IncompatibleDraft(error.what, where=error.where, remedy=error.remedy) from None
    return config


def block_form(config: Mapping[str, Any], directory: Path) -> BlockForm:
    """The form that a block draft's config.json describes.

    Raises:
        IncompatibleDraft: a field is missing or of another type.
    """
    _require(config, {"block_size": int, "num_hidden_layers": int, "mask_token_id": int}, directory)
    rank = int(config.get("markov_rank") or 0)
    return BlockForm(
        block_size=config["block_size"],
        num_layers=config["num_hidden_layers"],
        layer_ids=_layer_ids(config, directory),
        mask_token_id=config["mask_token_id"],
        num_anchors=int(config.get("num_anchors") or 512),
        in_place=not config.get("sample_from_anchor", True),
        markov_rank=rank,
        markov_head=str(config.get("markov_head_type") or "vanilla"),
        confidence_head=bool(config.get("enable_confidence_head", False)),
        confidence_head_with_markov=bool(config.get("confidence_head_with_markov", False)) and rank > 0,
    )


def block_config(form: BlockForm, spec: TargetSpec, dtype: str) -> dict[str, Any]:
    """The config.json of a block draft whose weights are of `dtype`."""
    config = _body(spec, "DSparkModel", form.num_layers, form.layer_ids, dtype) | {
        "block_size": form.block_size,
        "mask_token_id": form.mask_token_id,
        "num_anchors": form.num_anchors,
        "markov_rank": form.markov_rank,
        "enable_confidence_head": form.confidence_head,
    }
    if form.in_place:
        config["sample_from_anchor"] = False
    if form.markov_rank:
        config |= {
            "markov_head_type": form.markov_head,
            "confidence_head_with_markov": form.confidence_head_with_markov,
        }
    return config


def unrolled_form(config: Mapping[str, Any], directory: Path) -> UnrolledForm:
    """The form that an autoregressive draft's config.json describes.

    Raises:
        IncompatibleDraft: a field is missing or of another type.
    """
    _require(config, {"ttt_length": int, "draft_num_hidden_layers": int}, directory)
    return UnrolledForm(
        num_steps=config["ttt_length"],
        num_layers=config["draft_num_hidden_layers"],
        layer_ids=_layer_ids(config, directory),
    )


def unrolled_config(form: UnrolledForm, spec: TargetSpec, dtype: str, step_loss_decay: float) -> dict[str, Any]:
    """The config.json of an autoregressive draft whose weights are of `dtype`."""
    return _body(spec, "Eagle3Model", form.num_layers, form.layer_ids, dtype) | {
        "ttt_length": form.num_steps,
        "step_loss_decay": step_loss_decay,
        "draft_num_hidden_layers": form.num_layers,
    }


def _body(
    spec: TargetSpec, architecture: str, num_layers: int, layer_ids: tuple[int, ...], dtype: str
) -> dict[str, Any]:
    """What every draft's config.json says: the target's text configuration with the draft's own fields."""
    family = family_of(spec)
    tokenizer = tokenizer_identity(spec.path)
    copied = {key: value for key, value in family.draft_fields(spec).items() if key not in _NOT_COPIED}
    return (
        copied
        | ({TOKENIZER_FIELD: asdict(tokenizer)} if tokenizer else {})
        | {
            "architectures": [family.draft_prefix + architecture],
            "dtype": dtype,
            "num_hidden_layers": num_layers,
            "layer_types": ["full_attention"] * num_layers,
            "tie_word_embeddings": False,
            "target_layer_ids": list(layer_ids),
            "num_target_layers": spec.num_layers,
        }
    )


def _require(config: Mapping[str, Any], fields: Mapping[str, type], directory: Path) -> None:
    for field, kind in {**fields, "target_layer_ids": list, "num_target_layers": int}.items():
        if field not in config:
            raise IncompatibleDraft(f"field {field} is missing.", where=_where(directory))
        if not isinstance(config[field], kind) or isinstance(config[field], bool):
            raise IncompatibleDraft(
                f"field {field} is {config[field]!r}, not {kind.__name__}.", where=_where(directory)
            )


def _layer_ids(config: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    ids = config["target_layer_ids"]
    if not all(isinstance(layer, int) for layer in ids):
        raise IncompatibleDraft(f"field target_layer_ids is {ids!r}, not integers.", where=_where(directory))
    return tuple(ids)


def _where(directory: Path) -> str:
    return f"{directory.name}/{CONFIG_FILE}"


def check_fits(config: Mapping[str, Any], spec: TargetSpec, directory: Path) -> None:
    """Compare every field that a draft takes from its target, and the target's tokenizer with the draft's.

    Another chat template is said, not refused: the tokens mean the same, and a target's template is mended at times.

    Raises:
        IncompatibleDraft: a field differs, with both values; or the tokens do.
    """
    _check_tokenizer(config.get(TOKENIZER_FIELD), spec, directory)
    where = _where(directory)
    try:
        # A draft's body is a small model of its target's family, and says so in the same fields.
        body = spec_from_config(family_of(spec), config, path=directory, model_type=str(config.get("model_type")))
    except UnsupportedTarget as error:
        raise IncompatibleDraft(error.what, where=where) from error
    pairs = [(name, getattr(body, name), getattr(spec, name)) for name in _TAKEN_FROM_TARGET]
    for field, has, wants in [("num_target_layers", config["num_target_layers"], spec.num_layers), *pairs]:
        if has != wants:
            raise IncompatibleDraft(f"field {field} is {has!r} in the draft, but {wants!r} in the target.", where=where)


def _check_tokenizer(written: Any, spec: TargetSpec, directory: Path) -> None:
    if written is None:
        return  # of an older deepspec, or of others
    where = _where(directory)
    remedy = "Use the target that the draft was trained for, or train the draft anew."
    if not isinstance(written, dict):
        raise IncompatibleDraft(f"field {TOKENIZER_FIELD} is {written!r}, not an object.", where=where)
    found = tokenizer_identity(spec.path)
    if found is None:
        raise IncompatibleDraft(
            f"the draft was trained with a tokenizer, but there is no tokenizer.json in {spec.path}.",
            where=where,
            remedy="Put the target's tokenizer beside its weights.",
        )
    if written.get("vocabulary") != found.vocabulary:
        sizes = f"{written.get('num_tokens')} tokens, the target's {found.num_tokens}"
        raise IncompatibleDraft(
            f"the draft was trained with another tokenizer: other tokens have its ids ({sizes};"
            f" {str(written.get('vocabulary'))[:12]} is not {found.vocabulary[:12]}).",
            where=where,
            remedy=remedy,
        )
    if written.get("chat_template") != found.chat_template:
        logger.warning(
            "%s: the draft was trained with another chat template than the target's: it may be accepted less", where
        )


def check_fields(fields: Mapping[str, tuple[Any, Any]], directory: Path) -> None:
    """Compare what a directory says with what a recipe says, {field: (found, wanted)}.

    Raises:
        IncompatibleDraft: a field differs, with both values.
    """
    for field, (has, wants) in fields.items():
        if has != wants:
            raise IncompatibleDraft(f"field {field} is {has}, but the recipe says {wants}.", where=_where(directory))
