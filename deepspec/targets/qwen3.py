"""The Qwen3 family (dense): two norms per layer, query and key norms, own value projection, plain rotary positions."""

from collections.abc import Mapping
from typing import Any

from deepspec.data.chat.formats import CHATML
from deepspec.targets.family import BODY_FIELDS, Family, TargetSpec


def _describe(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    if raw.get("head_dim") is not None:
        return {}
    # As transformers does: no field is its default, null is an even share of the hidden size.
    return {"head_dim": raw["hidden_size"] // raw["num_attention_heads"] if "head_dim" in raw else 128}


def _refuse(raw: Mapping[str, Any]) -> str | None:
    if raw.get("attention_bias"):
        return "attention_bias is true: drafts have projections without bias only."
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        return "sliding-window layers are not supported."
    return None


def _draft_fields(spec: TargetSpec) -> Mapping[str, Any]:
    # Said even where the target does not: its default in serving engines is not always hidden size by heads.
    return {**spec.raw, "head_dim": spec.head_dim}


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    text_config_keys=(),
    draft_prefix="Qwen3",
    chat=CHATML,
    norm_casts_first=True,
    sandwich_norms=False,
    value_norm=False,
    mask_token_id=151669,
    describe=_describe,
    refuse=_refuse,
    draft_fields=_draft_fields,
    body_fields=(*BODY_FIELDS, "hidden_act"),
    uniform_layers=True,
    tokenizer_class="Qwen2Tokenizer",
)
