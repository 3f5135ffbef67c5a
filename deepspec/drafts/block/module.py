"""The module of block-parallel drafts and its loss: one class for every algorithm of that kind, with or without heads.

Only supervised slots pass the heads and the loss, and no tensor of all their logits is ever made.

Shapes: T packed context tokens, A anchors, P positions of a block, K predicting slots, N supervised slots, L captured
layers, D hidden, r rank, V vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepspec.drafts.algorithm import LossOutput
from deepspec.drafts.attention.contracts import Blocks
from deepspec.drafts.block.heads import SEQUENTIAL_HEADS, ConfidenceHead, VanillaHead
from deepspec.drafts.block.supervision import BlockSupervision
from deepspec.drafts.layers import BlockLayer, DraftModule, RMSNorm
from deepspec.drafts.metrics import acceptance_metrics
from deepspec.drafts.structure import BlockForm
from deepspec.losses import chunked, terms
from deepspec.states.batch import PackedStates
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec


class BlockOutput(NamedTuple):
    """What a forward hands to the loss, for the supervised slots; a tuple, so that what wraps a module sees tensors.

    Args:
        hidden_ND: the body's normed output.
        factors_Nr, factor_head_Vr: the sequential head's factors and `W_2`; None without a head.
        confidence_N: confidence logits; None without a head.
        head_VD: the target's head.
        softcap: the target's logit soft cap, if any.
    """

    hidden_ND: Tensor
    factors_Nr: Tensor | None
    factor_head_Vr: Tensor | None
    confidence_N: Tensor | None
    head_VD: Tensor
    softcap: float | None


class BlockDraft(DraftModule):
    """A block-parallel draft; made by `weights.build`, parameter names as in the public checkpoints.

    Args:
        form: its structure.
        spec: the target.
    """

    def __init__(self, form: BlockForm, spec: TargetSpec) -> None:
        super().__init__(len(form.layer_ids), spec)
        family = family_of(spec)
        self.form = form
        self.hidden_norm = RMSNorm(spec.hidden_size, spec, family)
        self.layers = nn.ModuleList(BlockLayer(spec, family) for _ in range(form.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec, family)
        self.markov_head: VanillaHead | None = None
        if form.markov_rank:
            head = SEQUENTIAL_HEADS[form.markov_head]
            self.markov_head = head(spec.vocab_size, spec.hidden_size, form.markov_rank)
        self.confidence_head: ConfidenceHead | None = None
        if form.confidence_head:
            rank = form.markov_rank if form.confidence_head_with_markov else 0
            self.confidence_head = ConfidenceHead(spec.hidden_size, rank)

    def context(self, states_TLD: Tensor) -> Tensor:
        """Context features [T, D] of the target's states."""
        features: Tensor = self.hidden_norm(self.fc(states_TLD.flatten(-2)))
        return features

    def blocks(self, batch: PackedStates, supervision: BlockSupervision) -> Tensor:
        """The body's normed output at all predicting slots of all blocks, [A, K, D]."""
        block_size = self.form.block_size
        device, dtype = batch.states_TLD.device, self.fc.weight.dtype
        context_TD = self.context(batch.states_TLD.to(dtype))
        blocks = Blocks(
            supervision.positions_A,  # strictly before the anchor: it has not been through the target at decode time
            supervision.anchors_per_document,
            batch.lengths,
            queries_per_block=block_size,
            own_per_block=block_size,
        )
        attend = self.attention_backend(device).blocks(blocks, dtype)
        limit = max(batch.lengths) + block_size
        positions_T = torch.cat([torch.arange(length, device=device) for length in batch.lengths])
        positions_AP = supervision.positions_A[:, None] + torch.arange(block_size, device=device)
        at_context = self.rotary.lookup(positions_T, dtype, limit=limit)
        at_block = self.rotary.lookup(positions_AP.flatten(), dtype, limit=limit)
        ids_AP = torch.full_like(positions_AP, self.form.mask_token_id)
        ids_AP[:, 0] = batch.input_ids_T[supervision.anchors_A]
        x = self.embed(ids_AP).flatten(0, 1)
        for layer in self.layers:
            x = self.layer(layer, x, context_TD, at_block, at_context, attend)
        hidden_APD: Tensor = self.norm(x).unflatten(0, (-1, block_size))
        return hidden_APD[:, block_size - self.form.num_draft_tokens :]

    def forward(self, batch: PackedStates, supervision: BlockSupervision) -> BlockOutput:
        """Hidden states, factors and confidences of the supervised slots."""
        hidden_AKD = self.blocks(batch, supervision)
        rows_N = supervision.rows_N
        hidden_ND = hidden_AKD.flatten(0, 1)[rows_N]
        factors_Nr = factor_head_Vr = previous_Nr = None
        if self.markov_head is not None:
            previous_AKr = self.markov_head.rows(batch.input_ids_T[supervision.slots_AK])
            previous_Nr = previous_AKr.flatten(0, 1)[rows_N]
            factors_Nr = self.markov_head.factors(previous_AKr, hidden_AKD).flatten(0, 1)[rows_N]
            factor_head_Vr = self.markov_head.markov_w2.weight
        confidence_N = None
        if self.confidence_head is not None:
            confidence_N = self.confidence_head(hidden_ND, previous_Nr)
        return BlockOutput(
            hidden_ND, factors_Nr, factor_head_Vr, confidence_N, self.lm_head.weight, self.spec.logit_softcap
        )


