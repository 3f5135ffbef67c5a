"""The demo's target as a module to train: a dense Qwen3 decoder, equal to Hugging Face's by test.

Of its own so that training starts without transformers' modelling code (4 s of two cores) and runs on torch's fused
norms; the parameters have the names of `Qwen3ForCausalLM`, and what is saved loads there. For training on short rows
only: no cache, no dropout. Everything else in deepspec uses `deepspec.targets.model.Target`.

Shapes: B rows, T tokens of a row, D hidden, H heads, d head dim, V vocabulary.
"""

import torch
from torch import Tensor, nn

from deepspec.drafts.layers import GatedMlp, RMSNorm
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec
from deepspec.targets.layers import attend
from deepspec.targets.rotary import Rotary, rotate

Rotations = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal attention with grouped heads, and norms on queries and keys."""

    def __init__(self, spec: TargetSpec) -> None:
        super().__init__()
        family = family_of(spec)
        queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self._head_dim = spec.head_dim
        self._scale = spec.attention_scale
        self.q_proj = nn.Linear(spec.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec, family)
        self.k_norm = RMSNorm(spec.head_dim, spec, family)

    def forward(self, x_BTD: Tensor, rotations: Rotations) -> Tensor:
        """Attention's branch [B, T, D]."""
        queries_BTHd = rotate(self.q_norm(self._heads(self.q_proj(x_BTD))), *rotations)
        keys_BTHd = rotate(self.k_norm(self._heads(self.k_proj(x_BTD))), *rotations)
        values_BTHd = self._heads(self.v_proj(x_BTD))
        attended_BHTd = attend(
            queries_BTHd.transpose(1, 2),
            keys_BTHd.transpose(1, 2),
            values_BTHd.transpose(1, 2),
            None,
            scale=self._scale,
            causal=True,
        )
        branch: Tensor = self.o_proj(attended_BHTd.transpose(1, 2).flatten(2))
        return branch

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self._head_dim)


class Layer(nn.Module):
    """A decoder layer with two norms."""

    def __init__(self, spec: TargetSpec) -> None:
        super().__init__()
        family = family_of(spec)
        self.self_attn = Attention(spec)
        self.mlp = GatedMlp(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec, family)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec, family)

    def forward(self, x_BTD: Tensor, rotations: Rotations) -> Tensor:
        """The residual stream after this layer."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotations)
        after: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return after


class Body(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, spec: TargetSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec, family_of(spec))
        self._rotary = Rotary(spec)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Final states [B, T, D] of rows that all begin at position 0; padding belongs on the right."""
        x_BTD = self.embed_tokens(input_ids_BT)
        length = input_ids_BT.shape[1]
        positions_T = torch.arange(length, device=input_ids_BT.device)
        rotations = self._rotary.lookup(positions_T, x_BTD.dtype, limit=length)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotations)
        final_BTD: Tensor = self.norm(x_BTD)
        return final_BTD


class Network(nn.Module):
    """The whole model; its head is not tied to its embedding.

    Args:
        spec: its shape, of the family "qwen3".
        seed: of the initial weights: normal with `initializer_range`, norms 1.
    """

    def __init__(self, spec: TargetSpec, seed: int) -> None:
        super().__init__()
        self.model = Body(spec)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in sorted(self.named_parameters()):
                if name.endswith("norm.weight"):
                    weight.fill_(1.0)
                else:
                    weight.normal_(0.0, spec.initializer_range, generator=generator)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Final states [B, T, D]; `lm_head` makes logits of those that matter."""
        final_BTD: Tensor = self.model(input_ids_BT)
        return final_BTD
