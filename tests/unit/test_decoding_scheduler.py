"""Algorithm 1 against a loop that follows the paper, the costs it is given, and the load at which drafting stops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.decoding.scheduler import (
    FixedLength,
    PrefixScheduler,
    StaticThreshold,
    admitted,
    modes_by_load,
    survival,
)
from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.drafts.algorithm import Proposal
from deepspec.errors import IncompatibleDraft, NoConfidence
from tests.fixtures.refused import refused

FLAT = StepCosts({1: Curve((1.0,), (1.1,)), 64: Curve((1.0,), (1.1,))}, Curve((1.0,), (1.0,)))
"""Verifying costs the same whatever is verified."""
LINEAR = StepCosts({1: Curve((1.0, 101.0), (1.1, 101.1))}, Curve((1.0, 101.0), (1.0, 101.0)))
"""Every token costs as much as a step of one."""


def one_by_one(survival_RK: list[list[float]], rates: list[float]) -> list[int]:
    """The paper's Algorithm 1, candidate by candidate."""
    rows = len(survival_RK)
    candidates = [(-a, k, row) for row, of_row in enumerate(survival_RK) for k, a in enumerate(of_row) if a > 0]
    lengths, expected, tokens = [0] * rows, float(rows), rows
    best = expected * rates[0]
    for negative, _, row in sorted(candidates):
        tokens, expected = tokens + 1, expected - negative
        throughput = expected * rates[tokens - rows]
        if not throughput > best:
            break
        best = throughput
        lengths[row] += 1
    return lengths


def proposal(confidence_RK: list[list[float]] | None) -> Proposal:
    tokens_RK = torch.zeros(2, 3, dtype=torch.int64)
    return Proposal(tokens_RK, None, None if confidence_RK is None else torch.tensor(confidence_RK))


@given(data=st.data(), rows=st.integers(1, 5), positions=st.integers(1, 4))
def test_admission_equals_the_papers_loop(data: st.DataObject, rows: int, positions: int) -> None:
    # Few different values, so that ties are frequent; and rates that are not monotone are allowed here.
    values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    conditional_RK = torch.tensor(
        data.draw(st.lists(st.lists(values, min_size=positions, max_size=positions), min_size=rows, max_size=rows)),
        dtype=torch.float64,
    )
    survival_RK = conditional_RK.cumprod(dim=1)
    rate = st.sampled_from([0.25, 0.5, 0.75, 1.0])
    rates = data.draw(st.lists(rate, min_size=rows * positions + 1, max_size=rows * positions + 1))
    found_R = admitted(survival_RK, torch.tensor(rates, dtype=torch.float64))
    assert found_R.tolist() == one_by_one(survival_RK.tolist(), rates)


def test_what_costs_nothing_is_all_verified_and_what_costs_a_step_nothing() -> None:
    sure = proposal([[0.9, 0.8, 0.7], [0.5, 0.5, 0.5]])
    assert PrefixScheduler(FLAT, (1.0, 1.0, 1.0)).lengths(sure).tolist() == [3, 3]
    assert PrefixScheduler(LINEAR, (1.0, 1.0, 1.0)).lengths(sure).tolist() == [0, 0]


def test_the_surer_row_is_verified_further() -> None:
    costs = StepCosts({2: Curve((2.0, 8.0), (1.1, 2.3))}, Curve((1.0,), (1.0,)))
    lengths = PrefixScheduler(costs, (1.0, 1.0, 1.0)).lengths(proposal([[0.95, 0.95, 0.95], [0.3, 0.9, 0.9]]))
    assert lengths.tolist() == [3, 0]


def test_temperatures_are_applied_before_the_product() -> None:
    confidence_RK = torch.tensor([[0.9, 0.9]])
    assert survival(confidence_RK, torch.tensor([1.0, 1.0], dtype=torch.float64)).tolist() == [
        pytest.approx([0.9, 0.81], abs=1e-6)
    ]
    tempered = 1 / (1 + np.exp(-np.log(9) / 2))
    assert survival(confidence_RK, torch.tensor([2.0, 1.0], dtype=torch.float64)).tolist() == [
        pytest.approx([tempered, tempered * 0.9], abs=1e-6)
    ]
    saturated = survival(torch.tensor([[1.0, 0.0]]), torch.tensor([3.0, 3.0], dtype=torch.float64))
    assert saturated.isfinite().all()


def test_a_threshold_keeps_what_stands_before_the_first_doubt() -> None:
    doubts = proposal([[0.9, 0.2, 0.9], [0.1, 0.9, 0.9]])
    assert StaticThreshold(0.5).lengths(doubts).tolist() == [1, 0]
    assert StaticThreshold(0.0).lengths(doubts).tolist() == [3, 3]
    assert FixedLength(2).lengths(proposal(None)).tolist() == [2, 2]
    assert FixedLength(9).lengths(proposal(None)).tolist() == [3, 3]


