"""The module of block-parallel drafts and its loss: one class for every algorithm of that kind, with or without heads.

Only supervised slots pass the heads and the loss. The losses here are the eager reference over full logits.

Shapes: T packed context tokens, A anchors, K slots, N supervised slots, L captured layers, D hidden, r rank,
V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepspec.drafts.algorithm import LossOutput
from deepspec.drafts.anchors import BlockSupervision
from deepspec.drafts.attention import groups_of
from deepspec.drafts.backbone import BlockLayer, RMSNorm
from deepspec.drafts.form import BlockForm
from deepspec.drafts.heads import SEQUENTIAL_HEADS, ConfidenceHead, VanillaHead, unset_embedding
from deepspec.losses import terms
from deepspec.states.batch import PackedStates
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec
from deepspec.targets.rotary import Rotary

_FROZEN = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class BlockOutput:
    """What a forward hands to the loss, for the supervised slots.

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


class BlockDraft(nn.Module):
    """A block-parallel draft; made by `build`, parameter names as in the public checkpoints.

    Args:
        form: its structure.
        spec: the target.
    """

    def __init__(self, form: BlockForm, spec: TargetSpec) -> None:
        super().__init__()
        family = family_of(spec)
        self.form = form
        self.spec = spec
        self.embed_tokens = unset_embedding(spec.vocab_size, spec.hidden_size)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.fc = nn.Linear(len(form.layer_ids) * spec.hidden_size, spec.hidden_size, bias=False)
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
        self._rotary = Rotary(spec)

    def context(self, states_TLD: Tensor) -> Tensor:
        """Context features [T, D] of the target's states."""
        features: Tensor = self.hidden_norm(self.fc(states_TLD.flatten(-2)))
        return features

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings [..., D], scaled as the target's."""
        embedded = F.embedding(input_ids, self.embed_tokens.weight)
        scale = self.spec.embedding_scale
        # The target rounds the scale to its dtype before it multiplies.
        return embedded if scale == 1.0 else embedded * embedded.new_tensor(scale)

    def blocks(self, batch: PackedStates, supervision: BlockSupervision) -> Tensor:
        """The body's normed output at all slots of all blocks, [A, K, D]."""
        num_slots = self.form.block_size
        device, dtype = batch.states_TLD.device, self.fc.weight.dtype
        context_TD = self.context(batch.states_TLD.to(dtype))
        groups = groups_of(supervision, batch.lengths, num_slots, dtype)
        limit = max(batch.lengths) + num_slots
        positions_T = torch.cat([torch.arange(length, device=device) for length in batch.lengths])
        positions_AK = supervision.positions_A[:, None] + torch.arange(num_slots, device=device)
        at_context = self._rotary.lookup(positions_T, dtype, limit=limit)
        at_block = self._rotary.lookup(positions_AK.flatten(), dtype, limit=limit)
        ids_AK = torch.full_like(positions_AK, self.form.mask_token_id)
        ids_AK[:, 0] = batch.input_ids_T[supervision.anchors_A]
        x = self.embed(ids_AK).flatten(0, 1)
        for layer in self.layers:
            x = layer(x, context_TD, at_block, at_context, groups)
        hidden: Tensor = self.norm(x).unflatten(0, (-1, num_slots))
        return hidden

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


def build(form: BlockForm, spec: TargetSpec) -> BlockDraft:
    """A block draft on the current default device, its weights NaN, so that a forgotten initialisation fails loudly."""
    device = torch.get_default_device()
    with torch.device("meta"):
        draft = BlockDraft(form, spec)
    draft.to_empty(device=device)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.fill_(torch.nan)
        for scalar in draft.buffers():
            scalar.fill_(1.0)
    for name in _FROZEN:
        draft.get_parameter(name).requires_grad_(False)  # noqa: FBT003  # torch names this argument differently in its stubs
    return draft


def block_draft(module: nn.Module) -> BlockDraft:
    """The block draft that `module` is.

    Raises:
        TypeError: it is another module (a wrapper for several processes, say).
    """
    if not isinstance(module, BlockDraft):
        raise TypeError(f"expected a BlockDraft, got {type(module).__name__}")
    return module


