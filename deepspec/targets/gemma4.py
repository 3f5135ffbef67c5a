"""The Gemma 4 family (text): four norms per layer, keys that may serve as values, windows, soft-capped logits.

Its layers are of two kinds. "Sliding" ones see a window, have a head dim of their own and other positions; a draft
copies the "full attention" ones, so those are what a spec's head dim, key/value heads and rotary parameters mean.
The target itself runs on Hugging Face's module.

config.json tells the kinds apart in two notations. Old: `global_head_dim`, and `num_global_key_value_heads`, which
counts only with `attention_k_eq_v`. New (transformers 5.19 and later): `per_layer_config`, layer by layer what differs
from the fields above. Drafts are written in the old one, which serving engines read.

Source: configurations as transformers 5.23 writes them; spec pages "Algorithms" (Families) and "Serving" (section 4).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deepspec.data.chat.formats import GEMMA4
from deepspec.targets.family import BODY_FIELDS, Family, LayerShape, TargetSpec, rope_of

_FULL = "full_attention"
_SLIDING = "sliding_attention"
_OVERRIDES = frozenset({"head_dim", "num_key_value_heads"})
# What transformers takes where the field is missing: per-layer inputs, unless the model type has none.
_PER_LAYER_INPUT_SIZE: Mapping[str, int] = MappingProxyType({"gemma4_text": 256, "gemma4_unified_text": 0})


def _layer_types(raw: Mapping[str, Any]) -> list[str]:
    """The kind of every layer; like the models, every sixth sees everything where nothing is said, and the last does.

    Raises:
        ValueError: another number of them than layers, or a kind that is unknown.
    """
    count = _positive(raw, "num_hidden_layers")
    types = list(raw.get("layer_types") or [_SLIDING if (i + 1) % 6 else _FULL for i in range(count)])
    if len(types) != count or not set(types) <= {_FULL, _SLIDING}:
        raise ValueError(f"layer_types is {types}: {count} of {_FULL!r} and {_SLIDING!r} are expected.")
    return [*types[:-1], _FULL]


def _overrides(raw: Mapping[str, Any], types: list[str]) -> Mapping[int, Mapping[str, Any]]:
    """What each layer says otherwise than the fields for all, in either notation.

    Raises:
        ValueError: neither notation is there, or a layer differs in more than its heads.
    """
    per_layer = raw.get("per_layer_config")
    if per_layer is not None:
        found = {int(layer): dict(fields) for layer, fields in per_layer.items()}
        others = sorted({name for fields in found.values() for name in fields} - _OVERRIDES)
        if others:
            raise ValueError(f"per_layer_config sets {', '.join(others)}: layers may differ in their heads only.")
        return found
    if raw.get("global_head_dim") is None:
        raise ValueError(
            "neither global_head_dim nor per_layer_config is there: the full-attention head dim is unknown."
        )
    full = {"head_dim": raw["global_head_dim"]}
    if raw.get("attention_k_eq_v") and raw.get("num_global_key_value_heads") is not None:
        full["num_key_value_heads"] = raw["num_global_key_value_heads"]
    return {layer: full for layer, kind in enumerate(types) if kind == _FULL}


def _layers(raw: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    """The shape of every layer.

    Raises:
        ValueError: a field is missing or no positive number, or the full-attention layers differ among themselves.
    """
    types = _layer_types(raw)
    overrides = _overrides(raw, types)
    shapes = []
    for layer, kind in enumerate(types):
        fields = {**raw, **overrides.get(layer, {})}
        shapes.append(
            LayerShape(
                num_key_value_heads=_positive(fields, "num_key_value_heads"),
                head_dim=_positive(fields, "head_dim"),
                value_from_keys=bool(raw.get("attention_k_eq_v")) and kind == _FULL,
                window=_positive(raw, "sliding_window") if kind == _SLIDING else None,
            )
        )
    for same_kind in (_FULL, _SLIDING):
        found = {shape for shape, kind in zip(shapes, types, strict=True) if kind == same_kind}
        if len(found) > 1:
            raise ValueError(f"the {same_kind} layers differ among themselves: a draft could copy only one of them.")
    return tuple(shapes)


def _positive(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"field {name} is {value!r}, not a positive number.")
    return value


def _full_rope(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    # Besides the entries by kind, some releases of transformers wrote stray `rope_type` and `rope_theta`.
    entry = (raw.get("rope_parameters") or {}).get(_FULL)
    return entry if isinstance(entry, Mapping) and entry.get("rope_theta") is not None else None


def _refuse(raw: Mapping[str, Any]) -> str | None:
    if raw.get("enable_moe_block"):
        return "enable_moe_block is true: mixture-of-experts targets are not supported."
    if raw.get("hidden_size_per_layer_input", _PER_LAYER_INPUT_SIZE.get(str(raw.get("model_type")), 0)):
        return "hidden_size_per_layer_input is not 0: targets with per-layer inputs are not supported."
    if raw.get("num_kv_shared_layers"):
        return "num_kv_shared_layers is not 0: targets whose layers share keys and values are not supported."
    if raw.get("attention_bias"):
        return "attention_bias is true: drafts have projections without bias only."
    if raw.get("use_bidirectional_attention") == "all":
        return "use_bidirectional_attention is 'all': only causal targets are supported."
    if raw.get("rope_scaling"):
        return f"rope_scaling stands next to rope_parameters.{_FULL}: it would take the place of both kinds' positions."
    if _full_rope(raw) is None:
        return f"no rope_parameters.{_FULL} with a rope_theta: positions could not be encoded as the target does."
    try:
        _layers(raw)
    except ValueError as error:
        return str(error)
    return None


def _describe(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    layers = _layers(raw)
    full = layers[-1]
    softcap = raw.get("final_logit_softcapping")
    return {
        "head_dim": full.head_dim,
        "num_key_value_heads": full.num_key_value_heads,
        "value_from_keys": full.value_from_keys,
        "attention_scale": 1.0,
        "embedding_scale": float(raw["hidden_size"]) ** 0.5,
        "logit_softcap": None if softcap is None else float(softcap),
        "rope": rope_of(
            {
                "rope_parameters": _full_rope(raw),
                "max_position_embeddings": raw.get("max_position_embeddings"),
                "partial_rotary_factor": raw.get("partial_rotary_factor"),
            }
        ),
        "hidden_act": raw.get("hidden_activation", "gelu_pytorch_tanh"),
        "tie_word_embeddings": raw.get("tie_word_embeddings", True),
        "special_layers": layers,
    }


def _draft_fields(spec: TargetSpec) -> Mapping[str, Any]:
    fields = {name: value for name, value in spec.raw.items() if name != "per_layer_config"}
    ropes = {kind: dict(entry) for kind, entry in spec.raw["rope_parameters"].items() if isinstance(entry, Mapping)}
    text_type = str(spec.raw.get("model_type", spec.model_type))
    fields |= {
        "model_type": text_type,
        "target_model_type": spec.model_type,
        "target_text_model_type": text_type,
        "global_head_dim": spec.head_dim,
        "num_global_key_value_heads": spec.num_key_value_heads if spec.value_from_keys else None,
        "rope_parameters": ropes,
    }
    if not spec.value_from_keys:
        # All of a draft's layers see everything: this is the only field that could say it.
        fields["num_key_value_heads"] = spec.num_key_value_heads
    return fields


FAMILY = Family(
    name="gemma4",
    model_types=("gemma4_text", "gemma4_unified_text", "gemma4", "gemma4_unified"),
    text_config_keys=("text_config",),
    draft_prefix="Gemma4",
    chat=GEMMA4,
    norm_casts_first=False,
    sandwich_norms=True,
    value_norm=True,
    mask_token_id=4,
    describe=_describe,
    refuse=_refuse,
    draft_fields=_draft_fields,
    body_fields=(*BODY_FIELDS, "hidden_activation", "global_head_dim", "attention_k_eq_v"),
    uniform_layers=False,
    layer_ids=MappingProxyType({48: (5, 17, 29, 41, 46)}),
)