def test_without_confidences_there_is_nothing_to_go_by() -> None:
    for scheduler in (StaticThreshold(0.5), PrefixScheduler(FLAT, (1.0, 1.0, 1.0))):
        with refused(NoConfidence, "confidence head"):
            scheduler.lengths(proposal(None))


def test_another_drafts_calibration_is_refused() -> None:
    with refused(IncompatibleDraft, "3 tokens", "2 confidences"):
        PrefixScheduler(FLAT, (1.0, 1.0)).lengths(proposal([[0.5] * 3] * 2))


CROWDED = StepCosts(
    {
        rows: Curve.fitted([(rows * n, 0.2 * rows + max(1.0, rows * n / 8)) for n in (1, 2, 3, 4)])
        for rows in (1, 2, 4, 8, 64)
    },
    Curve((1.0, 8.0, 64.0), (1, 1, 8)),
)
"""A draft costs 0.2 a row; verifying is free up to eight tokens and then costs an eighth each."""


def test_what_is_done_follows_from_the_load() -> None:
    survival_NK = np.array([[0.95, 0.9, 0.85], [0.5, 0.1, 0.01]]).repeat(10, axis=0)
    found = modes_by_load(CROWDED, survival_NK, [1, 2, 4, 8, 64])
    assert found == {1: "all", 2: "all", 4: "scheduled", 8: "none", 64: "none"}
    assert modes_by_load(FLAT, survival_NK, [64, 1]) == {1: "all", 64: "all"}
    assert modes_by_load(LINEAR, survival_NK, [1]) == {1: "none"}


def test_modes_hold_for_fewer_rows_and_the_last_for_more() -> None:
    scheduler = PrefixScheduler(FLAT, (1.0, 1.0, 1.0), {2: "all", 8: "scheduled", 16: "none"})
    assert [scheduler.mode(rows) for rows in (1, 2, 3, 8, 9, 99)] == [
        "all",
        "all",
        "scheduled",
        "scheduled",
        "none",
        "none",
    ]
    assert [scheduler.drafts(rows) for rows in (1, 8, 9)] == [True, True, False]
    assert PrefixScheduler(FLAT, (1.0,)).mode(5) == "scheduled"
    doubtful = proposal([[0.0, 0.0, 0.0]] * 2)
    assert scheduler.lengths(doubtful).tolist() == [3, 3]
    assert PrefixScheduler(LINEAR, (1.0, 1.0, 1.0)).lengths(doubtful).tolist() == [0, 0]


def test_jagged_measurements_become_monotone() -> None:
    curve = Curve.fitted([(1, 1.0), (2, 3.0), (4, 2.0), (4, 2.0), (8, 5.0)])
    assert curve.loads == (1, 2, 4, 8)
    assert curve.seconds == pytest.approx((1.0, 7 / 3, 7 / 3, 5.0))
    assert curve([0.5, 1, 3, 6, 16]) == pytest.approx([1.0, 1.0, 7 / 3, (7 / 3 + 5) / 2, 5 + 8 * (5 - 7 / 3) / 4])
    assert Curve.fitted([(4, 2.0)])([1, 4, 9]) == pytest.approx([2.0, 2.0, 2.0])


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 10)), min_size=1, max_size=12))
def test_fitted_curves_never_fall(measured: list[tuple[int, float]]) -> None:
    seconds = Curve.fitted(measured)(np.arange(0, 60))
    assert (np.diff(seconds) >= -1e-12).all()


@pytest.mark.parametrize("measured", [[], [(1, float("nan"))], [(1, -1.0)], [(1, float("inf"))]])
def test_what_is_no_measurement_is_refused(measured: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match=r"measured|duration"):
        Curve.fitted(measured)


def test_costs_survive_json() -> None:
    assert StepCosts.from_json(LINEAR.to_json()) == LINEAR
    assert LINEAR.steps_per_second(1, [1.0, 2.0]) == pytest.approx([1 / 1.1, 1 / 2.1])


def test_costs_are_read_between_numbers_of_rows_at_the_same_tokens_per_row() -> None:
    costs = StepCosts({2: Curve((2.0, 8.0), (1.0, 4.0)), 4: Curve((4.0, 16.0), (3.0, 9.0))}, Curve((1.0,), (1.0,)))
    assert costs.steps_per_second(2, [2.0, 5.0, 8.0]) == pytest.approx([1.0, 1 / 2.5, 1 / 4])
    assert costs.steps_per_second(3, [3.0, 12.0]) == pytest.approx([1 / 2, 1 / 6.5])
    assert costs.steps_per_second(8, [8.0, 32.0]) == pytest.approx([1 / 6, 1 / 18])
    assert costs.table() == pytest.approx({"2": 1.0, "4": 1 / 3, "8": 1 / 4, "16": 1 / 9})
