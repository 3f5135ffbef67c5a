"""What engines are told of a draft besides its weights: chosen from what was measured, or left out with the reason."""

import json
from typing import Any

import pytest

from deepspec.decoding.step_costs import Curve, StepCosts
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.results import Evaluation, LoadTest, StepSeconds
from deepspec.export.engine_files import (
    ACCEPTANCE,
    DRAFT_LENGTHS,
    STEP_RATES,
    TEMPERATURES,
    draft_lengths,
    engine_files,
)
from tests.fixtures import results

K = 3
PREFIX = (0.8, 0.6, 0.5)


def costs_of(per_token: float, rows: int = 4) -> StepCosts:
    """A step costs one second, and `per_token` more for every token beyond one a row; without a draft one second."""
    loads = {count: [float(count * (1 + length)) for length in range(K + 1)] for count in (1, 2, rows)}
    drafting = {
        count: Curve(tuple(at), tuple(1.0 + per_token * (load - count) for load in at)) for count, at in loads.items()
    }
    return StepCosts(drafting, Curve((1.0, float(rows)), (1.0, 1.0)))


def evaluated(costs: StepCosts | None = None, **more: Any) -> Evaluation:
    parts = {
        "sums": results.benchmark(2.9, prefix_acceptance=PREFIX, domain="maths", **more),
        "proofs": results.benchmark(2.9, prefix_acceptance=(0.6, 0.4, 0.1), domain="maths"),
        "talk": results.benchmark(2.0, prefix_acceptance=(0.5, 0.2, 0.25)),
    }
    load = LoadTest(
        modes=("plain",),
        repeats=1,
        max_new_tokens=4,
        threads=2,
        device="cpu",
        points=(),
        costs=StepSeconds.model_validate(costs.to_json()) if costs is not None else None,
    )
    return Evaluation(benchmarks=parts, load=load)


def calibrated(*temperatures: float) -> CalibrationResult:
    return CalibrationResult(applicable=True, temperatures=temperatures, ece_before=(0.2, None, None))


def test_what_was_not_measured_is_left_out_with_the_reason() -> None:
    found = engine_files(None, None, K, has_confidences=True)
    assert found.contents == {}
    assert found.left_out.keys() == {TEMPERATURES, STEP_RATES, DRAFT_LENGTHS, ACCEPTANCE}
    assert "not calibrated" in found.left_out[TEMPERATURES]
    assert "not evaluated" in found.left_out[ACCEPTANCE]
    without_costs = engine_files(None, evaluated(), K, has_confidences=True)
    assert without_costs.contents.keys() == {ACCEPTANCE}
    assert "evaluate.load.concurrency" in without_costs.left_out[DRAFT_LENGTHS]


def test_what_would_turn_drafting_off_or_keep_an_engine_from_starting_is_left_out() -> None:
    """A table that has no drafted token at any batch size; rates by which SGLang shares out what confidences choose."""
    never = engine_files(None, evaluated(costs_of(10.0)), K, has_confidences=True)
    assert "pays at no batch size" in never.left_out[DRAFT_LENGTHS]
    assert STEP_RATES in never.contents
    without = engine_files(None, evaluated(costs_of(0.1)), K, has_confidences=False)
    assert "no confidences" in without.left_out[STEP_RATES]
    assert DRAFT_LENGTHS in without.contents


def test_temperatures_are_numbers_above_zero_one_for_each_position() -> None:
    content = engine_files(calibrated(0.5, 1.0, 2.0), None, K, has_confidences=True).contents[TEMPERATURES]
    assert content["temperatures"] == [0.5, 1.0, 2.0]
    assert "null" not in json.dumps(content)
    for bad in (calibrated(0.5, 1.0), calibrated(0.5, 0.0, 1.0)):
        found = engine_files(bad, None, K, has_confidences=True)
        assert TEMPERATURES not in found.contents
        assert "SGLang would refuse it" in found.left_out[TEMPERATURES]
    without = engine_files(
        CalibrationResult(applicable=False, reason="The draft has no confidence head."), None, K, has_confidences=True
    )
    assert without.left_out[TEMPERATURES] == "The draft has no confidence head"


def test_rates_of_steps_are_as_sglangs_reader_wants_them() -> None:
    """Strictly increasing whole loads, a rate above 0 for each, and no load beyond the most."""
    table = engine_files(None, evaluated(costs_of(0.1)), K, has_confidences=True).contents[STEP_RATES]
    loads, rates = table["sample_batch_tokens"], table["sample_steps_per_sec"]
    assert loads == sorted(set(loads))
    assert all(type(load) is int for load in loads)
    assert len(loads) == len(rates) > 1
    assert all(rate > 0 for rate in rates)
    assert rates == sorted(rates, reverse=True)
    assert table["max_batch_tokens"] == loads[-1]


@pytest.mark.parametrize(
    ("per_token", "expected"),
    [
        (0.0, [[1, 4, 3]]),  # drafted tokens cost nothing: as many as there are
        (10.0, [[1, 4, 0]]),  # they never pay
        (0.35, [[1, 1, 3], [2, 2, 1], [3, 4, 0]]),  # fewer, the more rows share a step
    ],
)
def test_the_draft_length_with_the_most_tokens_per_second_is_taken(per_token: float, expected: list[list[int]]) -> None:
    """Compared with the definition, batch size by batch size."""
    costs = costs_of(per_token)
    found = draft_lengths(costs, PREFIX)
    for first, last, length in found:
        for rows in range(first, last + 1):
            speeds = [rows * (1 + sum(PREFIX[:k])) / (1.0 + per_token * k * rows if k else 1.0) for k in range(K + 1)]
            assert speeds[length] == pytest.approx(max(speeds))
    assert [found[0][0], found[-1][1]] == [1, 4]
    assert [one[0] for one in found[1:]] == [one[1] + 1 for one in found[:-1]]
    assert found == expected


def test_acceptance_is_that_of_prefixes_by_domain_and_never_increases() -> None:
    rates = engine_files(None, evaluated(), K, has_confidences=True).contents[ACCEPTANCE]
    assert rates["maths"] == pytest.approx([0.7, 0.5, 0.3])
    assert rates["talk"] == pytest.approx([0.5, 0.2, 0.2])
    unknown = Evaluation(benchmarks={"talk": results.benchmark(2.0)})
    assert "not known" in engine_files(None, unknown, K, has_confidences=True).left_out[ACCEPTANCE]
