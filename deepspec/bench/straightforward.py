"""A draft's training as one would first write it: what benches compare with. Nothing else may use it.

Every document attends through one dense mask, with keys repeated for grouped queries; the loss is taken by autograd
over the full logits of all supervised positions; documents are padded to the longest of their batch. In the reference's
favour: only supervised positions pass the heads, and documents with few blocks are not padded with empty ones.

Shapes: T packed context tokens, N queries or supervised positions, M own keys, H heads, d head dim, D hidden,
V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepspec.drafts.attention.contracts import (
    AttentionBackend,
    AttentionGroups,
    CausalAttention,
    GroupAttention,
    Projected,
)
from deepspec.drafts.block.module import BlockOutput
from deepspec.drafts.block.supervision import BlockSupervision
from deepspec.drafts.unrolled.module import UnrolledOutput
from deepspec.drafts.unrolled.supervision import UnrollSupervision
from deepspec.errors import RecipeError
from deepspec.losses import terms
from deepspec.losses.chunk_sweep import LogitSources
from deepspec.states.batch import PackedStates


class _Dense:
    """See `AttentionBackend`."""

    def groups(self, groups: AttentionGroups, dtype: torch.dtype) -> GroupAttention:
        return _DenseGroups(groups, dtype)

    def causal(self, lengths: Sequence[int], device: torch.device) -> CausalAttention:  # noqa: ARG002
        return _DenseCausal(list(lengths))


DENSE: AttentionBackend = _Dense()


class _DenseGroups:
    """See `GroupAttention`."""

    def __init__(self, groups: AttentionGroups, dtype: torch.dtype) -> None:
        counts = list(groups.groups_per_document)
        self._lengths = list(groups.lengths)
        self._query_sizes = [count * groups.queries_per_group for count in counts]
        self._own_sizes = [count * groups.own_per_group for count in counts]
        self._masks = []
        for seen_A, length in zip(torch.split(groups.seen_A, counts), self._lengths, strict=True):
            seen_N1 = seen_A.repeat_interleave(groups.queries_per_group)[:, None]
            numbers_A = torch.arange(len(seen_A), device=seen_A.device)
            query_N1 = numbers_A.repeat_interleave(groups.queries_per_group)[:, None]
            before = torch.arange(length, device=seen_A.device) < seen_N1
            visible = torch.cat((before, query_N1 == numbers_A.repeat_interleave(groups.own_per_group)), dim=1)
            self._masks.append(torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min))

    def __call__(self, projected: Projected, *, scale: float) -> Tensor:
        parts = zip(
            torch.split(projected.queries_NHd, self._query_sizes),
            torch.split(projected.own_keys_MHd, self._own_sizes),
            torch.split(projected.own_values_MHd, self._own_sizes),
            torch.split(projected.context_keys_THd, self._lengths),
            torch.split(projected.context_values_THd, self._lengths),
            self._masks,
            strict=True,
        )
        attended = []
        for queries, own_keys, own_values, context_keys, context_values, mask in parts:
            keys, values = torch.cat((context_keys, own_keys)), torch.cat((context_values, own_values))
            attended.append(_repeated(queries, keys, values, mask, scale))
        return torch.cat(attended)


class _DenseCausal:
    """See `CausalAttention`."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def __call__(self, queries_THd: Tensor, keys_THd: Tensor, values_THd: Tensor, *, scale: float) -> Tensor:
        split = [torch.split(x, self._lengths) for x in (queries_THd, keys_THd, values_THd)]
        return torch.cat([_repeated(q, k, v, None, scale) for q, k, v in zip(*split, strict=True)])


