"""Target families: the one table of them.

    read_spec(directory) ──► FAMILIES ──► qwen3, gemma4       directory.py: a target's shape, without torch
             │                  └───────► family              what a `Family` and a `TargetSpec` are
             └─────► layer_tensors ──► weight_files           the tensors it must have; those that its files hold
    Target.load(directory) ─► weights, layers, rotary, cache  model.py: the loaded model, its body (body.py) fused
                           └► hugging_face                    or Hugging Face's module, where layers differ
    capture(target, …) ─────► model                           states of whole documents

`published.py` has the shapes of published targets, to estimate with before a download. To add a family: one file with
one `Family` value, and one line in the table below.
"""

from collections.abc import Mapping
from types import MappingProxyType

from deepspec.targets import gemma4, qwen3
from deepspec.targets.family import Family, TargetSpec

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (qwen3.FAMILY, gemma4.FAMILY)})


def family_of(spec: TargetSpec) -> Family:
    """The family of a target."""
    return FAMILIES[spec.family]


def parameter_counts(spec: TargetSpec) -> dict[str, int]:
    """Numbers in a target's weights by part: "embedding", "head" (0 when tied), "layers", "total"."""
    num_norms, num_scalars = (4, 1) if family_of(spec).sandwich_norms else (2, 0)
    alike = spec.hidden_size * (3 * spec.intermediate_size + num_norms) + num_scalars
    layers = 0
    for layer in spec.layers:
        key_heads = (1 if layer.value_from_keys else 2) * layer.num_key_value_heads
        heads = 2 * spec.num_attention_heads + key_heads
        layers += alike + layer.head_dim * (spec.hidden_size * heads + 2)
    embedding = spec.vocab_size * spec.hidden_size
    head = 0 if spec.tie_word_embeddings else embedding
    total = embedding + head + layers + spec.hidden_size
    return {"embedding": embedding, "head": head, "layers": layers, "total": total}
