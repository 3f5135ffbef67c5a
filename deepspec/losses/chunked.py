"""The loss terms of `terms.py` without logits: chunks of rows over the whole vocabulary, with exact gradients.

Every position's weight is known before the forward, so the gradient is taken *in the forward*, while a chunk's logits
are there, and the backward only scales it: nothing is recomputed and no tensor of N·V elements is ever made.

Numbers are those of the eager twins: products in the inputs' dtype, everything else in fp32 (fp64 stays fp64).
Gradients reach the hidden states, the factors and the factors' head; the target's head and states are frozen.
Not supported: differentiating twice. Not here: how chunks are cut, made and summed (chunk_sweep.py).
Source: spec page "Algorithms", "The cost that matters".

Shapes: N supervised positions, n of them in a chunk, D hidden, r rank, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.losses.chunk_sweep import Chunk, LogitSources, attach, pieces, sweep

# Columns of an elementwise pass at a time: each finds in the cache what the last one left.
# Sums over a vocabulary become sums of sums: torch's softmax, norm and dot product are off by 1e-5 to 2e-4 in fp32.
_PASS_COLUMNS = 4096


@dataclass(frozen=True)
class BlockTerms:
    """Loss and terms of DFlash and DSpark; see `block_terms`.

    Args:
        loss: scalar, the weighted sum; differentiable.
        ce_N: `terms.cross_entropy`, detached.
        l1_N: `terms.l1_distance`, detached.
    """

    loss: Tensor
    ce_N: Tensor
    l1_N: Tensor


@dataclass(frozen=True)
class SoftTerms:
    """Loss and terms of Eagle3; see `soft_cross_entropy`.

    Args:
        loss: scalar, the weighted sum; differentiable.
        ce_N: `terms.soft_cross_entropy`, detached.
        acceptance_N: `terms.acceptance`, detached.
    """

    loss: Tensor
    ce_N: Tensor
    acceptance_N: Tensor


def block_terms(
    sources: LogitSources,
    labels_N: Tensor,
    *,
    ce_weights_N: Tensor | None,
    l1_weights_N: Tensor | None,
    factor_head_gradient_Vr: Tensor | None = None,
    rows_per_chunk: int | None = None,
) -> BlockTerms:
    """`Σ_n ce_weights·ce + l1_weights·l1`, and both terms per position.

    Args:
        sources: what the logits are made of.
        labels_N: token each position has to predict, int64.
        ce_weights_N, l1_weights_N: everything each term is multiplied with (position weight, loss weight, 1 / total);
            None for a term that is only logged.
        factor_head_gradient_Vr: see `preallocated_gradient`. With it, W_2's gradient is added to it *now*, in the
            forward, so that no second tensor of that size is made; the loss must then enter the one that is
            differentiated with weight 1, and must be differentiated once.
        rows_per_chunk: by default what fits the budget.
    """
    term = _Block(sources, labels_N, ce_weights_N, l1_weights_N)
    gradients = sweep(sources, term, factor_head_gradient_Vr, rows_per_chunk)
    loss = term.ce_N.new_zeros(())
    for weights_N, value_N in ((ce_weights_N, term.ce_N), (l1_weights_N, term.l1_N)):
        if weights_N is not None:
            loss = loss + (weights_N.to(value_N.dtype) * value_N).sum()
    return BlockTerms(attach(loss, sources, gradients), term.ce_N, term.l1_N)


def soft_cross_entropy(
    sources: LogitSources,
    weights_N: Tensor,
    *,
    factor_head_gradient_Vr: Tensor | None = None,
    rows_per_chunk: int | None = None,
) -> SoftTerms:
    """`Σ_n weights·(-Σ_v p log q)`, and per position that cross-entropy and the acceptance.

    Args:
        sources: what the logits are made of.
        weights_N: everything a position is multiplied with; 0 for those that are not supervised.
        factor_head_gradient_Vr, rows_per_chunk: as in `block_terms`.
    """
    term = _Soft(sources, weights_N)
    gradients = sweep(sources, term, factor_head_gradient_Vr, rows_per_chunk)
    loss = (weights_N.to(term.ce_N.dtype) * term.ce_N).sum()
    return SoftTerms(attach(loss, sources, gradients), term.ce_N, (1 - 0.5 * term.l1_N).clamp(0, 1))


def _exponentials(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into exp(logits - max), in place; returns the rows' maxima and sums, both [n, 1]."""
    max_n1 = logits_nV.amax(-1, keepdim=True)
    sum_n1 = torch.zeros_like(max_n1)
    for columns in pieces(logits_nV.shape[1], _PASS_COLUMNS):
        sum_n1 += logits_nV[:, columns].sub_(max_n1).exp_().sum(-1, keepdim=True)
    return max_n1, sum_n1