def _repeated(queries_NHd: Tensor, keys_KHd: Tensor, values_KHd: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    groups = queries_NHd.shape[1] // keys_KHd.shape[1]
    queries = queries_NHd.transpose(0, 1)[None]
    keys, values = (x.repeat_interleave(groups, dim=1).transpose(0, 1)[None] for x in (keys_KHd, values_KHd))
    attended = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return attended[0].transpose(0, 1)


def logits(sources: LogitSources) -> tuple[Tensor, Tensor]:
    """All logits of draft and target, [N, V] fp32 (fp64 stays fp64); the target's without gradient."""

    def cap(logits_NV: Tensor) -> Tensor:
        limit = sources.softcap
        return terms.wide(logits_NV) if limit is None else limit * torch.tanh(terms.wide(logits_NV) / limit)

    draft_NV = cap(F.linear(sources.hidden_ND, sources.head_VD))
    if sources.factors_Nr is not None and sources.factor_head_Vr is not None:
        draft_NV = draft_NV + terms.wide(F.linear(sources.factors_Nr, sources.factor_head_Vr))
    with torch.no_grad():
        return draft_NV, cap(F.linear(sources.final_ND, sources.head_VD))


def loss(draft: nn.Module, batch: PackedStates, supervision: Any, totals: Mapping[str, float]) -> Tensor:
    """Loss of one micro-batch, as `Algorithm.loss` defines it.

    Raises:
        RecipeError: there is no straightforward loss for this draft's output.
    """
    output = draft(batch, supervision)
    if isinstance(output, BlockOutput):
        return _block_loss(output, batch, supervision, totals)
    if isinstance(output, UnrolledOutput):
        return _unrolled_loss(output, batch, supervision, totals)
    raise RecipeError(
        f"there is no straightforward loss of {type(output).__name__}.",
        where="draft.algorithm",
        remedy="Name a recipe of another algorithm.",
    )


def _block_loss(
    output: BlockOutput, batch: PackedStates, supervision: BlockSupervision, totals: Mapping[str, float]
) -> Tensor:
    final_ND = batch.final_TD[supervision.draft_positions_AK.flatten()[supervision.rows_N]].to(output.head_VD.dtype)
    draft_NV, target_NV = logits(
        LogitSources(
            output.hidden_ND,
            final_ND,
            output.head_VD,
            output.softcap,
            output.factors_Nr,
            output.factor_head_Vr,
        )
    )
    l1_N = terms.l1_distance(draft_NV, target_NV)
    losses_N = {"ce": terms.cross_entropy(draft_NV, supervision.labels_N), "tv": l1_N}
    if output.confidence_N is not None:
        losses_N["confidence"] = terms.confidence_loss(output.confidence_N, terms.acceptance(l1_N))
    weights_N = supervision.weights_N.to(draft_NV.dtype)
    loss_weights = supervision.loss_weights.items()
    parts = [weight * (weights_N * losses_N[term]).sum() / totals[term] for term, weight in loss_weights]
    return torch.stack(parts).sum()


def _unrolled_loss(
    output: UnrolledOutput, batch: PackedStates, supervision: UnrollSupervision, totals: Mapping[str, float]
) -> Tensor:
    predicted_M = torch.cat([step.next_N[step.supervised_M] for step in supervision.steps])
    final_MD = batch.final_TD[predicted_M].to(output.head_VD.dtype)
    draft_MV, target_MV = logits(LogitSources(output.hidden_MD, final_MD, output.head_VD, output.softcap))
    weights_M = torch.cat([step.weights_M for step in supervision.steps]).to(draft_MV.dtype)
    return (weights_M * terms.soft_cross_entropy(draft_MV, target_MV)).sum() / totals["soft_ce"]


def padded(batch: PackedStates) -> PackedStates:
    """The documents at the length of the longest; what fills them up is not supervised."""
    longest = max(batch.lengths)

    def fill(tensor: Tensor) -> Tensor:
        return torch.cat(
            [F.pad(x, [0, 0] * (x.dim() - 1) + [0, longest - len(x)]) for x in torch.split(tensor, list(batch.lengths))]
        )

    return replace(
        batch,
        input_ids_T=fill(batch.input_ids_T),
        loss_mask_T=fill(batch.loss_mask_T),
        lengths=(longest,) * len(batch.lengths),
        states_TLD=fill(batch.states_TLD),
        final_TD=fill(batch.final_TD),
    )
