"""Losslessness by exact enumeration: every uniform number runs through a grid that hits each outcome exactly as often
as its probability says, and what is committed must be distributed as the target alone would have it, without tolerance
but that of summing.

Probabilities are multiples of 1/4, so acceptance thresholds p/q and residual thresholds are multiples of 1/12 (their
possible denominators are 1, 2, 3 and 4), and midpoints of 12 equal parts enumerate them.
"""

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepspec.decoding.sampling import draw
from deepspec.decoding.scheduler import FixedLength, PrefixScheduler, Scheduler, StaticThreshold
from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.decoding.verify import commit, verify_greedy, verify_sampled
from deepspec.drafts.algorithm import Proposal

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


Lengths = Callable[[Tensor], Tensor]
"""Drafted tokens [N, 2] -> how many of them are verified, int64 [N]."""


def outcomes(
    p_PV: Tensor, q_PV: Tensor, *, generosity: float = 1.0, lengths: Lengths | None = None
) -> dict[tuple[int, ...], Fraction]:
    """Probability of each committed sequence of a round with two drafts.

    Args:
        p_PV: the target's distributions after: nothing; token 0 … V-1; tokens (0, 0) … (V-1, V-1); 1 + V + V² rows.
        q_PV: the draft's after: nothing; token 0 … V-1; 1 + V rows.
        generosity: how much too easily a draft is accepted.
        lengths: how much of what is drafted is verified; None: all.
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
    num_proposed_R = None if lengths is None else lengths(drafted_RK)
    verdict = verify_sampled(p_RQV, q_RKV, drafted_RK, accept_RK, bonus.unsqueeze(1).expand(-1, 3), num_proposed_R)
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


def confidences(of_anchor: float, of_token_V: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """A confidence head: position 1 knows the anchor, position 2 the first drafted token; [N, 2]."""

    def head(drafted_N2: Tensor) -> Tensor:
        second_N = torch.tensor(of_token_V)[drafted_N2[:, 0]]
        return torch.stack([torch.full_like(second_N, of_anchor), second_N], dim=1)

    return head


def scheduled(scheduler: Scheduler, head: Callable[[Tensor], Tensor]) -> Lengths:
    """Each enumerated round scheduled as a row beside another one, whose confidences never change."""

    def lengths(drafted_N2: Tensor) -> Tensor:
        confidence_N2 = head(drafted_N2)
        cases_C2, case_N = confidence_N2.unique(dim=0, return_inverse=True)
        found = []
        for confidence_2 in cases_C2:
            beside_22 = torch.stack([torch.tensor([0.7, 0.6]), confidence_2])
            proposal = Proposal(torch.zeros(2, 2, dtype=torch.int64), None, beside_22)
            found.append(int(scheduler.lengths(proposal)[1]))
        return torch.tensor(found)[case_N]

    return lengths


COSTS = StepCosts({2: Curve((2.0, 6.0), (1.2, 1.8))}, Curve((1.0,), (1.0,)))
SCHEDULERS = [StaticThreshold(0.45), PrefixScheduler(COSTS, (1.0, 1.0)), FixedLength(1)]


@settings(max_examples=8, deadline=None)
@given(
    p_PV=distributions(1 + V + V * V),
    q_PV=distributions(1 + V),
    of_anchor=st.sampled_from([0.1, 0.5, 0.9]),
    of_token_V=st.lists(st.sampled_from([0.05, 0.4, 0.5, 0.95]), min_size=V, max_size=V),
    scheduler=st.sampled_from(SCHEDULERS),
)
def test_scheduled_tokens_are_distributed_as_the_target(
    p_PV: Tensor, q_PV: Tensor, of_anchor: float, of_token_V: list[float], scheduler: Scheduler
) -> None:
    lengths = scheduled(scheduler, confidences(of_anchor, of_token_V))
    check_lossless(p_PV, outcomes(p_PV, q_PV, lengths=lengths))


def test_enumeration_catches_a_scheduler_that_looks_ahead() -> None:
    """Verifying a token only if it is a certain one changes what is committed; so does a search over all prefixes."""
    p_PV = torch.tensor([[0.25, 0.25, 0.5]]).repeat(1 + V + V * V, 1)
    q_PV = torch.tensor([[0.5, 0.25, 0.25]]).repeat(1 + V, 1)
    with pytest.raises(AssertionError):
        check_lossless(p_PV, outcomes(p_PV, q_PV, lengths=lambda drafted_N2: (drafted_N2[:, 0] == 0).long()))

    def best_prefix(drafted_N2: Tensor) -> Tensor:
        # Position 1 alone never pays here; both do if position 2 is sure, and that depends on token 1.
        second_N = torch.tensor([0.99, 0.1, 0.1])[drafted_N2[:, 0]]
        value_N3 = torch.stack([torch.ones_like(second_N), 1.5 / 1.6 + 0 * second_N, (1.5 + 0.5 * second_N) / 1.7], 1)
        return value_N3.argmax(dim=1)

    with pytest.raises(AssertionError):
        check_lossless(p_PV, outcomes(p_PV, q_PV, lengths=best_prefix))


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
