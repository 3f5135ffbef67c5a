"""Acceptance metrics by hand, with their denominators; intervals; paired differences."""

import numpy as np

from deepspec.evaluation.metrics import (
    RoundTable,
    acceptance_length,
    acceptance_length_interval,
    conditional_acceptance,
    mean,
    prefix_acceptance,
    summary,
    verify_rate,
)

# (effective proposed, accepted, committed); K = 3. The last round of the second prompt was cut at a stop token.
ROUNDS = RoundTable.of([[(3, 0, 1), (3, 3, 4), (3, 1, 2)], [(3, 2, 3), (2, 2, 2)], []])


def test_acceptance_length_pools_rounds_and_counts_the_bonus() -> None:
    assert acceptance_length(ROUNDS) == 12 / 5  # not the mean of the prompts' 7/3 and 5/2


def test_verify_rate_counts_the_anchor_as_verified() -> None:
    assert verify_rate(ROUNDS) == 12 / (4 + 4 + 4 + 4 + 3)


def test_prefix_acceptance() -> None:
    assert prefix_acceptance(ROUNDS, 3) == ([4 / 5, 3 / 5, 1 / 4], [5, 5, 4])


def test_conditional_acceptance() -> None:
    # Position 3 was reached by the round with 3 and the one with 2 accepted; the cut round did not propose it.
    assert conditional_acceptance(ROUNDS, 3) == ([4 / 5, 3 / 4, 1 / 2], [5, 4, 2])


def test_what_was_never_reached_is_not_a_number() -> None:
    rejected = RoundTable.of([[(3, 0, 1)]])
    assert conditional_acceptance(rejected, 3) == ([0.0, None, None], [1, 0, 0])
    assert prefix_acceptance(rejected, 4) == ([0.0, 0.0, 0.0, None], [1, 1, 1, 0])


def test_nothing_measured() -> None:
    table = RoundTable.of([])
    assert acceptance_length(table) is None
    assert verify_rate(table) is None
    assert acceptance_length_interval([table]) is None
    assert acceptance_length_interval([RoundTable.of([[], []])]) is None


def test_summary_holds_the_contract_of_run_json() -> None:
    found = summary(ROUNDS, 3)
    assert found.tau == 2.4
    assert found.rounds == 5
    assert found.prompts == 3
    assert found.conditional_trials == (5, 4, 2)
    low, high = found.tau_ci95
    assert low < 2.4 < high
    assert summary(RoundTable.of([[(3, 1, 2)]]), 3).tau_ci95 is None  # a single prompt


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Prompts differ in their mean: an interval over rounds would be far too narrow. 200 experiments, true τ = 3.
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        rounds = []
        for _ in range(40):
            level = generator.choice([1, 5])
            rounds.append([(7, level - 1, level)] * 30)
        low, high = acceptance_length_interval([RoundTable.of(rounds)])
        covered += low <= 3 <= high
    assert 0.92 <= covered / 200 <= 0.99  # standard deviation 0.015


def test_macro_average_leaves_out_what_was_not_measured() -> None:
    assert mean([1.0, None, 2.0]) == 1.5
    assert mean([None]) is None
