"""The acceptance rule: by hand, and its output distribution by statistics of 20,000 rounds."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from deepspec.decoding.random import Purpose, proposal_uniforms, uniforms
from deepspec.decoding.sampling import draw
from deepspec.decoding.scheduler import PrefixScheduler, Scheduler, StaticThreshold
from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.decoding.verify import Commit, commit, residual, verify_greedy, verify_sampled
from deepspec.drafts.algorithm import Proposal


def test_greedy_accepts_the_longest_matching_prefix() -> None:
    target_RQ = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    drafted_RK = torch.tensor([[1, 2], [1, 9], [9, 2], [9, 9]])
    verdict = verify_greedy(target_RQ, drafted_RK)
    assert verdict.accepted_R.tolist() == [2, 1, 0, 0]
    assert verdict.bonus_R.tolist() == [3, 2, 1, 1]


def test_positions_that_were_not_proposed_are_not_accepted() -> None:
    target_RQ = torch.tensor([[1, 2, 3]] * 3)
    drafted_RK = torch.tensor([[1, 2]] * 3)
    verdict = verify_greedy(target_RQ, drafted_RK, torch.tensor([2, 1, 0]))
    assert verdict.accepted_R.tolist() == [2, 1, 0]
    assert verdict.bonus_R.tolist() == [3, 2, 1]


def test_sampled_row_without_proposal_draws_from_the_target_alone() -> None:
    # q would leave a residual without token 0; a row that proposed nothing must not see it.
    p_RQV = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).repeat(2, 1, 1)
    q_RKV = torch.tensor([[[1.0, 0.0]]]).repeat(2, 1, 1)
    drafted_RK = torch.zeros((2, 1), dtype=torch.int64)
    uniform_RK = torch.full((2, 1), 0.9, dtype=torch.float64)
    bonus_RQ = torch.full((2, 2), 0.25, dtype=torch.float64)
    verdict = verify_sampled(p_RQV, q_RKV, drafted_RK, uniform_RK, bonus_RQ, torch.tensor([1, 0]))
    assert verdict.accepted_R.tolist() == [0, 0]
    assert verdict.bonus_R.tolist() == [1, 0]


def test_residual_is_what_the_draft_does_not_cover() -> None:
    p_NV = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
    q_NV = torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]])
    assert residual(p_NV, q_NV).tolist() == [[0.25, 0.0, 0.25], p_NV[1].tolist()]


def test_residual_of_rounding_noise_is_the_target() -> None:
    p_NV = torch.tensor([[0.5, 0.5]])
    q_NV = torch.tensor([[0.5, 0.5 - 3e-9]])
    assert torch.equal(residual(p_NV, q_NV), p_NV)


def test_nan_of_the_target_becomes_no_token() -> None:
    p_RQV = torch.full((1, 2, 3), float("nan"))
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    verdict = verify_sampled(p_RQV, torch.full((1, 1, 3), 1 / 3), torch.tensor([[1]]), half[:, :1], half)
    assert verdict.accepted_R.tolist() == [0]
    assert verdict.bonus_R.tolist() == [3]


@pytest.mark.parametrize(
    ("drafted", "accepted", "bonus", "expected"),
    [
        ([5, 6, 7], 0, 8, Commit([8], 3, 0, stopped=False)),
        ([5, 6, 7], 2, 8, Commit([5, 6, 8], 3, 2, stopped=False)),
        ([5, 6, 7], 3, 8, Commit([5, 6, 7, 8], 3, 3, stopped=False)),
        ([5, 6, 7], 1, 0, Commit([5, 0], 3, 1, stopped=True)),  # a stop as bonus counts normally
        ([5, 0, 7], 3, 8, Commit([5, 0], 2, 2, stopped=True)),  # cut: place = accepted = proposed = committed
        ([5, 0, 1], 3, 8, Commit([5, 0], 2, 2, stopped=True)),  # the first of two stops
        ([5, 0, 7], 1, 8, Commit([5, 8], 3, 1, stopped=False)),  # the drafted stop was rejected
        ([0], 1, 8, Commit([0], 1, 1, stopped=True)),
        ([], 0, 8, Commit([8], 0, 0, stopped=False)),
    ],
)
def test_commit_cuts_at_the_first_stop(drafted: list[int], accepted: int, bonus: int, expected: Commit) -> None:
    assert commit(drafted, accepted, bonus, {0, 1}) == expected


def p_value(generosity: float) -> float:
    """Chi-square test of 20,000 seeded rounds: are (first token, how it came) as often as they must be?

    Args:
        generosity: 1.0 is the real rule; 1.03 accepts with 3 % more probability than it should.
    """
    num_rounds = 20_000
    p_V = torch.tensor([0.4, 0.3, 0.2, 0.1])
    q_V = torch.tensor([0.45, 0.35, 0.19, 0.01])
    table_RPU = torch.from_numpy(np.stack([uniforms(seed, 2) for seed in range(num_rounds)]))
    p_RQV = p_V.expand(num_rounds, 2, -1)
    q_RKV = q_V.expand(num_rounds, 1, -1)
    proposals_RK = torch.from_numpy(np.stack([proposal_uniforms(seed, 1, 1)[0] for seed in range(num_rounds)]))
    drafted_RK = draw(q_RKV[:, 0], proposals_RK[:, 0]).unsqueeze(1)
    accept_RK = table_RPU[:, :1, Purpose.ACCEPT] / generosity
    verdict = verify_sampled(p_RQV, q_RKV, drafted_RK, accept_RK, table_RPU[..., Purpose.BONUS])
    accepted_R = verdict.accepted_R.bool()
    observed_C = torch.cat(
        [
            torch.bincount(drafted_RK[accepted_R, 0], minlength=4),
            torch.bincount(verdict.bonus_R[~accepted_R], minlength=4),
        ]
    ).double()
    covered_V = torch.minimum(p_V, q_V).double()
    expected_C = num_rounds * torch.cat([covered_V, p_V.double() - covered_V])
    possible_C = expected_C > 1e-3
    assert (observed_C[~possible_C] == 0).all()
    gap = ((observed_C - expected_C)[possible_C] ** 2 / expected_C[possible_C]).sum()
    degrees = torch.tensor((int(possible_C.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, gap / 2))


def test_statistics_of_20000_rounds() -> None:
    assert p_value(1.0) > 0.01


def test_statistics_catch_a_verifier_that_is_too_generous() -> None:
    assert p_value(1.03) < 1e-6


VOCABULARY = 704
LENGTHS = StepCosts({2: Curve((2.0, 6.0), (1.0, 1.9))}, Curve((1.0,), (1.0,)))
SCHEDULERS = {
    "all": None,
    "threshold": StaticThreshold(0.5),
    "scheduled": PrefixScheduler(LENGTHS, (1.0, 1.0)),
}


def p_value_of_two_positions(scheduler: Scheduler | None, generosity: float) -> float:
    """Chi-square test of 20,000 seeded rounds of two drafts at a vocabulary of 704: is each committed token as often
    accepted, and as often a replacement, as it must be, whatever came first and however many drafts were verified?

    Distributions follow from the token before, as a model's do; so does the confidence of position 2. Each round shares
    its step with the one before it, whose own tokens decide how sure its draft is there.

    Args:
        scheduler: chooses how much is verified.
        generosity: 1.03 accepts with 3 % more probability than it should.
    """
    num_rounds, draws = 20_000, torch.Generator().manual_seed(1)
    scale_V = 2.0 * torch.randn(VOCABULARY, generator=draws)
    p_first_V = torch.softmax(scale_V, 0)
    q_first_V = torch.softmax(scale_V + 0.2 * torch.randn(VOCABULARY, generator=draws), 0)
    second_CV = torch.softmax(2.0 * torch.randn(3, VOCABULARY, generator=draws), 1)
    noisy_CV = torch.softmax(second_CV.log() + 0.2 * torch.randn(3, VOCABULARY, generator=draws), 1)
    table_RPU = torch.from_numpy(np.stack([uniforms(seed, 3) for seed in range(num_rounds)]))
    proposals_RK = torch.from_numpy(np.stack([proposal_uniforms(seed, 1, 2)[0] for seed in range(num_rounds)]))
    first_R = draw(q_first_V.expand(num_rounds, -1), proposals_RK[:, 0])
    second_R = draw(noisy_CV[first_R % 3], proposals_RK[:, 1])
    q_RKV = torch.stack([q_first_V.expand(num_rounds, -1), noisy_CV[first_R % 3]], dim=1)
    p_RQV = torch.stack([p_first_V.expand(num_rounds, -1), second_CV[first_R % 3], second_CV[second_R % 3]], dim=1)
    lengths_R = torch.full((num_rounds,), 2)
    if scheduler is not None:
        kind_R = first_R % 3
        table_CC = torch.tensor([[_length(scheduler, kind, other) for other in range(3)] for kind in range(3)])
        assert (table_CC.amin(), len(table_CC.unique())) == (1, 2)
        lengths_R = table_CC[kind_R, kind_R.roll(1)]
    verdict = verify_sampled(
        p_RQV,
        q_RKV,
        torch.stack([first_R, second_R], 1),
        table_RPU[:, :2, Purpose.ACCEPT] / generosity,
        table_RPU[..., Purpose.BONUS],
        None if scheduler is None else lengths_R,
    )
    tables = _ways(first_R, verdict.accepted_R > 0, verdict.bonus_R, p_first_V, q_first_V)
    for kind, length in product(range(3), (1, 2)):
        rows_R = (first_R % 3 == kind) & (verdict.accepted_R > 0) & (lengths_R == length)
        if length == 1:
            # Nothing was verified there: the target's own draw, given the token before.
            own_V = torch.bincount(verdict.bonus_R[rows_R], minlength=VOCABULARY)
            tables.append((own_V.double(), int(rows_R.sum()) * second_CV[kind].double()))
            continue
        again_R = verdict.accepted_R[rows_R] > 1
        tables += _ways(second_R[rows_R], again_R, verdict.bonus_R[rows_R], second_CV[kind], noisy_CV[kind])
    tables = [(seen_V, due_V) for seen_V, due_V in tables if due_V.sum() > 0]
    rates = [
        (torch.stack([seen_V.sum(), replaced_V.sum()]), torch.stack([due_V.sum(), left_V.sum()]))
        for (seen_V, due_V), (replaced_V, left_V) in pairwise(tables)
        if (seen_V.sum() + replaced_V.sum() - due_V.sum() - left_V.sum()).abs() < 1e-3
    ]
    # Two questions, so the smaller p-value counts twice: which tokens, and how many were accepted.
    return min(1.0, 2 * min(_p_value(tables, (len(tables) + 1) // 2), _p_value(rates, len(rates))))


def _length(scheduler: Scheduler, kind: int, other: int) -> int:
    """How many drafts are verified after a first token of a kind, beside a row whose first token is of another."""
    confidence_RK = torch.tensor([[0.6, (0.95, 0.7, 0.2)[other]], [0.7, (0.9, 0.55, 0.1)[kind]]])
    return int(scheduler.lengths(Proposal(torch.zeros(2, 2, dtype=torch.int64), None, confidence_RK))[1])


def _p_value(tables: list[tuple[Tensor, Tensor]], num_constraints: int) -> float:
    """Chi-square over tables of counts seen and due; what is due less than five times is one cell."""
    statistic, cells = 0.0, 0
    for seen_V, due_V in tables:
        large_V = due_V >= 5
        seen_C, due_C = seen_V[large_V], due_V[large_V]
        if not large_V.all():
            seen_C = torch.cat([seen_C, seen_V[~large_V].sum()[None]])
            due_C = torch.cat([due_C, due_V[~large_V].sum()[None]]).clamp_min(1e-9)
        statistic += float(((seen_C - due_C) ** 2 / due_C).sum())
        cells += len(due_C)
    degrees = torch.tensor((cells - num_constraints) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)))


def _ways(
    drafted_R: Tensor, accepted_R: Tensor, bonus_R: Tensor, p_V: Tensor, q_V: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """How often each token was committed by being accepted, and as a replacement: seen and due."""
    covered_V = torch.minimum(p_V, q_V).double()
    accepted_V = torch.bincount(drafted_R[accepted_R], minlength=VOCABULARY).double()
    replaced_V = torch.bincount(bonus_R[~accepted_R], minlength=VOCABULARY).double()
    count = len(drafted_R)
    return [(accepted_V, count * covered_V), (replaced_V, count * (p_V.double() - covered_V))]


@pytest.mark.full  # seconds each
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_statistics_of_20000_rounds_at_a_real_vocabulary(scheduler: Scheduler | None) -> None:
    assert p_value_of_two_positions(scheduler, 1.0) > 0.01


@pytest.mark.full  # seconds each
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_statistics_at_a_real_vocabulary_catch_a_verifier_that_is_too_generous(scheduler: Scheduler | None) -> None:
    assert p_value_of_two_positions(scheduler, 1.03) < 1e-6
