"""The bodies of drafts: decoder layers of the target's family, assembled from a `Family`, never forked per model.

`BlockLayer`, of block drafts, works over `[context ; block]`: queries come from the block; keys and values from the
context features (which do not pass a layer's input norm) and from the normed block states, through the same
projections. The context features are the same for every layer. `UnrolledLayer`, of autoregressive drafts, reads a
token's embedding as well as the hidden state. Source: DFlash, DSpark and EAGLE-3 papers, spec page "Algorithms".

A layer is two regions with the attention between them. Each region is one graph when it is compiled: the same for all
layers, and for any number of tokens.

Not here: losses, decoding, and what is trained.

Shapes: T packed context tokens, N block positions, D hidden, H heads, d head dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepspec.drafts.attention.choose import BackendName, choose_backend
from deepspec.drafts.attention.contracts import AttentionBackend, GroupAttention, Projected
from deepspec.drafts.initialization import unset_embedding
from deepspec.targets.family import Family, TargetSpec
from deepspec.targets.layers import ACTIVATIONS, rms_norm
from deepspec.targets.rotary import Rotary, rotate

Rotations = tuple[Tensor, Tensor]
KeysValues = tuple[Tensor, Tensor]
Result = TypeVar("Result")

COMPILER = "inductor"
"""What `torch.compile` hands graphs to."""


@dataclass(frozen=True)
class Computation:
    """How a draft computes when it is trained; nothing of it changes the result, to rounding.

    Args:
        attention: the backend, or its name.
        compiled: whether the layers' regions are compiled.
        recomputed: whether a layer's inner activations are computed again in the backward instead of kept.
    """

    attention: BackendName | AttentionBackend = "auto"
    compiled: bool = False
    recomputed: bool = False


class DraftModule(nn.Module):
    """What every draft has: the target's tables, a projection of its states, positions, and a way to compute.

    Args:
        layer_ids: the target's layers whose outputs it reads, strictly increasing.
        spec: the target.
    """

    layers: nn.ModuleList

    def __init__(self, layer_ids: tuple[int, ...], spec: TargetSpec) -> None:
        super().__init__()
        self.layer_ids = layer_ids
        self.spec = spec
        self.computation = Computation()
        self.embed_tokens = unset_embedding(spec.vocab_size, spec.hidden_size)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.fc = nn.Linear(len(layer_ids) * spec.hidden_size, spec.hidden_size, bias=False)
        self.rotary = Rotary(spec)

    @property
    def body(self) -> "Sequence[DecoderLayer]":
        """The decoder layers, typed."""
        return cast("Sequence[DecoderLayer]", self.layers)

    @property
    def parts(self) -> Sequence[str]:
        """Names of the submodules that a forward calls once each."""
        return [f"layers.{index}" for index in range(len(self.layers))]

    def compute_as(self, computation: Computation) -> None:
        """Compute like that from now on."""
        self.computation = computation
        for layer in self.body:
            layer.compiled = computation.compiled

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings [..., D], scaled as the target's."""
        return scaled_embedding(input_ids, self.embed_tokens.weight, self.spec)

    def attention_backend(self, device: torch.device) -> AttentionBackend:
        """What computes attention there."""
        chosen = self.computation.attention
        return choose_backend(chosen, device) if isinstance(chosen, str) else chosen

    def layer(self, layer: Callable[..., Result], *inputs: Any) -> Result:
        """What a layer makes of its inputs."""
        if not (self.computation.recomputed and torch.is_grad_enabled()):
            return layer(*inputs)
        from torch.utils.checkpoint import checkpoint

        # Nothing in a draft draws random numbers.
        result: Result = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return result


