"""Which blocks are trained: anchors drawn per document, and which of their positions are supervised.

Draws are keyed by (seed, step, document id), so that they depend neither on packing nor on ranks, and the budget is
per document: one long document cannot starve the short ones of a pack.

Shapes: T packed tokens, A anchors (ascending within each document), K draft positions, N supervised positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepspec.drafts.block.config import BlockConfig
from deepspec.states.batch import PackedTokens

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockSupervision:
    """The blocks of one micro-batch.

    Args:
        anchors_A: packed index of each anchor, int64.
        positions_A: its position in its document, int64.
        positions: the same, on the host on every device: kernels choose their sizes by it.
        anchors_per_document: how many anchors each document of the pack has.
        draft_positions_AK: packed index of each draft position, which is that of the token *before* its label; clamped
            to the document; int64.
        rows_N: which of the A·K positions are supervised (the first ones of each block, at least one), ascending,
            int64.
        labels_N: token each supervised position has to predict, int64.
        weights_N: their position weights, fp64, so that sums don't depend on how a batch was split.
        totals: denominator per loss term.
        loss_weights: what each loss term is multiplied with; a term of weight 0 is only logged.
    """

    anchors_A: Tensor
    positions_A: Tensor
    positions: Array
    anchors_per_document: tuple[int, ...]
    draft_positions_AK: Tensor
    rows_N: Tensor
    labels_N: Tensor
    weights_N: Tensor
    totals: Mapping[str, float]
    loss_weights: Mapping[str, float]

    def to(self, device: torch.device | str) -> "BlockSupervision":
        """The same with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


def block_supervision(
    tokens: PackedTokens, config: BlockConfig, *, loss_weights: Mapping[str, float], seed: int, step: int
) -> BlockSupervision:
    """Draw the anchors of a micro-batch and say what their positions learn.

    Args:
        tokens: packed documents, on the CPU.
        config: how many positions (position k, 0-based, predicts the token k + 1 after the anchor), how many anchors,
            and how the positions' weights decay.
        loss_weights: what each loss term is multiplied with; their names are the keys of `totals`.
        seed, step: keys of the draw, with each document's id.
    """
    num_positions = config.num_draft_tokens
    mask_T = tokens.loss_mask_T.numpy()
    ids_T = tokens.input_ids_T.numpy()
    anchors, counts = draw_anchors(
        mask_T, tokens.lengths, tokens.document_ids, num_anchors=config.num_anchors, seed=seed, step=step
    )
    starts = np.concatenate([[0], np.cumsum(tokens.lengths)]).astype(np.int64)
    document_A = np.repeat(np.arange(len(counts)), counts)
    end_A = starts[document_A + 1]
    labels_at_AK = anchors[:, None] + np.arange(1, num_positions + 1)
    inside_AK = labels_at_AK < end_A[:, None]
    clamped_AK = np.minimum(labels_at_AK, end_A[:, None] - 1)
    supervised_AK = np.logical_and.accumulate(inside_AK & mask_T[clamped_AK], axis=1)
    rows = np.flatnonzero(supervised_AK)
    weights = np.exp(-np.arange(num_positions) / config.loss_decay_gamma)[rows % num_positions]
    positions = anchors - starts[document_A]
    return BlockSupervision(
        anchors_A=torch.from_numpy(anchors),
        positions_A=torch.from_numpy(positions),
        positions=positions,
        anchors_per_document=tuple(counts),
        draft_positions_AK=torch.from_numpy(np.minimum(labels_at_AK, end_A[:, None]) - 1),
        rows_N=torch.from_numpy(rows),
        labels_N=torch.from_numpy(ids_T[clamped_AK].reshape(-1)[rows]),
        weights_N=torch.from_numpy(weights),
        totals=dict.fromkeys(loss_weights, float(weights.sum())),
        loss_weights=loss_weights,
    )


def draw_anchors(
    mask_T: npt.NDArray[np.bool_],
    lengths: tuple[int, ...],
    document_ids: tuple[int, ...],
    *,
    num_anchors: int,
    seed: int,
    step: int,
) -> tuple[Array, list[int]]:
    """Anchors of each document, uniform without replacement among its candidates.

    A position is a candidate if it and the next one are supervised and lie in one document.

    Returns:
        Packed indices, ascending, and how many each document has.
    """
    anchors: list[Array] = []
    start = 0
    for length, document in zip(lengths, document_ids, strict=True):
        mask = mask_T[start : start + length]
        candidates = np.flatnonzero(mask[:-1] & mask[1:])
        if len(candidates) > num_anchors:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step, document))))
            candidates = np.sort(generator.choice(candidates, size=num_anchors, replace=False))
        anchors.append(candidates + start)
        start += length
    joined = np.concatenate(anchors) if anchors else np.empty(0, dtype=np.int64)
    return joined.astype(np.int64), [len(a) for a in anchors]
