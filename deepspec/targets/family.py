"""What a target model is, without loading it: its shape (`TargetSpec`) and what its family does differently (`Family`).

A family is one file with one `Family` value and one line in the table of `deepspec.targets`; a draft's body is
assembled from that value. No torch here: recipes, estimates and checks read a target's directory in milliseconds.

Source of the family differences: the models' published configurations, spec page "Algorithms", section Families.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from deepspec.data.chat.formats import ChatFormat
from deepspec.errors import RecipeError, UnsupportedTarget

LAYER_IDS_FIELD = "draft.target_layer_ids"
_NUM_DEFAULT_LAYERS = 5
_SAME_NAMES = ("hidden_size", "vocab_size", "num_attention_heads", "intermediate_size")
_ACTIVATIONS = frozenset({"silu", "gelu_pytorch_tanh"})
_SWITCHES = (
    "tie_word_embeddings",
    "attention_bias",
    "use_sliding_window",
    "attention_k_eq_v",
    "enable_moe_block",
)
_ROPE_NUMBERS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = MappingProxyType(
    {
        "default": (frozenset(), frozenset()),
        "linear": (frozenset({"factor"}), frozenset()),
        "llama3": (
            frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
            frozenset(),
        ),
        "yarn": (
            frozenset({"factor", "original_max_position_embeddings"}),
            frozenset({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
        ),
        "proportional": (frozenset(), frozenset({"factor"})),
    }
)
"""Rotary types whose frequencies are the same for texts of every length: the fields they need, and may have."""


SIZES = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
BODY_FIELDS = (*SIZES, "head_dim", "rms_norm_eps", "max_position_embeddings", "attention_bias", "rope_parameters")
"""What a draft's config.json has to say of its body in every family."""