@cache
def _compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    return torch.compile(function, dynamic=True, backend=COMPILER)


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
        self.compiled = False
        self._sandwich = family.sandwich_norms
        self.self_attn = Attention(spec, family, attention_input_size)
        self.mlp = GatedMlp(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec, family)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec, family)
        if self._sandwich:
            self.pre_feedforward_layernorm = RMSNorm(spec.hidden_size, spec, family)
            self.post_feedforward_layernorm = RMSNorm(spec.hidden_size, spec, family)
            self.register_buffer("layer_scalar", torch.ones(1))

    def region(self, function: Callable[..., Result], rows: int) -> Callable[..., Result]:
        """A method of this class, taking the layer first, compiled if the draft is.

        Graphs hold for any number of rows but none and one, which torch's compiler takes for constants.
        """
        return _compiled(function) if self.compiled and rows > 1 else function

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream [..., D] after this layer, from the one before it and attended heads [..., H, d]."""
        branch = self.self_attn.branch(attended)
        if not self._sandwich:
            x = x + branch
            after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
            return after
        x = x + self.post_attention_layernorm(branch)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        # Not a parameter: casting a module's parameters would leave it wide, and one wide number widens the stream.
        scaled: Tensor = x * self.get_buffer("layer_scalar").to(x.dtype)
        return scaled


class BlockLayer(DecoderLayer):
    """A layer over `[context ; block]`."""

    def __init__(self, spec: TargetSpec, family: Family) -> None:
        super().__init__(spec, family, spec.hidden_size)

    def project(
        self, x_ND: Tensor, context_TD: Tensor, at_block: Rotations, at_context: Rotations
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values of the blocks, keys and values of the context; [N or T, heads, d]."""
        normed_ND = self.input_layernorm(x_ND)
        return (
            self.self_attn.queries(normed_ND, at_block),
            *self.self_attn.keys_and_values(normed_ND, at_block),
            *self.self_attn.keys_and_values(context_TD, at_context),
        )

    def forward(
        self, x_ND: Tensor, context_TD: Tensor, at_block: Rotations, at_context: Rotations, attend: GroupAttention
    ) -> Tensor:
        """The blocks' residual stream after this layer.

        Args:
            x_ND: the one before it.
            context_TD: context features.
            at_block, at_context: rotations of their positions.
            attend: who sees what.
        """
        rows = min(len(x_ND), len(context_TD))
        projected = self.region(BlockLayer.project, rows)(self, x_ND, context_TD, at_block, at_context)
        attended = attend(Projected(*projected), scale=self.self_attn.scale)
        return self.region(DecoderLayer.finish, rows)(self, x_ND, attended)


class UnrolledLayer(DecoderLayer):
    """A layer whose attention reads `[norm(embedding) ; norm(hidden)]`, twice as wide as the residual stream."""

    def __init__(self, spec: TargetSpec, family: Family) -> None:
        super().__init__(spec, family, 2 * spec.hidden_size)
        self.hidden_norm = RMSNorm(spec.hidden_size, spec, family)

    def attention_input(self, embedded: Tensor, x: Tensor) -> Tensor:
        """What the attention projects [..., 2D], of embeddings and residual stream [..., D]."""
        return torch.cat((self.input_layernorm(embedded), self.hidden_norm(x)), dim=-1)

    def project(self, embedded: Tensor, x: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [..., heads, d] of embeddings and residual stream [..., D]."""
        read = self.attention_input(embedded, x)
        return self.self_attn.queries(read, rotations), *self.self_attn.keys_and_values(read, rotations)

    def forward(
        self, embedded_ND: Tensor, x_ND: Tensor, rotations: Rotations, attend: Callable[[Tensor, KeysValues], Tensor]
    ) -> tuple[Tensor, KeysValues]:
        """The residual stream after this layer, and its keys and values.

        Args:
            embedded_ND: embeddings of the tokens that are read.
            x_ND: the residual stream before it.
            rotations: of the positions.
            attend: (queries, own keys and values) -> attended heads [N, H, d].
        """
        rows = len(x_ND)
        queries, keys, values = self.region(UnrolledLayer.project, rows)(self, embedded_ND, x_ND, rotations)
        attended = attend(queries, (keys, values))
        return self.region(DecoderLayer.finish, rows)(self, x_ND, attended), (keys, values)
