"""The bodies of drafts: decoder layers of the target's family, assembled from a `Family`, never forked per model.

`BlockLayer`, of block drafts, works over `[context ; block]`: queries come from the block; keys and values from the
context features (which do not pass a layer's input norm) and from the normed block states, through the same
projections. The context features are the same for every layer. `UnrolledLayer`, of autoregressive drafts, reads a
token's embedding beside the hidden state. Source: DFlash, DSpark and EAGLE-3 papers, spec page "Algorithms".

Not here: losses, decoding, and what is trained.

Shapes: T packed context tokens, N block positions, D hidden, H heads, d head dim.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepspec.drafts.attention import Groups, block_attention
from deepspec.targets.family import Family, TargetSpec
from deepspec.targets.layers import ACTIVATIONS, rms_norm
from deepspec.targets.rotary import rotate

Rotations = tuple[Tensor, Tensor]


def scaled_embedding(input_ids: Tensor, table_VD: Tensor, spec: TargetSpec) -> Tensor:
    """Embeddings [..., D], scaled as the target's, which rounds the scale to its dtype before it multiplies."""
    embedded = F.embedding(input_ids, table_VD)
    return embedded if spec.embedding_scale == 1.0 else embedded * embedded.new_tensor(spec.embedding_scale)


class RMSNorm(nn.Module):
    """RMSNorm with a weight, in the family's order of casting and scaling."""

    def __init__(self, size: int, spec: TargetSpec, family: Family) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self._norm = partial(rms_norm, eps=spec.rms_norm_eps, casts_first=family.norm_casts_first)

    def forward(self, x: Tensor) -> Tensor:
        """Norm of [..., size]."""
        return self._norm(x, self.weight)


class Attention(nn.Module):
    """Projections and norms of an attention; who sees whom is the caller's.

    Args:
        spec, family: the target and its family.
        input_size: width of what is projected.
    """

    def __init__(self, spec: TargetSpec, family: Family, input_size: int) -> None:
        super().__init__()
        queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self._head_dim = spec.head_dim
        self.scale = spec.attention_scale
        self._value_norm = (
            partial(rms_norm, weight=None, eps=spec.rms_norm_eps, casts_first=family.norm_casts_first)
            if family.value_norm
            else None
        )
        self.q_proj = nn.Linear(input_size, queries, bias=False)
        self.k_proj = nn.Linear(input_size, keys, bias=False)
        self.v_proj = None if spec.value_from_keys else nn.Linear(input_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec, family)
        self.k_norm = RMSNorm(spec.head_dim, spec, family)

    def queries(self, x: Tensor, rotations: Rotations) -> Tensor:
        """Queries (normed, rotated) [..., H, d] of positions [..., input_size]."""
        return rotate(self.q_norm(self._heads(self.q_proj(x))), *rotations)

    def keys_and_values(self, x: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor]:
        """Keys (normed, rotated) and values [..., H, d] of positions [..., input_size], context and block alike."""
        raw = self._heads(self.k_proj(x))
        values = raw if self.v_proj is None else self._heads(self.v_proj(x))
        if self._value_norm is not None:
            values = self._value_norm(values)
        return rotate(self.k_norm(raw), *rotations), values

    def branch(self, attended: Tensor) -> Tensor:
        """What the residual stream gets [..., D] of attended heads [..., H, d]."""
        result: Tensor = self.o_proj(attended.flatten(-2))
        return result

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], x.shape[-1] // self._head_dim, self._head_dim)  # not -1: there may be no rows


class GatedMlp(nn.Module):
    """`down(act(gate(x)) ⊙ up(x))`."""

    def __init__(self, spec: TargetSpec) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[spec.hidden_act]
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """MLP of [..., D]."""
        down: Tensor = self.down_proj(self._activation(self.gate_proj(x)) * self.up_proj(x))
        return down


class DecoderLayer(nn.Module):
    """One layer of the family, around any attention.

    Args:
        spec, family: the target and its family.
        attention_input_size: width of what its attention projects.
    """

    def __init__(self, spec: TargetSpec, family: Family, attention_input_size: int) -> None:
        super().__init__()
        self._sandwich = family.sandwich_norms
        self.self_attn = Attention(spec, family, attention_input_size)
        self.mlp = GatedMlp(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec, family)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec, family)
        if self._sandwich:
            self.pre_feedforward_layernorm = RMSNorm(spec.hidden_size, spec, family)
            self.post_feedforward_layernorm = RMSNorm(spec.hidden_size, spec, family)
            self.register_buffer("layer_scalar", torch.ones(1))

    def finish(self, x: Tensor, branch: Tensor) -> Tensor:
        """The residual stream [..., D] after this layer, from the one before it and the attention's branch."""
        if not self._sandwich:
            x = x + branch
            after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
            return after
        x = x + self.post_attention_layernorm(branch)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        scaled: Tensor = x * self.get_buffer("layer_scalar")
        return scaled


class BlockLayer(DecoderLayer):
    """A layer over `[context ; block]`."""

    def __init__(self, spec: TargetSpec, family: Family) -> None:
        super().__init__(spec, family, spec.hidden_size)

    def forward(
        self, x_ND: Tensor, context_TD: Tensor, at_block: Rotations, at_context: Rotations, groups: Groups
    ) -> Tensor:
        """The blocks' residual stream after this layer.

        Args:
            x_ND: the one before it.
            context_TD: context features.
            at_block, at_context: rotations of their positions.
            groups: who sees what.
        """
        attention = self.self_attn
        normed_ND = self.input_layernorm(x_ND)
        keys, values = attention.keys_and_values(normed_ND, at_block)
        attended = block_attention(
            attention.queries(normed_ND, at_block),
            keys,
            values,
            *attention.keys_and_values(context_TD, at_context),
            groups,
            scale=attention.scale,
        )
        return self.finish(x_ND, attention.branch(attended))


class UnrolledLayer(DecoderLayer):
    """A layer whose attention reads `[norm(embedding) ; norm(hidden)]`, twice as wide as the residual stream."""

    def __init__(self, spec: TargetSpec, family: Family) -> None:
        super().__init__(spec, family, 2 * spec.hidden_size)
        self.hidden_norm = RMSNorm(spec.hidden_size, spec, family)

    def attention_input(self, embedded: Tensor, x: Tensor) -> Tensor:
        """What the attention projects [..., 2D], of embeddings and residual stream [..., D]."""
        return torch.cat((self.input_layernorm(embedded), self.hidden_norm(x)), dim=-1)
