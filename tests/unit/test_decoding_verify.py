"""The acceptance rule: by hand, and its output distribution by statistics of 20,000 rounds."""

import numpy as np
import pytest
import torch

from deepspec.decoding.random import Purpose, proposal_uniforms, uniforms
from deepspec.decoding.sampling import draw
from deepspec.decoding.scheduler import Scheduler
from deepspec.decoding.verify import Commit, commit, residual, verify_greedy, verify_sampled
from tests.fixtures.two_positions import SCHEDULERS, p_value_of_two_positions


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


@pytest.mark.full  # seconds each
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_statistics_of_20000_rounds_at_the_demos_vocabulary(scheduler: Scheduler | None) -> None:
    assert p_value_of_two_positions(scheduler, 1.0, 704) > 0.01


@pytest.mark.full  # seconds each
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_statistics_at_the_demos_vocabulary_catch_a_verifier_that_is_too_generous(scheduler: Scheduler | None) -> None:
    assert p_value_of_two_positions(scheduler, 1.03, 704) < 1e-6