def initialize(draft: BlockDraft, target_embedding_VD: Tensor, target_head_VD: Tensor, seed: int) -> None:
    """Copy the target's embedding and head, and draw everything else.

    Linear weights and embeddings are normal with the target's `initializer_range`, biases 0, norms 1.

    Args:
        draft: from `build`.
        target_embedding_VD, target_head_VD: the target's tables.
        seed: of the draws.
    """
    spread = draft.spec.initializer_range
    generator = torch.Generator().manual_seed(seed)
    tables = dict(zip(_FROZEN, (target_embedding_VD, target_head_VD), strict=True))
    with torch.no_grad():
        for name, weight in sorted(draft.named_parameters()):
            if name in tables:
                weight.copy_(tables[name])
            elif name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith(".bias"):
                weight.zero_()
            else:
                weight.copy_(torch.empty(weight.shape, device="cpu").normal_(0.0, spread, generator=generator))


def block_loss(
    draft: nn.Module, batch: PackedStates, supervision: BlockSupervision, totals: Mapping[str, float]
) -> LossOutput:
    """Loss and metrics of one micro-batch; see `LossOutput`.

    Args:
        draft: a `BlockDraft`, or what wraps one for several processes.
        batch: packed documents with their states.
        supervision: from `block_supervision`; its factors name the terms ("ce", "tv", "confidence").
        totals: denominators of the whole optimizer step.
    """
    output: BlockOutput = draft(batch, supervision)
    logits_NV = terms.soft_cap(terms.wide(F.linear(output.hidden_ND, output.head_VD)), output.softcap)
    if output.factors_Nr is not None and output.factor_head_Vr is not None:
        # After the cap: the sequential bias is not capped.
        logits_NV = logits_NV + terms.wide(F.linear(output.factors_Nr, output.factor_head_Vr))
    with torch.no_grad():
        final_ND = batch.final_TD[supervision.slots_AK.flatten()[supervision.rows_N]].to(output.head_VD.dtype)
        target_NV = terms.soft_cap(terms.wide(F.linear(final_ND, output.head_VD)), output.softcap)
    per_slot = {"ce": terms.cross_entropy(logits_NV, supervision.labels_N)}
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(supervision.factors.get("tv"))):
        per_slot["tv"] = terms.total_variation(logits_NV, target_NV)
    acceptance_N = terms.acceptance(per_slot["tv"])
    if output.confidence_N is not None:
        per_slot["confidence"] = terms.confidence_loss(output.confidence_N, acceptance_N)
    weights_N = supervision.weights_N.to(logits_NV.dtype)
    weighted = {term: (weights_N * value_N).sum() for term, value_N in per_slot.items()}
    loss = logits_NV.new_zeros(())
    for term, factor in supervision.factors.items():
        if factor:
            # A step without any supervised slot has sum 0 and total 0: its loss is 0.
            loss = loss + factor * weighted[term] / (totals[term] or 1.0)
    return LossOutput(loss, _metrics(supervision, acceptance_N, output.confidence_N, weighted))


def _metrics(
    supervision: BlockSupervision, acceptance_N: Tensor, confidence_logits_N: Tensor | None, weighted: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """Metrics as (sum, count): loss terms, acceptance per slot, expected acceptance length, confidence errors."""
    num_blocks, num_slots = supervision.slots_AK.shape
    with torch.no_grad():
        rows_N = supervision.rows_N
        weights_N = supervision.weights_N
        acceptance_AK = acceptance_N.new_zeros(num_blocks * num_slots).index_put((rows_N,), acceptance_N)
        acceptance_AK = acceptance_AK.view(num_blocks, num_slots).double()
        supervised_K = torch.bincount(rows_N % num_slots, minlength=num_slots)
        # Unsupervised slots are zeros: they end the running product.
        tau = num_blocks + acceptance_AK.cumprod(dim=1).sum()
        values = [acceptance_AK.sum(dim=0), supervised_K.double(), weights_N.sum()[None], tau[None]]
        values += [weighted[term].double()[None] for term in weighted]
        if confidence_logits_N is not None:
            error_N = (torch.sigmoid(confidence_logits_N) - acceptance_N).double()
            values += [(weights_N * error_N.abs()).sum()[None], (weights_N * error_N).sum()[None]]
        # One transfer for all of them.
        numbers = torch.cat(values).tolist()
    accepted, numbers = numbers[:num_slots], numbers[num_slots:]
    supervised, numbers = numbers[:num_slots], numbers[num_slots:]
    weight, tau_sum, *rest = numbers
    sums = {f"accept_rate@{k}": (accepted[k], supervised[k]) for k in range(num_slots)}
    sums["tau_probabilistic"] = (tau_sum, float(num_blocks))
    names = [f"loss_{term}" for term in weighted] + ["confidence_abs_error", "confidence_bias"]
    sums |= {name: (value, weight) for name, value in zip(names, rest, strict=False)}
    return sums