@dataclass(frozen=True)
class Family:
    """What really differs between target families.

    Args:
        name: its name, e.g. "qwen3".
        model_types: values of `model_type` in a target's config.json that belong to it.
        text_config_keys: where the text model's fields lie in config.json; () for the top level.
        draft_prefix: first part of a draft's architecture name, e.g. "Qwen3" of "Qwen3DSparkModel".
        chat: chat markers.
        norm_casts_first: RMSNorm casts back to the model's dtype before it multiplies with its weight (Qwen), or
            multiplies in fp32 first (Gemma).
        sandwich_norms: four norms per layer and a layer scalar instead of two norms.
        value_norm: values pass an RMSNorm without weight.
        mask_token_id: unused token of the released vocabulary that stands at a draft's masked positions.
        describe: (text config) -> the `TargetSpec` fields that are not read off the usual names.
        refuse: (text config) -> why such a target is not supported, or None. Asked before anything is read.
        draft_fields: (spec) -> what a draft's config.json says of its body: the target's text config in the notation
            that serving engines read, with every field that `describe` needs.
        body_fields: those of `draft_fields` that engines have no default for, or not the same one.
        uniform_layers: every decoder layer of the target is of the form described here (no sliding windows, one head
            dim), so that it can be run with fused projections; otherwise Hugging Face's own forward is used.
        layer_ids: number of target layers -> captured layers, where the default rule is not used.
        tokenizer_class: what transformers loads the tokenizer with where no file names a class.
    """

    name: str
    model_types: tuple[str, ...]
    text_config_keys: tuple[str, ...]
    draft_prefix: str
    chat: ChatFormat
    norm_casts_first: bool
    sandwich_norms: bool
    value_norm: bool
    mask_token_id: int
    describe: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    refuse: Callable[[Mapping[str, Any]], str | None]
    draft_fields: Callable[["TargetSpec"], Mapping[str, Any]]
    body_fields: tuple[str, ...]
    uniform_layers: bool
    layer_ids: Mapping[int, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    tokenizer_class: str = "TokenizersBackend"


@dataclass(frozen=True)
class LayerShape:
    """What one decoder layer of a target keeps of every position, and how far it sees.

    Args:
        num_key_value_heads, head_dim: of its keys and values; queries have the same head dim.
        value_from_keys: it has no value projection.
        window: how many positions a query sees, its own included; None: all up to its own.
    """

    num_key_value_heads: int
    head_dim: int
    value_from_keys: bool = False
    window: int | None = None


@dataclass(frozen=True)
class TargetSpec:
    """A target's shape, read from its directory's config.json.

    Args:
        path: the directory.
        family: name of its family.
        model_type: as in config.json.
        num_layers: decoder layers.
        head_dim, num_key_value_heads: those of full-attention layers, which a draft copies.
        value_from_keys: the value is the raw key projection; there is no value projection.
        attention_scale: what query-key products are multiplied with; head_dim^-0.5 unless the family says otherwise.
        embedding_scale: what embeddings are multiplied with (1.0: nothing).
        logit_softcap: C of `C·tanh(z/C)` on logits, or None.
        rope: rotary parameters of full-attention layers: `rope_type`, `rope_theta` and what the type needs.
        dtype: dtype the weights are stored in.
        raw: the text model's configuration as written.
        special_layers: every decoder layer's shape, where they are not all as said here; () where they are.
    """

    path: Path
    family: str
    model_type: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: Mapping[str, Any]
    hidden_act: str
    initializer_range: float
    tie_word_embeddings: bool
    dtype: str
    raw: Mapping[str, Any]
    attention_scale: float
    value_from_keys: bool = False
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    special_layers: tuple[LayerShape, ...] = ()

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """The decoder layers' shapes, in order."""
        if self.special_layers:
            return self.special_layers
        return (LayerShape(self.num_key_value_heads, self.head_dim, self.value_from_keys),) * self.num_layers


def text_config(family: Family, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's part of a target's config.json.

    Where it lies within a larger model's, what that says of the weights as a whole holds for the text model too: that
    its head is its embedding, and, if nothing else is said, the dtype and the kind of model.
    """
    text = config
    for key in family.text_config_keys:
        inner = text.get(key)
        if isinstance(inner, Mapping):
            outer = {name: text[name] for name in ("dtype", "torch_dtype") if text.get(name) is not None}
            tied = {name: text[name] for name in ("tie_word_embeddings",) if name in text}
            text = {"model_type": f"{text.get('model_type')}_text", **outer, **inner, **tied}
    return text


def spec_from_config(family: Family, raw: Mapping[str, Any], *, path: Path, model_type: str) -> TargetSpec:
    """A target's spec from its text configuration.

    Raises:
        UnsupportedTarget: naming the field that is missing, of the wrong type or refused.
    """
    where = f"{path.name}/config.json"
    _check_switches(raw, where)
    reason = family.refuse(raw)
    if reason is not None:
        raise UnsupportedTarget(reason, where=where, remedy="Choose another target.")
    plain = {
        "num_layers": _number(raw, "num_hidden_layers", int, where),
        "max_position_embeddings": _number(raw, "max_position_embeddings", int, where),
        "rms_norm_eps": _number(raw, "rms_norm_eps", float, where),
        **{name: _number(raw, name, int, where) for name in _SAME_NAMES},
    }
    special = dict(family.describe(raw))
    for name in ("head_dim", "num_key_value_heads"):
        special[name] = special.get(name) or _number(raw, name, int, where)
    _check_heads(plain["num_attention_heads"], special["num_key_value_heads"], special["head_dim"], where)
    rope = special.pop("rope", None) or rope_of(raw, where)
    spec = TargetSpec(
        path=path,
        family=family.name,
        model_type=model_type,
        rope=rope,
        hidden_act=str(special.pop("hidden_act", None) or raw.get("hidden_act", "silu")),
        initializer_range=float(raw.get("initializer_range", 0.02)),
        tie_word_embeddings=bool(special.pop("tie_word_embeddings", raw.get("tie_word_embeddings", False))),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        raw=raw,
        attention_scale=special.pop("attention_scale", None) or special["head_dim"] ** -0.5,
        **plain,
        **special,
    )
    if spec.hidden_act not in _ACTIVATIONS:
        raise UnsupportedTarget(
            f"hidden_act {spec.hidden_act!r} is not one of {sorted(_ACTIVATIONS)}.",
            where=where,
            remedy="Choose another target.",
        )
    return spec


def rope_of(raw: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Rotary parameters of a configuration in the new (`rope_parameters`) or the old (`rope_scaling`) notation.

    Raises:
        UnsupportedTarget: the notations say different things, a field is missing or no number, or the frequencies
            depend on the length of a text.
    """
    found = {
        name: _rope(name, raw[name], raw, where) for name in ("rope_scaling", "rope_parameters") if raw.get(name)
    } or {"rope_theta": _rope("rope_theta", {}, raw, where)}
    rope = next(iter(found.values()))
    if any(other != rope for other in found.values()):
        raise _wrong(
            f"fields rope_scaling and rope_parameters differ: {' is not '.join(map(str, found.values()))}", where
        )
    return rope


def _rope(name: str, written: Any, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One notation's parameters, with what transformers adds to them."""
    if not isinstance(written, Mapping):
        raise _wrong(f"field {name} is {written!r}, not an object", where)
    rope = {key: value for key, value in written.items() if value is not None}
    named = rope.pop("type", None)
    kind = str(rope.setdefault("rope_type", named or "default"))
    if named not in (None, kind):
        raise _wrong(f"fields {name}.type and {name}.rope_type differ: {named!r} is not {kind!r}", where)
    if kind not in _ROPE_NUMBERS:
        raise UnsupportedTarget(
            f"{name}.rope_type {kind!r} is not one of {', '.join(sorted(_ROPE_NUMBERS))}: with others the frequencies"
            " depend on the length of a text.",
            where=where,
            remedy="Choose another target, or the model's configuration for one length.",
        )
    outside = {"rope_theta", "partial_rotary_factor"}
    if kind in ("llama3", "yarn"):
        outside.add("original_max_position_embeddings")
    for key in sorted(outside):
        if raw.get(key) is None:
            continue
        if rope.setdefault(key, raw[key]) != raw[key]:
            raise _wrong(f"fields {key} and {name}.{key} differ: {raw[key]!r} is not {rope[key]!r}", where)
    if kind in ("llama3", "yarn") and raw.get("max_position_embeddings") is not None:
        rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    if "rope_theta" not in rope:
        raise _wrong("no rope_theta: positions could not be encoded as the target does", where)
    _check_rope_numbers(name, kind, rope, where)
    rope["rope_theta"] = float(rope["rope_theta"])
    return rope


def _check_rope_numbers(name: str, kind: str, rope: dict[str, Any], where: str) -> None:
    needed, optional = _ROPE_NUMBERS[kind]
    for key in sorted(needed - rope.keys()):
        raise _wrong(f"field {name}.{key} is missing: {kind} positions need it", where)
    known = needed | optional | {"rope_type", "rope_theta", "partial_rotary_factor"}
    for key in sorted(rope.keys() - known):
        raise _wrong(f"field {name}.{key} is none of {kind} positions'", where)
    for key in sorted(rope.keys() - {"rope_type", "truncate"}):
        if not _is_number(rope[key]) or rope[key] <= 0:
            raise _wrong(f"field {name}.{key} is {rope[key]!r}, not a positive number", where)
    if kind != "proportional" and rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise _wrong(f"field partial_rotary_factor is not 1, but {kind} positions turn every dimension", where)


def _check_switches(raw: Mapping[str, Any], where: str) -> None:
    """Refuse a switch that is neither true nor false: "false" in quotes would be true."""
    for name in _SWITCHES:
        if not isinstance(raw.get(name, False), bool):
            raise _wrong(f"field {name} is {raw[name]!r}, neither true nor false", where)


def _check_heads(heads: int, key_value_heads: int, head_dim: int, where: str) -> None:
    if heads % key_value_heads:
        raise _wrong(f"num_attention_heads {heads} is no multiple of num_key_value_heads {key_value_heads}", where)
    if head_dim % 2:
        raise _wrong(f"head_dim {head_dim} is odd: positions turn pairs of dimensions", where)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(what: str, where: str) -> UnsupportedTarget:
    return UnsupportedTarget(
        f"{what}.", where=where, remedy="Copy the directory again, all of it; or correct the field."
    )


def default_layer_ids(family: Family, num_layers: int) -> tuple[int, ...]:
    """Layers captured when the recipe names none: the family's own, or up to five evenly from 1 to num_layers - 3.

    Very small targets have no room for the margins: there, all outputs but the last layer's may be taken.
    """
    if num_layers in family.layer_ids:
        return family.layer_ids[num_layers]
    first = 1 if num_layers >= 4 else 0
    last = num_layers - 3 if num_layers >= 5 else num_layers - 2
    if last < first:
        return (-1,)
    count = min(_NUM_DEFAULT_LAYERS, last - first + 1)
    if count == 1:
        return (first,)
    return tuple(first + round(i * (last - first) / (count - 1)) for i in range(count))


def check_layer_ids(spec: TargetSpec, ids: Sequence[int]) -> tuple[int, ...]:
    """The ids, if a draft may read these layers' outputs.

    Raises:
        RecipeError: none, out of range, not strictly increasing, or the last layer (Hugging Face's last entry is after
            the final norm, a hook's before it: two meanings for one number).
    """
    last = spec.num_layers - 1
    remedy = f"Choose strictly increasing layers from -1 (the embedding) to {last - 1}."
    if not ids:
        raise RecipeError("no layer is named.", where=LAYER_IDS_FIELD, remedy=remedy)
    for layer in ids:
        if layer == last:
            raise RecipeError(
                f"{layer} is the target's last layer, whose output cannot be used.",
                where=LAYER_IDS_FIELD,
                remedy=remedy,
            )
        if not -1 <= layer < last:
            raise RecipeError(
                f"{layer} is out of range for a target with {spec.num_layers} layers.",
                where=LAYER_IDS_FIELD,
                remedy=remedy,
            )
    if list(ids) != sorted(set(ids)):
        raise RecipeError(f"{list(ids)} is not strictly increasing.", where=LAYER_IDS_FIELD, remedy=remedy)
    return tuple(ids)


def _number(raw: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = raw.get(name)
    if not _is_number(value) or value <= 0 or (kind is int and not isinstance(value, int)):
        what = "whole number" if kind is int else "number"
        raise UnsupportedTarget(
            f"field {name} is {value!r}, not a positive {what}.",
            where=where,
            remedy="Copy the directory again, all of it.",
        )
    return kind(value)
