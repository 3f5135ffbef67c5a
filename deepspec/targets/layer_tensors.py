"""Which tensors a model of a family has, by name and shape: what files are compared with before and while loading.

No torch here.
"""

from collections.abc import Mapping

from deepspec.errors import UnsupportedTarget
from deepspec.targets.family import Family, LayerShape, TargetSpec
from deepspec.targets.weight_files import StoredTensor

REMEDY = "Copy the directory again, all of it; quantised weights and adapters cannot be used."
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
_OLD_BUFFER = "rotary_emb.inv_freq"
"""Older checkpoints hold rotary frequencies too: they follow from config.json."""
_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


def layer_tensors(spec: TargetSpec, family: Family, layer: LayerShape) -> dict[str, tuple[int, ...]]:
    """The tensors of one decoder layer: name below the layer -> shape."""
    hidden, queries = spec.hidden_size, spec.num_attention_heads * layer.head_dim
    keys = layer.num_key_value_heads * layer.head_dim
    wanted: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_norm.weight": (layer.head_dim,),
        "self_attn.k_norm.weight": (layer.head_dim,),
        "mlp.gate_proj.weight": (spec.intermediate_size, hidden),
        "mlp.up_proj.weight": (spec.intermediate_size, hidden),
        "mlp.down_proj.weight": (hidden, spec.intermediate_size),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if not layer.value_from_keys:
        wanted["self_attn.v_proj.weight"] = (keys, hidden)
    if family.sandwich_norms:
        wanted |= {f"{edge}_feedforward_layernorm.weight": (hidden,) for edge in ("pre", "post")}
        wanted["layer_scalar"] = (1,)
    return wanted


def find_tensor(stored: Mapping[str, object], ending: str, *, where: str) -> str:
    """The name that is `ending`, or ends with a dot and `ending`.

    Raises:
        UnsupportedTarget: there is none, or more than one.
    """
    found = [name for name in stored if name == ending or name.endswith(f".{ending}")]
    if len(found) != 1:
        raise UnsupportedTarget(
            f"{len(found)} tensors have the name {ending}, not one.", where=where, remedy="Copy the directory again."
        )
    return found[0]


def has_head(stored: Mapping[str, object]) -> bool:
    """Whether the files hold a head of the text model's own."""
    return any(name == HEAD or name.endswith(f".{HEAD}") for name in stored)


def check_tensors(spec: TargetSpec, family: Family, stored: Mapping[str, StoredTensor]) -> None:
    """Compare what the files hold of the text model with what config.json says: names, shapes, dtypes.

    Raises:
        UnsupportedTarget: a tensor is missing, unknown to such a model, of another shape, or quantised.
    """
    where = str(spec.path)
    table = (spec.vocab_size, spec.hidden_size)
    name = find_tensor(stored, EMBEDDING, where=where)
    prefix = name.removesuffix(EMBEDDING)
    wanted: dict[str, tuple[int, ...]] = {name: table, f"{prefix}norm.weight": (spec.hidden_size,)}
    if has_head(stored) or not spec.tie_word_embeddings:
        wanted[find_tensor(stored, HEAD, where=where)] = table
    for index, layer in enumerate(spec.layers):
        own = layer_tensors(spec, family, layer)
        wanted |= {f"{prefix}layers.{index}.{name}": shape for name, shape in own.items()}
    below = f"{prefix}layers."
    found = {
        name
        for name in stored
        if name in wanted or (name.startswith(prefix or below) and not name.endswith(_OLD_BUFFER))
    }
    _refuse(sorted(wanted.keys() - found), "missing", where)
    _refuse(sorted(found - wanted.keys()), f"not known to a {family.name} model of this config.json", where)
    for name, shape in sorted(wanted.items()):
        tensor = stored[name]
        if tensor.dtype not in _DTYPES:
            raise UnsupportedTarget(
                f"{name} is stored as {tensor.dtype}: quantised weights cannot be used.",
                where=str(tensor.file),
                remedy="Name the directory of the model that is not quantised.",
            )
        if tensor.shape != shape:
            raise UnsupportedTarget(
                f"{name} has shape {list(tensor.shape)}; config.json says {list(shape)}.",
                where=str(tensor.file),
                remedy="config.json and weights are of two models: copy the directory again, all of it.",
            )


def _refuse(names: list[str], reason: str, where: str) -> None:
    if names:
        raise UnsupportedTarget(
            f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'} {reason}:"
            f" {', '.join(names[:3])}{' …' if len(names) > 3 else ''}.",
            where=where,
            remedy=REMEDY,
        )
