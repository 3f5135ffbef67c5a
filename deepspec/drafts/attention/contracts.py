"""Attention in groups: each group of queries sees the start of its document's context, and all of its own keys.

An attention group is what a draft computes from one place of a document: a block, that is the positions behind an
anchor, which see the context strictly before it and each other in both directions; or one position of an unroll, which
sees the context up to itself and its own keys of earlier steps. (Groups of heads that share keys are another matter.)

Training attends over packed documents, without padding and without repeating keys for grouped queries.
`AttentionGroups` says who sees whom; two backends compute it, equal to each other by test: `sdpa` has a backward on
every device, `flex` is the one for GPUs, where one kernel skips what no query sees.

Shapes: T packed context tokens, A groups, N queries of all groups, M own keys of all groups, H heads, d head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionGroups:
    """The groups of a micro-batch and what they see.

    Args:
        seen_A: how many of its document's first positions each group sees, ascending within a document, int64.
        seen: the same on the host, so that no backend has to wait for the device to choose the sizes of its tensors.
        groups_per_document: they add up to A.
        lengths: of the documents; they add up to T.
        queries_per_group, own_per_group: queries and own keys of each group, which lie together.
    """

    seen_A: Tensor
    seen: npt.NDArray[np.int64]
    groups_per_document: Sequence[int]
    lengths: Sequence[int]
    queries_per_group: int
    own_per_group: int


class Projected(NamedTuple):
    """What attends and what is attended to.

    Args:
        queries_NHd: of all groups, group by group.
        own_keys_MHd, own_values_MHd: the groups' own keys and values, group by group (key/value heads).
        context_keys_THd, context_values_THd: those of the context.
    """

    queries_NHd: Tensor
    own_keys_MHd: Tensor
    own_values_MHd: Tensor
    context_keys_THd: Tensor
    context_values_THd: Tensor

    def joined(self) -> tuple[Tensor, Tensor]:
        """Keys and values of `[context ; own]`, [T + M, H, d]."""
        keys_KHd = torch.cat((self.context_keys_THd, self.own_keys_MHd))
        return keys_KHd, torch.cat((self.context_values_THd, self.own_values_MHd))


class GroupAttention(Protocol):
    """Attention of the groups of one micro-batch, made once and called by every layer."""

    def __call__(self, projected: Projected, *, scale: float) -> Tensor:
        """What the groups' queries find in their own context and in themselves, [N, H, d].

        Args:
            projected: queries, keys and values.
            scale: on query-key products.
        """


class CausalAttention(Protocol):
    """Attention of packed documents in which each position sees its document up to itself."""

    def __call__(self, queries_THd: Tensor, keys_THd: Tensor, values_THd: Tensor, *, scale: float) -> Tensor:
        """What all positions find, [T, H, d]; keys and values have the key/value heads."""


class AttentionBackend(Protocol):
    """A way to compute both, with a backward where a draft is trained."""

    def groups(self, groups: AttentionGroups, dtype: torch.dtype) -> GroupAttention:
        """The attention of these groups; `dtype` is that of the queries."""

    def causal(self, lengths: Sequence[int], device: torch.device) -> CausalAttention:
        """The causal attention of documents of these lengths."""


def no_queries(queries_NHd: Tensor, *others: Tensor) -> Tensor:
    """What no queries find [0, H, d]: nothing, but everything that was computed for them gets a gradient of zeros.

    Processes that divide the weights add up gradients weight by weight: none may lack one.
    """
    return queries_NHd + 0 * torch.stack([other.sum() for other in others]).sum()
