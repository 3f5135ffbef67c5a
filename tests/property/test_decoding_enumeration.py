"""Losslessness by exact enumeration: every uniform number runs through a grid that hits each outcome exactly as often
as its probability says, and what is committed must be distributed as the target alone would have it, without tolerance
but that of summing.

Probabilities are multiples of 1/4, so acceptance thresholds p/q and residual thresholds are multiples of 1/12 (their
possible denominators are 1, 2, 3 and 4), and midpoints of 12 equal parts enumerate them.
"""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepspec.decoding.sampling import draw
from deepspec.decoding.verify import commit, verify_greedy, verify_sampled

V = 3
PARTS = 4
GRID = 12


@st.composite
def distributions(draw_from: st.DrawFn, count: int) -> Tensor:
    """`count` distributions over V tokens with probabilities that are multiples of 1/PARTS, [count, V]."""
    cuts = [sorted(draw_from(st.tuples(*[st.integers(0, PARTS)] * (V - 1)))) for _ in range(count)]
    rows = [[right - left for left, right in itertools.pairwise([0, *cut, PARTS])] for cut in cuts]
    return torch.tensor(rows, dtype=torch.float32) / PARTS


def midpoints(parts: int) -> Tensor:
    return (torch.arange(parts, dtype=torch.float64) + 0.5) / parts


def outcomes(p_PV: Tensor, q_PV: Tensor, *, generosity: float = 1.0) -> dict[tuple[int, ...], Fraction]:
    """Probability of each committed sequence of a round with two drafts.

    Args:
        p_PV: the target's distributions after: nothing; token 0 … V-1; tokens (0, 0) … (V-1, V-1); 1 + V + V² rows.
        q_PV: the draft's after: nothing; token 0 … V-1; 1 + V rows.
        generosity: how much too easily a draft is accepted.
    """
    first, second, accept_1, accept_2, bonus = (
        grid.flatten()
        for grid in torch.meshgrid(
            midpoints(PARTS), midpoints(PARTS), midpoints(GRID), midpoints(GRID), midpoints(GRID), indexing="ij"
        )
    )
    y1 = draw(q_PV[:1].expand(len(first), -1), first)
    y2 = draw(q_PV[1 + y1], second)
    p_RQV = torch.stack([p_PV[:1].expand(len(first), -1), p_PV[1 + y1], p_PV[1 + V + V * y1 + y2]], dim=1)
    q_RKV = torch.stack([q_PV[:1].expand(len(first), -1), q_PV[1 + y1]], dim=1)
    drafted_RK = torch.stack([y1, y2], dim=1)
    accept_RK = torch.stack([accept_1, accept_2], dim=1) / generosity
    verdict = verify_sampled(p_RQV, q_RKV, drafted_RK, accept_RK, bonus.unsqueeze(1).expand(-1, 3))
    rows, counts = torch.unique(
        torch.cat([verdict.accepted_R.unsqueeze(1), drafted_RK, verdict.bonus_R.unsqueeze(1)], dim=1),
        dim=0,
        return_counts=True,
    )
    found: dict[tuple[int, ...], Fraction] = {}
    for (accepted, *drafted, extra), count in zip(rows.tolist(), counts.tolist(), strict=True):
        ids = tuple(commit(drafted, accepted, extra, ()).ids)
        found[ids] = found.get(ids, Fraction(0)) + Fraction(count, len(first))
    return found


def check_lossless(p_PV: Tensor, found: dict[tuple[int, ...], Fraction]) -> None:
    """Whatever was committed before, the next committed token is distributed as the target says."""
    assert sum(found.values()) == 1
    for prefix in [(), *((a,) for a in range(V)), *itertools.product(range(V), repeat=2)]:
        longer = {ids: share for ids, share in found.items() if len(ids) > len(prefix) and ids[: len(prefix)] == prefix}
        total = sum(longer.values())
        if not total:
            continue
        row = {0: 0, 1: 1 + (prefix[0] if prefix else 0), 2: 1 + V + V * prefix[0] + prefix[1] if prefix[1:] else 0}
        for token in range(V):
            share = sum(share for ids, share in longer.items() if ids[len(prefix)] == token)
            assert share / total == Fraction(float(p_PV[row[len(prefix)], token])), (prefix, token)


@settings(max_examples=12, deadline=None)
@given(p_PV=distributions(1 + V + V * V), q_PV=distributions(1 + V))
def test_committed_tokens_are_distributed_as_the_target(p_PV: Tensor, q_PV: Tensor) -> None:
    check_lossless(p_PV, outcomes(p_PV, q_PV))


def test_enumeration_catches_a_generous_verifier() -> None:
    p_PV = torch.tensor([[0.25, 0.25, 0.5]]).repeat(1 + V + V * V, 1)
    q_PV = torch.tensor([[0.5, 0.25, 0.25]]).repeat(1 + V, 1)
    check_lossless(p_PV, outcomes(p_PV, q_PV))
    with pytest.raises(AssertionError):
        check_lossless(p_PV, outcomes(p_PV, q_PV, generosity=1.2))


@given(
    target=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    drafted=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    stops=st.sets(st.integers(0, 3)),
)
def test_greedy_commits_what_the_target_would_say(target: list[int], drafted: list[int], stops: set[int]) -> None:
    # target[j] is what the target says after the anchor and j right drafts: compare with saying it step by step.
    verdict = verify_greedy(torch.tensor([target]), torch.tensor([drafted]))
    outcome = commit(drafted, int(verdict.accepted_R), int(verdict.bonus_R), stops)
    said: list[int] = []
    for index, token in enumerate(target):
        said.append(token)
        if token in stops or index == len(drafted) or drafted[index] != token:
            break
    assert outcome.ids == said
    assert outcome.stopped == (said[-1] in stops)
    assert outcome.accepted <= outcome.proposed <= len(drafted)
    assert len(outcome.ids) - outcome.accepted in {0, 1}
