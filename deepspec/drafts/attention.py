"""Block attention: each block sees the first positions of its document's context, and all of its own keys.

A block is what a draft computes from one place of a document: the slots behind an anchor, which see the context
strictly before it and each other in both directions; or one position of an unroll, which sees the context up to itself
and its own keys of earlier steps.

Training attends over packed documents: scaled dot-product attention with an explicit mask over a few blocks at a time.
Blocks are ascending, so each group needs the context up to its last block only, and the blocks' own keys stay few.
This form has a backward on every device; flex attention, which has none on the CPU, would be a second backend behind
`block_attention`, chosen by device.

Shapes: T packed context tokens, A blocks, N queries of all blocks, M own keys of all blocks, H heads, d head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.targets.layers import attend

# Blocks of one group see each other's keys only to have them masked: larger groups waste work, smaller ones pay more
# calls.
_GROUP_QUERIES = 112


@dataclass(frozen=True)
class Group:
    """Some consecutive blocks of one document.

    Args:
        document: which of the pack's documents.
        queries, own: how many queries and own keys they have.
        context: how many of the document's first positions any of them sees.
        mask: additive [1, 1, queries, context + own].
    """

    document: int
    queries: int
    own: int
    context: int
    mask: Tensor


@dataclass(frozen=True)
class Groups:
    """All blocks of a micro-batch, in order.

    Args:
        groups: consecutive; their queries add up to N, their own keys to M.
        lengths: lengths of the pack's documents.
    """

    groups: tuple[Group, ...]
    lengths: tuple[int, ...]


def groups_of(
    seen_A: Tensor,
    blocks_per_document: Sequence[int],
    lengths: tuple[int, ...],
    *,
    queries_per_block: int,
    own_per_block: int,
    dtype: torch.dtype,
) -> Groups:
    """Cut the blocks of a micro-batch into groups, with the masks that all layers share.

    Args:
        seen_A: how many of its document's first positions each block sees, ascending within a document, int64.
        blocks_per_document: they add up to A.
        lengths: of the documents.
        queries_per_block, own_per_block: queries and own keys of each block, which lie together.
        dtype: of the masks.
    """
    device = seen_A.device
    seen = seen_A.tolist()
    per_group = max(1, _GROUP_QUERIES // queries_per_block)
    places = torch.arange(per_group, device=device)
    own_QM = places.repeat_interleave(queries_per_block)[:, None] == places.repeat_interleave(own_per_block)
    hidden = torch.finfo(dtype).min
    groups: list[Group] = []
    first = 0
    for document, count in enumerate(blocks_per_document):
        for begin in range(first, first + count, per_group):
            end = min(begin + per_group, first + count)
            queries, own = (end - begin) * queries_per_block, (end - begin) * own_per_block
            context = seen[end - 1]
            seen_Q1 = seen_A[begin:end].repeat_interleave(queries_per_block)[:, None]
            before = torch.arange(context, device=device) < seen_Q1
            visible = torch.cat((before, own_QM[:queries, :own]), dim=1)
            mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, hidden)
            groups.append(Group(document, queries, own, context, mask[None, None]))
        first += count
    return Groups(tuple(groups), lengths)


def block_attention(
    queries_NHd: Tensor,
    own_keys_MHd: Tensor,
    own_values_MHd: Tensor,
    context_keys_THd: Tensor,
    context_values_THd: Tensor,
    groups: Groups,
    *,
    scale: float,
) -> Tensor:
    """Attention of all blocks of a micro-batch over their own context, [N, H, d].

    Args:
        queries_NHd: queries of the blocks, block by block.
        own_keys_MHd, own_values_MHd: their own keys and values, block by block (key/value heads).
        context_keys_THd, context_values_THd: those of the context.
        groups: from `groups_of`.
        scale: on query-key products.
    """
    if not groups.groups:
        return torch.empty_like(queries_NHd)
    lengths = list(groups.lengths)
    own_sizes = [group.own for group in groups.groups]
    # Split once, not sliced per group: the gradient of a slice is as large as what it was cut from.
    context_keys = torch.split(context_keys_THd, lengths)
    context_values = torch.split(context_values_THd, lengths)
    parts = zip(
        groups.groups,
        torch.split(queries_NHd, [group.queries for group in groups.groups]),
        torch.split(own_keys_MHd, own_sizes),
        torch.split(own_values_MHd, own_sizes),
        strict=True,
    )
    attended = []
    for group, queries, own_keys, own_values in parts:
        keys = torch.cat((context_keys[group.document][: group.context], own_keys)).transpose(0, 1)[None]
        values = torch.cat((context_values[group.document][: group.context], own_values)).transpose(0, 1)[None]
        result = attend(queries.transpose(0, 1)[None], keys, values, group.mask, scale=scale, causal=False)
        attended.append(result[0].transpose(0, 1))
    return torch.cat(attended)


def causal_attention(
    queries_THd: Tensor, keys_THd: Tensor, values_THd: Tensor, lengths: Sequence[int], *, scale: float
) -> Tensor:
    """Attention of packed documents in which each position sees its document up to itself, [T, H, d].

    Args:
        queries_THd, keys_THd, values_THd: of all positions; keys and values have the key/value heads.
        lengths: of the documents; they add up to T.
        scale: on query-key products.
    """
    split = [torch.split(x, list(lengths)) for x in (queries_THd, keys_THd, values_THd)]
    attended = []
    for document in zip(*split, strict=True):
        queries, keys, values = (x.transpose(0, 1)[None] for x in document)
        attended.append(attend(queries, keys, values, None, scale=scale, causal=True)[0].transpose(0, 1))
    return torch.cat(attended)
