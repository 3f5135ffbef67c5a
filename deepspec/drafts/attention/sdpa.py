"""Block attention by scaled dot products with an explicit mask over a few blocks at a time; see `contracts`.

Blocks are ascending, so each group needs the context up to its last block only, and the blocks' own keys stay few.

Shapes: T packed context tokens, N queries of all blocks, M own keys of all blocks, H heads, d head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.drafts.attention.contracts import (
    Backend,
    BlockAttention,
    Blocks,
    CausalAttention,
    Projected,
    no_queries,
)
from deepspec.targets.layers import attend

# Blocks of one group see each other's keys only to have them masked: larger groups waste work, smaller ones pay more
# calls.
_GROUP_QUERIES = 112


class _Sdpa:
    """See `Backend`."""

    def blocks(self, blocks: Blocks, dtype: torch.dtype) -> BlockAttention:
        return _Groups(_cut(blocks, dtype), list(blocks.lengths))

    def causal(self, lengths: Sequence[int], device: torch.device) -> CausalAttention:  # noqa: ARG002
        return _Causal(list(lengths))


SDPA: Backend = _Sdpa()


@dataclass(frozen=True)
class _Group:
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


def _cut(blocks: Blocks, dtype: torch.dtype) -> list[_Group]:
    """All blocks in order, in groups, with the masks that all layers share."""
    device = blocks.seen_A.device
    per_group = max(1, _GROUP_QUERIES // blocks.queries_per_block)
    places = torch.arange(per_group, device=device)
    query_places = places.repeat_interleave(blocks.queries_per_block)
    own_QM = query_places[:, None] == places.repeat_interleave(blocks.own_per_block)
    hidden = torch.finfo(dtype).min
    groups: list[_Group] = []
    first = 0
    for document, count in enumerate(blocks.blocks_per_document):
        for begin in range(first, first + count, per_group):
            end = min(begin + per_group, first + count)
            queries, own = (end - begin) * blocks.queries_per_block, (end - begin) * blocks.own_per_block
            context = int(blocks.seen[end - 1])
            seen_Q1 = blocks.seen_A[begin:end].repeat_interleave(blocks.queries_per_block)[:, None]
            before = torch.arange(context, device=device) < seen_Q1
            visible = torch.cat((before, own_QM[:queries, :own]), dim=1)
            mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, hidden)
            groups.append(_Group(document, queries, own, context, mask[None, None]))
        first += count
    return groups


class _Groups:
    """See `BlockAttention`."""

    def __init__(self, groups: list[_Group], lengths: list[int]) -> None:
        self._groups = groups
        self._lengths = lengths
        self._query_sizes = [group.queries for group in groups]
        self._own_sizes = [group.own for group in groups]

    def __call__(self, projected: Projected, *, scale: float) -> Tensor:
        if not self._groups:
            return no_queries(*projected)
        # Split once, not sliced per group: the gradient of a slice is as large as what it was cut from.
        context_keys = torch.split(projected.context_keys_THd, self._lengths)
        context_values = torch.split(projected.context_values_THd, self._lengths)
        parts = zip(
            self._groups,
            torch.split(projected.queries_NHd, self._query_sizes),
            torch.split(projected.own_keys_MHd, self._own_sizes),
            torch.split(projected.own_values_MHd, self._own_sizes),
            strict=True,
        )
        attended = []
        for group, queries, own_keys, own_values in parts:
            keys = torch.cat((context_keys[group.document][: group.context], own_keys)).transpose(0, 1)[None]
            values = torch.cat((context_values[group.document][: group.context], own_values)).transpose(0, 1)[None]
            result = attend(queries.transpose(0, 1)[None], keys, values, group.mask, scale=scale, causal=False)
            attended.append(result[0].transpose(0, 1))
        return torch.cat(attended)


class _Causal:
    """See `CausalAttention`."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def __call__(self, queries_THd: Tensor, keys_THd: Tensor, values_THd: Tensor, *, scale: float) -> Tensor:
        split = [torch.split(x, self._lengths) for x in (queries_THd, keys_THd, values_THd)]
        attended = []
        for document in zip(*split, strict=True):
            queries, keys, values = (x.transpose(0, 1)[None] for x in document)
            attended.append(attend(queries, keys, values, None, scale=scale, causal=True)[0].transpose(0, 1))
        return torch.cat(attended)
