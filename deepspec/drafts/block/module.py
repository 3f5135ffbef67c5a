"""The network of block-parallel drafts: the body that all have, with the heads that an algorithm adds.

Only supervised positions pass the heads and the loss, and no tensor of all their logits is ever made.

Shapes: T packed context tokens, A anchors, P positions of a block, K of them predicting, N supervised positions,
L captured layers, D hidden, r rank, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepspec.drafts.attention.contracts import AttentionGroups
from deepspec.drafts.block.config import BlockConfig
from deepspec.drafts.block.supervision import BlockSupervision
from deepspec.drafts.layers import BlockLayer, DraftModule, RMSNorm
from deepspec.states.batch import PackedStates
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec


class BlockOutput(NamedTuple):
    """What a forward hands to the loss, for the supervised positions; a tuple, so that module wrappers see tensors.

    Args:
        hidden_ND: the body's normed output.
        head_VD: the target's head.
        softcap: the target's logit soft cap, if any.
        factors_Nr, factor_head_Vr: of a bias on the logits, `factors · factor_headᵀ`; None without one.
        confidence_N: logits of how likely each position is accepted; None where the draft does not say.
    """

    hidden_ND: Tensor
    head_VD: Tensor
    softcap: float | None
    factors_Nr: Tensor | None = None
    factor_head_Vr: Tensor | None = None
    confidence_N: Tensor | None = None


class BlockDraft(DraftModule):
    """A block-parallel draft; made by `BlockAlgorithm.module`, parameter names as in the public checkpoints.

    Args:
        config: resolved for the target.
        spec: the target.
        block_size: draft input positions of a block; the last `num_draft_tokens` of them predict.
        heads: further modules, by name.
        predict: the end of the forward; see `BlockAlgorithm.predict`.
    """

    def __init__(
        self,
        config: BlockConfig,
        spec: TargetSpec,
        *,
        block_size: int,
        heads: Mapping[str, nn.Module],
        predict: "Callable[[BlockDraft, Tensor, Tensor, Tensor], BlockOutput]",
    ) -> None:
        if config.target_layer_ids is None or config.mask_token_id is None:
            raise ValueError("the config is not resolved for a target")
        super().__init__(config.target_layer_ids, spec)
        family = family_of(spec)
        self.num_draft_tokens = config.num_draft_tokens
        self.block_size = block_size
        self.mask_token_id = config.mask_token_id
        self.hidden_norm = RMSNorm(spec.hidden_size, spec, family)
        self.layers = nn.ModuleList(BlockLayer(spec, family) for _ in range(config.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec, family)
        for name, head in heads.items():
            self.add_module(name, head)
        self._predict = predict

    def context(self, states_TLD: Tensor) -> Tensor:
        """Context features [T, D] of the target's states."""
        features: Tensor = self.hidden_norm(self.fc(states_TLD.flatten(-2)))
        return features

    def blocks(self, batch: PackedStates, supervision: BlockSupervision) -> Tensor:
        """The body's normed output at all predicting positions of all blocks, [A, K, D]."""
        block_size = self.block_size
        device, dtype = batch.states_TLD.device, self.fc.weight.dtype
        context_TD = self.context(batch.states_TLD.to(dtype))
        groups = AttentionGroups(
            supervision.positions_A,  # strictly before the anchor: it has not been through the target at decode time
            supervision.positions,
            supervision.anchors_per_document,
            batch.lengths,
            queries_per_group=block_size,
            own_per_group=block_size,
        )
        attend = self.attention_backend(device).groups(groups, dtype)
        limit = max(batch.lengths) + block_size
        positions_T = torch.cat([torch.arange(length, device=device) for length in batch.lengths])
        positions_AP = supervision.positions_A[:, None] + torch.arange(block_size, device=device)
        at_context = self.rotary.lookup(positions_T, dtype, limit=limit)
        at_block = self.rotary.lookup(positions_AP.flatten(), dtype, limit=limit)
        ids_AP = torch.full_like(positions_AP, self.mask_token_id)
        ids_AP[:, 0] = batch.input_ids_T[supervision.anchors_A]
        x = self.embed(ids_AP).flatten(0, 1)
        for layer in self.layers:
            x = self.layer(layer, x, context_TD, at_block, at_context, attend)
        hidden_APD: Tensor = self.norm(x).unflatten(0, (-1, block_size))
        return hidden_APD[:, block_size - self.num_draft_tokens :]

    def forward(self, batch: PackedStates, supervision: BlockSupervision) -> BlockOutput:
        """What the loss needs of the supervised positions."""
        previous_AK = batch.input_ids_T[supervision.draft_positions_AK]
        return self._predict(self, self.blocks(batch, supervision), previous_AK, supervision.rows_N)

    def output(self, hidden_ND: Tensor) -> BlockOutput:
        """What a forward hands to the loss where there are no heads."""
        return BlockOutput(hidden_ND, self.lm_head.weight, self.spec.logit_softcap)


def block_draft(module: nn.Module) -> BlockDraft:
    """The block draft that `module` is.

    Raises:
        TypeError: it is another module (a wrapper for several processes, say).
    """
    if not isinstance(module, BlockDraft):
        raise TypeError(f"expected a BlockDraft, got {type(module).__name__}")
    return module
