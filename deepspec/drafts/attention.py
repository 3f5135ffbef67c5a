"""Block attention: each block sees the context strictly before its anchor, and itself in both directions.

Training attends over packed documents: scaled dot-product attention with an explicit mask over a few anchors at a time.
Anchors are ascending, so each group needs the context up to its last anchor only, and the blocks' own keys stay few.
This form has a backward on every device; flex attention, which has none on the CPU, would be a second backend behind
`block_attention`, chosen by device.

Shapes: T packed context tokens, A anchors, K slots per block, N = A·K block positions, H heads, d head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.drafts.anchors import BlockSupervision
from deepspec.targets.layers import attend

# Blocks of one group see each other's keys only to have them masked: larger groups waste work, smaller ones pay more
# calls.
_GROUP_POSITIONS = 112


@dataclass(frozen=True)
class Group:
    """Some consecutive blocks of one document.

    Args:
        document: which of the pack's documents.
        size: how many block positions they have.
        context: how many of the document's first positions any of them sees.
        mask: additive [1, 1, size, context + size].
    """

    document: int
    size: int
    context: int
    mask: Tensor


@dataclass(frozen=True)
class Groups:
    """All blocks of a micro-batch, in order.

    Args:
        groups: consecutive; their sizes add up to N.
        lengths: lengths of the pack's documents.
    """

    groups: tuple[Group, ...]
    lengths: tuple[int, ...]


def groups_of(supervision: BlockSupervision, lengths: tuple[int, ...], num_slots: int, dtype: torch.dtype) -> Groups:
    """Cut the blocks of a micro-batch into groups, with the masks that all layers share."""
    device = supervision.anchors_A.device
    positions = supervision.positions_A.tolist()
    per_group = max(1, _GROUP_POSITIONS // num_slots)
    blocks_N = torch.arange(per_group, device=device).repeat_interleave(num_slots)
    own_NN = blocks_N[:, None] == blocks_N[None, :]
    hidden = torch.finfo(dtype).min
    groups: list[Group] = []
    anchor = 0
    for document, count in enumerate(supervision.anchors_per_document):
        for begin in range(anchor, anchor + count, per_group):
            end = min(begin + per_group, anchor + count)
            size = (end - begin) * num_slots
            seen = positions[end - 1]
            anchors_N1 = supervision.positions_A[begin:end].repeat_interleave(num_slots)[:, None]
            before = torch.arange(seen, device=device) < anchors_N1
            visible = torch.cat((before, own_NN[:size, :size]), dim=1)
            mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, hidden)
            groups.append(Group(document, size, seen, mask[None, None]))
        anchor += count
    return Groups(tuple(groups), lengths)


def block_attention(
    queries_NHd: Tensor,
    block_keys_NHd: Tensor,
    block_values_NHd: Tensor,
    context_keys_THd: Tensor,
    context_values_THd: Tensor,
    groups: Groups,
    *,
    scale: float,
) -> Tensor:
    """Attention of all blocks of a micro-batch over their own context, [N, H, d].

    Args:
        queries_NHd: queries of the block positions.
        block_keys_NHd, block_values_NHd: keys and values of the block positions (key/value heads).
        context_keys_THd, context_values_THd: those of the context.
        groups: from `groups_of`.
        scale: on query-key products.
    """
    if not groups.groups:
        return torch.empty_like(queries_NHd)
    sizes = [group.size for group in groups.groups]
    lengths = list(groups.lengths)
    # Split once, not sliced per group: the gradient of a slice is as large as what it was cut from.
    context_keys = torch.split(context_keys_THd, lengths)
    context_values = torch.split(context_values_THd, lengths)
    blocks = zip(*(torch.split(x, sizes) for x in (queries_NHd, block_keys_NHd, block_values_NHd)), strict=True)
    attended = []
    for group, (queries, own_keys, own_values) in zip(groups.groups, blocks, strict=True):
        keys = torch.cat((context_keys[group.document][: group.context], own_keys)).transpose(0, 1)[None]
        values = torch.cat((context_values[group.document][: group.context], own_values)).transpose(0, 1)[None]
        result = attend(queries.transpose(0, 1)[None], keys, values, group.mask, scale=scale, causal=False)
        attended.append(result[0].transpose(0, 1))
    return torch.cat(attended)
