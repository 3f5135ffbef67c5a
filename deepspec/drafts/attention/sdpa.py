"""Attention in groups by scaled dot products with an explicit mask, a few groups at a time; see `contracts`.

Groups are ascending, so each call needs the context up to its last group only, and the groups' own keys stay few.

Shapes: T packed context tokens, N queries of all groups, M own keys of all groups, H heads, d head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.drafts.attention.contracts import (
    AttentionBackend,
    AttentionGroups,
    CausalAttention,
    GroupAttention,
    Projected,
    no_queries,
)
from deepspec.targets.layers import attend

# The groups of one call see each other's keys only to have them masked: larger calls waste work, smaller ones are more.
_CALL_QUERIES = 112


class _Sdpa:
    """See `AttentionBackend`."""

    def groups(self, groups: AttentionGroups, dtype: torch.dtype) -> GroupAttention:
        return _GroupAttention(_cut(groups, dtype), list(groups.lengths))

    def causal(self, lengths: Sequence[int], device: torch.device) -> CausalAttention:  # noqa: ARG002
        return _Causal(list(lengths))


SDPA: AttentionBackend = _Sdpa()


@dataclass(frozen=True)
class _Call:
    """Some consecutive groups of one document, which attend together.

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


def _cut(groups: AttentionGroups, dtype: torch.dtype) -> list[_Call]:
    """All groups in order, as calls, with the masks that all layers share."""
    device = groups.seen_A.device
    per_call = max(1, _CALL_QUERIES // groups.queries_per_group)
    places = torch.arange(per_call, device=device)
    query_places = places.repeat_interleave(groups.queries_per_group)
    own_QM = query_places[:, None] == places.repeat_interleave(groups.own_per_group)
    hidden = torch.finfo(dtype).min
    calls: list[_Call] = []
    first = 0
    for document, count in enumerate(groups.groups_per_document):
        for begin in range(first, first + count, per_call):
            end = min(begin + per_call, first + count)
            queries, own = (end - begin) * groups.queries_per_group, (end - begin) * groups.own_per_group
            context = int(groups.seen[end - 1])
            seen_Q1 = groups.seen_A[begin:end].repeat_interleave(groups.queries_per_group)[:, None]
            before = torch.arange(context, device=device) < seen_Q1
            visible = torch.cat((before, own_QM[:queries, :own]), dim=1)
            mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, hidden)
            calls.append(_Call(document, queries, own, context, mask[None, None]))
        first += count
    return calls


class _GroupAttention:
    """See `GroupAttention`."""

    def __init__(self, calls: list[_Call], lengths: list[int]) -> None:
        self._calls = calls
        self._lengths = lengths
        self._query_sizes = [call.queries for call in calls]
        self._own_sizes = [call.own for call in calls]

    def __call__(self, projected: Projected, *, scale: float) -> Tensor:
        if not self._calls:
            return no_queries(*projected)
        # Split once, not sliced per call: the gradient of a slice is as large as what it was cut from.
        context_keys = torch.split(projected.context_keys_THd, self._lengths)
        context_values = torch.split(projected.context_values_THd, self._lengths)
        parts = zip(
            self._calls,
            torch.split(projected.queries_NHd, self._query_sizes),
            torch.split(projected.own_keys_MHd, self._own_sizes),
            torch.split(projected.own_values_MHd, self._own_sizes),
            strict=True,
        )
        attended = []
        for call, queries, own_keys, own_values in parts:
            keys = torch.cat((context_keys[call.document][: call.context], own_keys)).transpose(0, 1)[None]
            values = torch.cat((context_values[call.document][: call.context], own_values)).transpose(0, 1)[None]
            result = attend(queries.transpose(0, 1)[None], keys, values, call.mask, scale=scale, causal=False)
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
