"""Attention in groups: both backends against brute force and each other, and the tiles that flex attention is given."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from deepspec.drafts.attention.choose import choose_backend
from deepspec.drafts.attention.contracts import AttentionGroups, Projected
from deepspec.drafts.attention.flex import FLEX, TILE, block_mask, causal_sight, group_sight
from deepspec.drafts.attention.sdpa import SDPA

BACKENDS = {"sdpa": SDPA, "flex": FLEX}
CPU = torch.device("cpu")
SCALE = 0.3

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="flex attention has a backward on GPUs only, and there is none"
)


def groups_of(
    lengths: Sequence[int], per_document: Sequence[int], *, queries: int, own: int, device: torch.device = CPU
) -> AttentionGroups:
    generator = torch.Generator().manual_seed(len(lengths))
    seen = [
        torch.randint(0, length + 1, (count,), generator=generator).sort().values
        for length, count in zip(lengths, per_document, strict=True)
    ]
    return AttentionGroups(torch.cat(seen).to(device), torch.cat(seen).numpy(), per_document, lengths, queries, own)


def visible(groups: AttentionGroups) -> Tensor:
    """Who sees whom in `[context ; own]`, one pair at a time."""
    document_of_group = [d for d, count in enumerate(groups.groups_per_document) for _ in range(count)]
    places = [(d, t) for d, length in enumerate(groups.lengths) for t in range(length)]
    return torch.tensor(
        [
            [document == document_of_group[group] and t < int(groups.seen_A[group]) for document, t in places]
            + [other == group for other in range(len(document_of_group)) for _ in range(groups.own_per_group)]
            for group in range(len(document_of_group))
            for _ in range(groups.queries_per_group)
        ]
    )


def dense(queries_NHd: Tensor, keys_KHd: Tensor, values_KHd: Tensor, visible_NK: Tensor) -> Tensor:
    keys, values = (x.repeat_interleave(queries_NHd.shape[1] // x.shape[1], dim=1) for x in (keys_KHd, values_KHd))
    scores = torch.einsum("nhd,khd->hnk", queries_NHd, keys) * SCALE
    return torch.einsum("hnk,khd->nhd", torch.softmax(scores.masked_fill(~visible_NK, -torch.inf), -1), values)


def inputs(groups: AttentionGroups, device: torch.device = CPU) -> list[Tensor]:
    """Queries, own keys and values, context keys and values; 4 query heads share 2 key heads."""
    generator = torch.Generator().manual_seed(1)
    num_groups, tokens = len(groups.seen_A), sum(groups.lengths)
    own = num_groups * groups.own_per_group
    shapes = [(num_groups * groups.queries_per_group, 4, 16), *[(own, 2, 16)] * 2, *[(tokens, 2, 16)] * 2]
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


# Groups of several calls (more than 112 queries) and tiles, documents without groups, groups that see nothing.
SHAPES = {
    "a block draft's": ((20, 6, 300, 5), (4, 0, 45, 2), 3, 3),
    "an unroll's": ((140, 9), (131, 5), 1, 4),
    "no group at all": ((12, 3), (0, 0), 3, 3),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_see_their_context_and_themselves(backend: str, shape: str) -> None:
    lengths, per_document, queries, own = SHAPES[shape]
    groups = groups_of(lengths, per_document, queries=queries, own=own)
    q, own_k, own_v, context_k, context_v = (x.detach() for x in inputs(groups))
    projected = Projected(q, own_k, own_v, context_k, context_v)
    found = BACKENDS[backend].groups(groups, torch.float32)(projected, scale=SCALE)
    assert found.shape == q.shape
    if len(q):
        keys, values = torch.cat((context_k, own_k)), torch.cat((context_v, own_v))
        torch.testing.assert_close(found, dense(q, keys, values, visible(groups)))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_see_their_document_up_to_themselves(backend: str) -> None:
    lengths = (3, 1, 200, 60)
    document_T = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    visible_TT = (document_T[:, None] == document_T) & torch.ones(264, 264).tril().bool()
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(264, heads, 16, generator=generator) for heads in (4, 2, 2))
    found = BACKENDS[backend].causal(lengths, CPU)(q, k, v, scale=SCALE)
    torch.testing.assert_close(found, dense(q, k, v, visible_TT))


@given(
    documents=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 60)), min_size=1, max_size=5),
    queries=st.integers(1, 7),
    own=st.integers(1, 7),
)
def test_tiles_are_those_of_the_whole_mask(documents: list[tuple[int, int]], queries: int, own: int) -> None:
    lengths, per_document = (tuple(column) for column in zip(*documents, strict=True))
    sights = [causal_sight(lengths, CPU)]
    if sum(per_document):
        sights.append(group_sight(groups_of(lengths, per_document, queries=queries, own=own)))
    for sight in sights:
        found = block_mask(sight)
        size = (sight.start_RN.shape[1], sight.num_keys)
        wanted = create_block_mask(sight.mask_mod(), None, None, *size, device="cpu", BLOCK_SIZE=TILE)
        assert found.seq_lengths == wanted.seq_lengths == size
        assert torch.equal(found.to_dense(), wanted.to_dense())
        for kind in ("kv", "full_kv"):
            counts, ours, theirs = (
                getattr(mask, f"{kind}_{what}")[0, 0]
                for mask, what in ((found, "num_blocks"), (found, "indices"), (wanted, "indices"))
            )
            assert torch.equal(counts, getattr(wanted, f"{kind}_num_blocks")[0, 0])
            for count, row, other in zip(counts, ours, theirs, strict=True):
                assert torch.equal(row[:count], other[:count])


def test_the_backend_depends_on_the_device() -> None:
    assert choose_backend("auto", CPU) is SDPA
    assert choose_backend("auto", torch.device("cuda")) is FLEX
    assert choose_backend("sdpa", torch.device("cuda")) is SDPA
    assert choose_backend("flex", CPU) is FLEX


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_flex_attention_equals_scaled_dot_products_with_its_gradients(shape: str) -> None:
    lengths, per_document, queries, own = SHAPES[shape]
    device = torch.device("cuda")
    groups = groups_of(lengths, per_document, queries=queries, own=own, device=device)
    results = []
    for backend in (SDPA, FLEX):
        tensors = inputs(groups, device)
        output = backend.groups(groups, torch.float32)(Projected(*tensors), scale=SCALE)
        output.square().sum().backward()
        results.append([output.detach(), *(x.grad for x in tensors)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # the kernel multiplies in TF32
