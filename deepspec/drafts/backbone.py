"""The parallel body of block drafts: decoder layers of the target's family over `[context ; block]`.

Queries come from the block; keys and values from the context features (which do not pass a layer's input norm) and from
the normed block states, through the same projections. The context features are the same for every layer. Assembled
from a `Family`, never forked per model. Source: DFlash and DSpark papers, spec page "Algorithms".

Not here: losses, decoding, and which blocks are trained.

Shapes: T packed context tokens, N block positions, L captured layers, D hidden, H heads, d head dim.
"""

from functools import partial

import torch
from torch import Tensor, nn

from deepspec.drafts.attention import Groups, block_attention
from deepspec.targets.family import Family, TargetSpec
from deepspec.targets.layers import ACTIVATIONS, rms_norm
from deepspec.targets.rotary import rotate

Rotations = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """RMSNorm with a weight, in the family's order of casting and scaling."""

    def __init__(self, size: int, spec: TargetSpec, family: Family) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self._norm = partial(rms_norm, eps=spec.rms_norm_eps, casts_first=family.norm_casts_first)

    def forward(self, x: Tensor) -> Tensor:
        """Norm of [..., size]."""
        return self._norm(x, self.weight)


class BlockAttention(nn.Module):
    """Attention of the blocks over their context and themselves."""

    def __init__(self, spec: TargetSpec, family: Family) -> None:
        super().__init__()
        queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self._head_dim = spec.head_dim
        self._scale = spec.attention_scale
        self._value_norm = (
            partial(rms_norm, weight=None, eps=spec.rms_norm_eps, casts_first=family.norm_casts_first)
            if family.value_norm
            else None
        )
        self.q_proj = nn.Linear(spec.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.v_proj = None if spec.value_from_keys else nn.Linear(spec.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec, family)
        self.k_norm = RMSNorm(spec.head_dim, spec, family)

    def forward(
        self,
        block_ND: Tensor,
        context_TD: Tensor,
        at_block: Rotations,
        at_context: Rotations,
        groups: Groups,
    ) -> Tensor:
        """Attention's branch [N, D].

        Args:
            block_ND: normed block states.
            context_TD: context features.
            at_block, at_context: rotations of their positions.
            groups: who sees what.
        """
        queries_NHd = rotate(self.q_norm(self._heads(self.q_proj(block_ND))), *at_block)
        block_keys, block_values = self.keys_and_values(block_ND, at_block)
        context_keys, context_values = self.keys_and_values(context_TD, at_context)
        attended_NHd = block_attention(
            queries_NHd, block_keys, block_values, context_keys, context_values, groups, scale=self._scale
        )
        branch: Tensor = self.o_proj(attended_NHd.flatten(1))
        return branch

    def keys_and_values(self, x_ND: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor]:
        """Keys (normed, rotated) and values [N, H, d] of positions, context and block alike."""
        raw_NHd = self._heads(self.k_proj(x_ND))
        values_NHd = raw_NHd if self.v_proj is None else self._heads(self.v_proj(x_ND))
        if self._value_norm is not None:
            values_NHd = self._value_norm(values_NHd)
        return rotate(self.k_norm(raw_NHd), *rotations), values_NHd

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self._head_dim)


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


class BlockLayer(nn.Module):
    """One layer of the body: the family's decoder layer with block attention."""

    def __init__(self, spec: TargetSpec, family: Family) -> None:
        super().__init__()
        self._sandwich = family.sandwich_norms
        self.self_attn = BlockAttention(spec, family)
        self.mlp = GatedMlp(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec, family)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec, family)
        if self._sandwich:
            self.pre_feedforward_layernorm = RMSNorm(spec.hidden_size, spec, family)
            self.post_feedforward_layernorm = RMSNorm(spec.hidden_size, spec, family)
            self.register_buffer("layer_scalar", torch.ones(1))

    def forward(
        self, x_ND: Tensor, context_TD: Tensor, at_block: Rotations, at_context: Rotations, groups: Groups
    ) -> Tensor:
        """The blocks' residual stream after this layer; arguments as in `BlockAttention`."""
        branch = self.self_attn(self.input_layernorm(x_ND), context_TD, at_block, at_context, groups)
        if not self._sandwich:
            x_ND = x_ND + branch
            after: Tensor = x_ND + self.mlp(self.post_attention_layernorm(x_ND))
            return after
        x_ND = x_ND + self.post_attention_layernorm(branch)
        x_ND = x_ND + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_ND)))
        scaled: Tensor = x_ND * self.get_buffer("layer_scalar")
        return scaled
