"""Attention in groups as one flex-attention kernel over the whole pack, for GPUs; see `contracts`.

Every query sees two runs of keys in `[context ; own keys]`: the first positions of its document, and its own group.
So four numbers a query say who sees whom, and which tiles of the kernel have something to see follows from them: no
mask of N x (T + M) is ever made. Flex attention takes grouped heads as they are. It has no backward on a CPU.

Shapes: T packed context tokens, N queries, M own keys, K = T + M keys, H heads, d head dim, I, J tiles of queries and
keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from deepspec.drafts.attention.contracts import (
    AttentionBackend,
    AttentionGroups,
    CausalAttention,
    GroupAttention,
    Projected,
    no_queries,
)

TILE = 128
"""Queries and keys of a tile: flex attention's own default."""


@dataclass(frozen=True)
class Sight:
    """Which keys each query sees: `start <= key < stop` in one of R runs that do not touch.

    Args:
        start_RN, stop_RN: int64; an empty run has start = stop.
        num_keys: K.
    """

    start_RN: Tensor
    stop_RN: Tensor
    num_keys: int

    def mask_mod(self) -> Callable[..., Any]:
        """`(batch, head, query, key) -> whether it is seen`, as flex attention asks: in scalars, or whole indices."""
        runs = list(zip(self.start_RN, self.stop_RN, strict=True))

        def sees(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
            (start_N, stop_N), *more = runs
            seen = (start_N[query] <= key) & (key < stop_N[query])
            for start_N, stop_N in more:
                seen = seen | ((start_N[query] <= key) & (key < stop_N[query]))
            return seen

        return sees


def group_sight(groups: AttentionGroups) -> Sight:
    """What the groups' queries see in `[context ; own keys]`."""
    device = groups.seen_A.device
    num_groups, num_context = len(groups.seen_A), sum(groups.lengths)
    lengths, per_document = _moved(groups.lengths, device), _moved(groups.groups_per_document, device)
    document_start_A = (lengths.cumsum(0) - lengths).repeat_interleave(per_document, output_size=num_groups)
    own_start_A = num_context + groups.own_per_group * torch.arange(num_groups, device=device)
    start_RA = torch.stack((document_start_A, own_start_A))
    stop_RA = torch.stack((document_start_A + groups.seen_A, own_start_A + groups.own_per_group))
    start_RN, stop_RN = (x.repeat_interleave(groups.queries_per_group, dim=1) for x in (start_RA, stop_RA))
    return Sight(start_RN, stop_RN, num_context + num_groups * groups.own_per_group)


def causal_sight(lengths: Sequence[int], device: torch.device) -> Sight:
    """What packed positions see of themselves."""
    total = sum(lengths)
    sizes = _moved(lengths, device)
    start_T = (sizes.cumsum(0) - sizes).repeat_interleave(sizes, output_size=total)
    return Sight(start_T[None], 1 + torch.arange(total, device=device)[None], total)


def _moved(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Numbers on a device, int64; made there by `torch.tensor` they would wait for all that it has to do."""
    return torch.tensor(list(numbers), dtype=torch.int64).to(device, non_blocking=True)


def block_mask(sight: Sight) -> BlockMask:
    """The tiles in which something is seen, and those in which everything is, where the kernel asks no more.

    Equal to `create_block_mask(sight.mask_mod(), …)`, which would make all N x K answers first.
    """
    num_queries = sight.start_RN.shape[1]
    start_RN, stop_RN = sight.start_RN, sight.stop_RN
    edges_J = TILE * torch.arange(-(-sight.num_keys // TILE), device=start_RN.device)
    begin_RN1, end_RN1 = start_RN[..., None], stop_RN[..., None]
    some_NJ = ((begin_RN1 < edges_J + TILE) & (end_RN1 > edges_J) & (begin_RN1 < end_RN1)).any(0)
    all_NJ = ((begin_RN1 <= edges_J) & (end_RN1 >= edges_J + TILE)).any(0)
    # Queries that fill up the last tile are none: they see nothing.
    padding = -num_queries % TILE
    some_IJ, all_IJ = (F.pad(x, (0, 0, 0, padding)).view(-1, TILE, len(edges_J)) for x in (some_NJ, all_NJ))
    some_IJ, all_IJ = some_IJ.any(1), all_IJ.all(1)
    partial, full = _listed(some_IJ & ~all_IJ), _listed(all_IJ)
    return BlockMask.from_kv_blocks(
        *partial, *full, BLOCK_SIZE=TILE, mask_mod=sight.mask_mod(), seq_lengths=(num_queries, sight.num_keys)
    )


def _listed(tiles_IJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles each row has, [1, 1, I], and which, those first, [1, 1, I, J]."""
    order = torch.argsort(tiles_IJ.int(), dim=-1, descending=True, stable=True)
    return tiles_IJ.sum(-1).int()[None, None], order.int()[None, None]


class _Flex:
    """See `AttentionBackend`."""

    def groups(self, groups: AttentionGroups, dtype: torch.dtype) -> GroupAttention:  # noqa: ARG002  # a mask of indices has none
        return _GroupAttention(block_mask(group_sight(groups)))

    def causal(self, lengths: Sequence[int], device: torch.device) -> CausalAttention:
        return _CausalAttention(block_mask(causal_sight(lengths, device)))


FLEX: AttentionBackend = _Flex()


class _GroupAttention:
    """See `GroupAttention`."""

    def __init__(self, mask: BlockMask) -> None:
        self._mask = mask

    def __call__(self, projected: Projected, *, scale: float) -> Tensor:
        return _attend(projected.queries_NHd, *projected.joined(), self._mask, scale)


class _CausalAttention:
    """See `CausalAttention`."""

    def __init__(self, mask: BlockMask) -> None:
        self._mask = mask

    def __call__(self, queries_THd: Tensor, keys_THd: Tensor, values_THd: Tensor, *, scale: float) -> Tensor:
        return _attend(queries_THd, keys_THd, values_THd, self._mask, scale)


def _attend(queries_NHd: Tensor, keys_KHd: Tensor, values_KHd: Tensor, mask: BlockMask, scale: float) -> Tensor:
    if not len(queries_NHd):
        return no_queries(queries_NHd, keys_KHd, values_KHd)
    queries, keys, values = (x.transpose(0, 1)[None] for x in (queries_NHd, keys_KHd, values_KHd))
    attended: Tensor = _kernel(queries.device.type)(
        queries, keys, values, block_mask=mask, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
    )
    return attended[0].transpose(0, 1)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Flex attention compiled once for all lengths; on a CPU as it is, which is for tests: slow, and forward only."""
    if device == "cpu":
        return flex_attention
    return torch.compile(flex_attention, dynamic=True)
