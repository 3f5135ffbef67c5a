"""The loss of block-parallel drafts, term by term: what all have, and what an algorithm adds.

Shapes: A anchors, K predicting positions, N supervised positions, D hidden, V vocabulary.
"""

from collections.abc import Mapping

from torch import Tensor

from deepspec.drafts.algorithm import LossOutput
from deepspec.drafts.block.module import BlockOutput
from deepspec.drafts.block.supervision import BlockSupervision
from deepspec.drafts.metrics import acceptance_metrics
from deepspec.losses import chunk_sweep, chunked, terms
from deepspec.states.batch import PackedStates


class BlockLoss:
    """Loss and metrics of one micro-batch: cross-entropy ("ce"), L1 distance to the target ("tv"), and what is added.

    The gradient of the factors' head is added to its `.grad`, if it has one, when this is made (see
    `chunked.block_terms`): call `backward` on the loss once, and unscaled.

    Args:
        output: of the draft's forward.
        batch: packed documents with their states.
        supervision: from `block_supervision`; its `loss_weights` name the terms.
        totals: denominators of the whole optimizer step.

    Attributes:
        acceptance_N: how likely the target accepts each position's token, detached.
    """

    def __init__(
        self, output: BlockOutput, batch: PackedStates, supervision: BlockSupervision, totals: Mapping[str, float]
    ) -> None:
        final_ND = batch.final_TD[supervision.draft_positions_AK.flatten()[supervision.rows_N]].to(output.head_VD.dtype)
        sources = chunk_sweep.LogitSources(
            hidden_ND=output.hidden_ND,
            final_ND=final_ND,
            head_VD=output.head_VD,
            softcap=output.softcap,
            factors_Nr=output.factors_Nr,
            factor_head_Vr=output.factor_head_Vr,
        )
        self._supervision = supervision
        self._weights_N = supervision.weights_N.to(sources.wide_dtype)
        self._total_weight = supervision.weights_N.sum()
        # A step without any supervised position has sum 0 and total 0: its loss is 0.
        self._scales = {
            term: weight / (totals[term] or 1.0) for term, weight in supervision.loss_weights.items() if weight
        }
        found = chunked.block_terms(
            sources,
            supervision.labels_N,
            ce_weights_N=self._weights_of("ce"),
            l1_weights_N=self._weights_of("tv"),
            factor_head_gradient_Vr=chunk_sweep.preallocated_gradient(output.factor_head_Vr),
        )
        self._loss = found.loss
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        for term, value_N in (("ce", found.ce_N), ("tv", found.l1_N)):
            self._record(f"loss_{term}", self._weights_N * value_N)
        self.acceptance_N = terms.acceptance(found.l1_N)

    def add(self, term: str, value_N: Tensor) -> None:
        """Add a term that has a value per position, and log it."""
        weighted = self._record(f"loss_{term}", self._weights_N * value_N)
        if term in self._scales:
            self._loss = self._loss + self._scales[term] * weighted

    def log(self, name: str, value_N: Tensor) -> None:
        """Log the weighted mean of a value per position."""
        self._record(name, self._supervision.weights_N * value_N)

    def output(self) -> LossOutput:
        """Loss and metrics: those added here, acceptance per position, and the expected acceptance length."""
        num_blocks, num_positions = self._supervision.draft_positions_AK.shape
        sums = acceptance_metrics(
            self.acceptance_N,
            self._supervision.rows_N,
            num_chains=num_blocks,
            num_positions=num_positions,
            more=self._sums,
        )
        return LossOutput(self._loss, sums)

    def _weights_of(self, term: str) -> Tensor | None:
        return self._weights_N * self._scales[term] if term in self._scales else None

    def _record(self, name: str, weighted_N: Tensor) -> Tensor:
        """The sum, which is logged over the sum of the weights."""
        weighted = weighted_N.sum()
        self._sums[name] = (weighted.detach(), self._total_weight)
        return weighted