def block_draft(module: nn.Module) -> BlockDraft:
    """The block draft that `module` is.

    Raises:
        TypeError: it is another module (a wrapper for several processes, say).
    """
    if not isinstance(module, BlockDraft):
        raise TypeError(f"expected a BlockDraft, got {type(module).__name__}")
    return module


def block_loss(
    draft: nn.Module, batch: PackedStates, supervision: BlockSupervision, totals: Mapping[str, float]
) -> LossOutput:
    """Loss and metrics of one micro-batch; see `LossOutput`.

    The gradient of the sequential head's `W_2` is added to its `.grad`, if it has one, before this returns (see
    `chunked.block_terms`): call `backward` on the loss once, and unscaled.

    Args:
        draft: a `BlockDraft`, or what wraps one for several processes.
        batch: packed documents with their states.
        supervision: from `block_supervision`; its factors name the terms ("ce", "tv", "confidence").
        totals: denominators of the whole optimizer step.
    """
    output: BlockOutput = draft(batch, supervision)
    final_ND = batch.final_TD[supervision.slots_AK.flatten()[supervision.rows_N]].to(output.head_VD.dtype)
    sources = chunked.LogitSources(
        hidden_ND=output.hidden_ND,
        final_ND=final_ND,
        head_VD=output.head_VD,
        softcap=output.softcap,
        factors_Nr=output.factors_Nr,
        factor_head_Vr=output.factor_head_Vr,
    )
    weights_N = supervision.weights_N.to(sources.wide_dtype)
    # A step without any supervised slot has sum 0 and total 0: its loss is 0.
    scales = {term: factor / (totals[term] or 1.0) for term, factor in supervision.factors.items() if factor}
    block = chunked.block_terms(
        sources,
        supervision.labels_N,
        ce_weights_N=weights_N * scales["ce"] if "ce" in scales else None,
        l1_weights_N=weights_N * scales["tv"] if "tv" in scales else None,
        factor_head_gradient_Vr=chunked.preallocated_gradient(output.factor_head_Vr),
    )
    loss = block.loss
    per_slot = {"ce": block.ce_N, "tv": block.l1_N}
    acceptance_N = terms.acceptance(block.l1_N)
    if output.confidence_N is not None:
        per_slot["confidence"] = terms.confidence_loss(output.confidence_N, acceptance_N)
    weighted = {term: (weights_N * value_N).sum() for term, value_N in per_slot.items()}
    if "confidence" in scales:
        loss = loss + scales["confidence"] * weighted["confidence"]
    return LossOutput(loss, _metrics(supervision, acceptance_N, output.confidence_N, weighted))


def _metrics(
    supervision: BlockSupervision, acceptance_N: Tensor, confidence_logits_N: Tensor | None, weighted: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """Metrics as (sum, count): loss terms, acceptance per slot, expected acceptance length, confidence errors."""
    num_blocks, num_slots = supervision.slots_AK.shape
    weights_N = supervision.weights_N
    weight = weights_N.sum()
    more: dict[str, tuple[Tensor, Tensor | float]] = {
        f"loss_{term}": (value.detach(), weight) for term, value in weighted.items()
    }
    if confidence_logits_N is not None:
        error_N = (torch.sigmoid(confidence_logits_N.detach()) - acceptance_N).double()
        more["confidence_abs_error"] = ((weights_N * error_N.abs()).sum(), weight)
        more["confidence_bias"] = ((weights_N * error_N).sum(), weight)
    return acceptance_metrics(acceptance_N, supervision.rows_N, num_chains=num_blocks, num_slots=num_slots, more=more)
