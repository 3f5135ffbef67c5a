"""The network of autoregressive drafts that are trained by unrolling them, and its loss.

One decoder layer (or a few) of the target's family whose attention reads the next token's embedding as well as the
hidden state. Nothing is detached: gradients run through all steps and through the keys and values that later steps see.
The next step gets the output before the final norm.

No tensor of all logits is ever made. Source: EAGLE-3 paper (arXiv 2503.01840), spec page "Algorithms", Eagle3.

Shapes: T packed tokens, N rows of a step, M supervised rows of all steps, S steps, L captured layers, D hidden,
H heads, d head dim, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from deepspec.drafts.algorithm import LossOutput
from deepspec.drafts.attention.contracts import AttentionGroups, CausalAttention, GroupAttention, Projected
from deepspec.drafts.layers import DraftModule, KeysValues, RMSNorm, UnrolledLayer
from deepspec.drafts.metrics import acceptance_metrics
from deepspec.drafts.unrolled.supervision import UnrollSupervision
from deepspec.losses import chunk_sweep, chunked
from deepspec.states.batch import PackedStates
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec


class UnrolledOutput(NamedTuple):
    """What a forward hands to the loss; a tuple, so that what wraps a module sees tensors.

    Args:
        hidden_MD: normed outputs of the supervised rows, step by step.
        head_VD: the target's head.
        softcap: the target's logit soft cap, if any.
    """

    hidden_MD: Tensor
    head_VD: Tensor
    softcap: float | None


class UnrolledDraft(DraftModule):
    """An autoregressive draft; parameter names as in the public checkpoints.

    Args:
        layer_ids: the target's layers whose outputs it reads, strictly increasing.
        spec: the target.
        num_layers: decoder layers.
        num_steps: S, and tokens proposed per round.
    """

    def __init__(self, layer_ids: tuple[int, ...], spec: TargetSpec, *, num_layers: int, num_steps: int) -> None:
        super().__init__(layer_ids, spec)
        family = family_of(spec)
        self.num_steps = num_steps
        self.layers = nn.ModuleList(UnrolledLayer(spec, family) for _ in range(num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec, family)

    @property
    def body(self) -> "Sequence[UnrolledLayer]":
        """The decoder layers, typed."""
        return cast("Sequence[UnrolledLayer]", self.layers)

    @property
    def parts(self) -> Sequence[str]:
        """None: every step calls every layer."""
        return []

    def forward(self, batch: PackedStates, supervision: UnrollSupervision) -> UnrolledOutput:
        """Normed outputs of the supervised rows of all steps."""
        dtype, device = self.fc.weight.dtype, batch.states_TLD.device
        backend = self.attention_backend(device)
        limit = max(batch.lengths) + self.num_steps
        x: Tensor = self.fc(batch.states_TLD.to(dtype).flatten(-2))
        context: list[KeysValues] = []
        own: list[list[KeysValues]] = [[] for _ in self.body]
        hidden = []
        for number, step in enumerate(supervision.steps):
            if number:
                x = x[step.kept_N]
                own = [[(keys[step.kept_N], values[step.kept_N]) for keys, values in layer] for layer in own]
                groups = AttentionGroups(
                    step.seen_N,
                    step.seen,
                    step.rows_per_document,
                    batch.lengths,
                    queries_per_group=1,
                    own_per_group=number,
                )
                attend_groups = backend.groups(groups, dtype)
            embedded_ND = self.embed(batch.input_ids_T[step.next_N])
            rotations = self.rotary.lookup(step.positions_N, dtype, limit=limit)
            for index, layer in enumerate(self.body):
                if number == 0:
                    attend = _self_attention(backend.causal(batch.lengths, device), layer.self_attn.scale)
                    x, pair = self.layer(layer, embedded_ND, x, rotations, attend)
                    context.append(pair)
                else:
                    attend = _context_attention(attend_groups, context[index], own[index], layer.self_attn.scale)
                    x, pair = self.layer(layer, embedded_ND, x, rotations, attend)
                    own[index].append(pair)
            hidden.append(self.norm(x[step.supervised_M]))
        return UnrolledOutput(torch.cat(hidden), self.lm_head.weight, self.spec.logit_softcap)


Attend = Callable[[Tensor, KeysValues], Tensor]


def _self_attention(attend: CausalAttention, scale: float) -> Attend:
    """What step 0 sees: its document up to itself."""
    return lambda queries, pair: attend(queries, *pair, scale=scale)


def _context_attention(attend: GroupAttention, context: KeysValues, earlier: list[KeysValues], scale: float) -> Attend:
    """What a later step sees: step 0 up to its index, and its own keys of the steps since."""
    before = tuple(earlier)

    def attend_step(queries: Tensor, pair: KeysValues) -> Tensor:
        # A row's keys of all steps lie together.
        keys, values = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*before, pair, strict=True))
        return attend(Projected(queries, keys, values, *context), scale=scale)

    return attend_step


def unrolled_draft(module: nn.Module) -> UnrolledDraft:
    """The autoregressive draft that `module` is.

    Raises:
        TypeError: it is another module (a wrapper for several processes, say).
    """
    if not isinstance(module, UnrolledDraft):
        raise TypeError(f"expected an UnrolledDraft, got {type(module).__name__}")
    return module


def unrolled_loss(
    draft: nn.Module, batch: PackedStates, supervision: UnrollSupervision, totals: Mapping[str, float]
) -> LossOutput:
    """Loss and metrics of one micro-batch; see `LossOutput`.

    The mean over documents of `Σ_s decay^s · Σ_t soft-CE / length`: per document, because in a mean over tokens long
    ones dominate and acceptance falls.

    Args:
        draft: an `UnrolledDraft`, or what wraps one for several processes.
        batch: packed documents with their states.
        supervision: from `unroll_supervision`.
        totals: denominators of the whole optimizer step.
    """
    output: UnrolledOutput = draft(batch, supervision)
    weights_M = torch.cat([step.weights_M for step in supervision.steps])
    predicted_M = torch.cat([step.next_N[step.supervised_M] for step in supervision.steps])
    sources = chunk_sweep.LogitSources(
        hidden_ND=output.hidden_MD,
        final_ND=batch.final_TD[predicted_M].to(output.head_VD.dtype),
        head_VD=output.head_VD,
        softcap=output.softcap,
    )
    weights_M = weights_M.to(sources.wide_dtype) / (totals["soft_ce"] or 1.0)
    soft = chunked.soft_cross_entropy(sources, weights_M)
    summed = soft.loss.detach() * totals["soft_ce"]
    return LossOutput(soft.loss, _metrics(supervision, soft.acceptance_N, summed))


def _metrics(supervision: UnrollSupervision, acceptance_M: Tensor, summed: Tensor) -> dict[str, Tensor]:
    """Metrics as (sum, count): the loss, acceptance per step, expected acceptance length."""
    return acceptance_metrics(
        acceptance_M,
        supervision.places_M,
        num_chains=supervision.num_chains,
        num_positions=len(supervision.steps),
        more={"loss_soft_ce": (summed, supervision.totals["soft_ce"])},
    )