class _Block:
    """See `block_terms`."""

    def __init__(
        self, sources: LogitSources, labels_N: Tensor, ce_weights_N: Tensor | None, l1_weights_N: Tensor | None
    ) -> None:
        self._labels_N1 = labels_N[:, None]
        self._ce_weights_N1, self._l1_weights_N1 = (
            None if weights_N is None else weights_N.to(sources.wide_dtype)[:, None]
            for weights_N in (ce_weights_N, l1_weights_N)
        )
        self.ce_N = sources.hidden_ND.new_zeros(len(labels_N), dtype=sources.wide_dtype)
        self.l1_N = torch.zeros_like(self.ce_N)

    def __call__(self, chunk: Chunk, *, gradient: bool) -> None:
        rows = chunk.rows
        at_label_n1 = chunk.draft_nV.gather(1, self._labels_N1[rows])
        draft_max_n1, draft_sum_n1 = _exponentials(chunk.draft_nV)
        _, target_sum_n1 = _exponentials(chunk.target_nV)
        self.ce_N[rows] = ((draft_max_n1 - at_label_n1) + draft_sum_n1.log())[:, 0]
        ce_n1, l1_n1 = (
            weights_N1[rows] if gradient and weights_N1 is not None else None
            for weights_N1 in (self._ce_weights_N1, self._l1_weights_N1)
        )
        # By the logits, ce has the gradient q - onehot and l1 has q·(s - Σ q·s), with s = sign(q - p). The draft's
        # place keeps q times its sum: dividing by that comes with the weights.
        ratio_n1, signed_n1 = draft_sum_n1 / target_sum_n1, torch.zeros_like(draft_sum_n1)
        for columns in chunk.columns(_PASS_COLUMNS):
            q_nv, p_nv = chunk.draft_nV[:, columns], chunk.target_nV[:, columns]
            difference_nv = torch.addcmul(q_nv, p_nv, ratio_n1, value=-1, out=p_nv)
            self.l1_N[rows] += difference_nv.abs().sum(-1)
            if l1_n1 is not None:
                # From here on the target's place holds q·s.
                signed_n1 += difference_nv.sgn_().mul_(q_nv).sum(-1, keepdim=True)
        self.l1_N[rows] /= draft_sum_n1[:, 0]
        if not gradient:
            return
        scale_n1 = torch.zeros_like(draft_sum_n1) if ce_n1 is None else ce_n1 / draft_sum_n1
        if l1_n1 is not None:
            l1_n1 = l1_n1 / draft_sum_n1
            scale_n1 = scale_n1 - l1_n1 * signed_n1 / draft_sum_n1
        for columns in chunk.columns(_PASS_COLUMNS):
            gradient_nv = chunk.draft_nV[:, columns].mul_(scale_n1)
            if l1_n1 is not None:
                gradient_nv.addcmul_(chunk.target_nV[:, columns], l1_n1)
        if ce_n1 is not None:
            chunk.draft_nV.scatter_add_(1, self._labels_N1[rows], -ce_n1)


class _Soft:
    """See `soft_cross_entropy`."""

    def __init__(self, sources: LogitSources, weights_N: Tensor) -> None:
        self._weights_N1 = weights_N.to(sources.wide_dtype)[:, None]
        self.ce_N = sources.hidden_ND.new_zeros(len(weights_N), dtype=sources.wide_dtype)
        self.l1_N = torch.zeros_like(self.ce_N)

    def __call__(self, chunk: Chunk, *, gradient: bool) -> None:
        rows = chunk.rows
        _, target_sum_n1 = _exponentials(chunk.target_nV)
        draft_max_n1 = chunk.draft_nV.amax(-1, keepdim=True)
        draft_sum_n1, product_n1 = torch.zeros_like(target_sum_n1), torch.zeros_like(target_sum_n1)
        for columns in chunk.columns(_PASS_COLUMNS):
            shifted_nv = chunk.draft_nV[:, columns].sub_(draft_max_n1)
            product_n1 += (chunk.target_nV[:, columns] * shifted_nv).sum(-1, keepdim=True)
            draft_sum_n1 += shifted_nv.exp_().sum(-1, keepdim=True)
        self.ce_N[rows] = (draft_sum_n1.log() - product_n1 / target_sum_n1)[:, 0]
        ratio_n1, scale_n1 = draft_sum_n1 / target_sum_n1, self._weights_N1[rows] / draft_sum_n1
        for columns in chunk.columns(_PASS_COLUMNS):
            q_nv, p_nv = chunk.draft_nV[:, columns], chunk.target_nV[:, columns]
            # Times the draft's sum, as q is here.
            difference_nv = torch.addcmul(q_nv, p_nv, ratio_n1, value=-1, out=p_nv)
            self.l1_N[rows] += difference_nv.abs().sum(-1)
            if gradient:
                torch.mul(difference_nv, scale_n1, out=q_nv)
        self.l1_N[rows] /= draft_sum_n1[:, 0]
