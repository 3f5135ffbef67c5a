"""Sequential Temperature Scaling on made-up drafts whose true calibration is known; the measures by hand."""

import json

import numpy as np
import pytest

from deepspec.evaluation.calibration.fit import (
    Observations,
    conditional_auc,
    equal_mass_error,
    expected_calibration_error,
    fit,
    judge,
    prefix_confidence,
    reliability,
    tempered,
)
from deepspec.evaluation.calibration.results import NO_AREA, CalibrationResult, calibration_text, rewritten
from deepspec.evaluation.config import Calibration
from deepspec.evaluation.intervals import Floats
from deepspec.evaluation.results import Rates

RATES = sorted(name for name, field in CalibrationResult.model_fields.items() if field.annotation == Rates)
CONFIG = Calibration()


def made_up(num_rounds: int, temperatures: list[float], seed: int) -> Observations:
    """Rounds of a draft whose confidences are right once their logits are divided by `temperatures`."""
    generator = np.random.default_rng(seed)
    num_positions = len(temperatures)
    true_NK: Floats = generator.beta(4, 1.5, size=(num_rounds, num_positions))
    accepted_N = np.cumprod(generator.random((num_rounds, num_positions)) < true_NK, axis=1).sum(axis=1)
    said_NK = tempered(true_NK, 1 / np.asarray(temperatures))
    return Observations(said_NK, np.full(num_rounds, num_positions), accepted_N)


def test_fit_finds_the_temperatures_that_a_draft_needs() -> None:
    temperatures = fit(made_up(20_000, [2.0, 0.5, 1.0], seed=0), CONFIG)
    # The error's minimum is flat and binned: within a tenth of the logarithm's range of a factor of ten.
    assert np.abs(np.log(np.asarray(temperatures) / [2.0, 0.5, 1.0])).max() < 0.2


def test_calibration_halves_the_error_on_other_rounds() -> None:
    temperatures = fit(made_up(8_000, [2.5, 1.8, 0.6], seed=1), CONFIG)
    other = made_up(8_000, [2.5, 1.8, 0.6], seed=2)
    before, after = judge(other, [1.0] * 3, CONFIG), judge(other, temperatures, CONFIG)
    assert np.mean(after.ece) < 0.5 * np.mean(before.ece)
    assert np.mean(after.ece_mass) < np.mean(before.ece_mass)
    assert np.mean(after.brier) < np.mean(before.brier)


def test_a_calibrated_draft_is_left_alone() -> None:
    temperatures = fit(made_up(20_000, [1.0, 1.0], seed=3), CONFIG)
    assert np.abs(np.log(temperatures)).max() < 0.2


def test_fit_of_equally_good_temperatures_takes_the_one_nearest_to_one() -> None:
    sure = Observations(np.full((10, 1), 0.5), np.full(10, 1), np.array([1, 0] * 5))  # logit 0: no temperature acts
    assert fit(sure, CONFIG) == [1.0]


def test_positions_that_were_never_proposed() -> None:
    observations = Observations.of([(1, 1, [0.9]), (1, 0, [0.8])], 3)
    temperatures = fit(observations, CONFIG)
    assert temperatures[1:] == [1.0, 1.0]
    judged = judge(observations, temperatures, CONFIG)
    assert judged.trials == (2, 0, 0)
    assert judged.ece[1:] == (None, None)
    assert judged.reliability[1:] == ((), ())


def test_cut_rounds_count_only_as_far_as_they_proposed() -> None:
    observations = Observations.of([(3, 3, [0.9, 0.9, 0.9]), (2, 2, [0.5, 0.5]), (3, 1, [0.7, 0.6, 0.5])], 3)
    judged = judge(observations, [1.0] * 3, CONFIG)
    assert judged.trials == (3, 3, 2)
    # Position 3: products 0.729 (survived) and 0.21 (did not), each alone in its bin.
    assert judged.ece[2] == pytest.approx((0.271 + 0.21) / 2)
    assert judged.brier[2] == pytest.approx((0.271**2 + 0.21**2) / 2)
    assert judged.auc[2] == 1.0


def test_prefix_confidence_is_the_running_product() -> None:
    observations = Observations.of([(2, 0, [0.5, 0.25])], 3)
    prefix_K = prefix_confidence(observations, [1.0, 1.0, 1.0])[0]
    assert prefix_K[:2] == pytest.approx([0.5, 0.125])
    assert np.isnan(prefix_K[2])


def test_saturated_confidences_stay_finite() -> None:
    found = tempered(np.array([0.0, 1.0]), 2.0)
    assert np.isfinite(np.log(found)).all()
    assert found == pytest.approx([10**-3.5, 1 - 10**-3.5], rel=1e-3)


def test_expected_calibration_error_by_hand() -> None:
    confidence = np.array([0.05, 0.15, 0.95, 1.0])
    outcome = np.array([False, True, True, False])
    # bins of 0.1: gaps 0.05, 0.85, and |(0.95 - 1) + (1 - 0)| = 0.95 for the last two together
    assert expected_calibration_error(confidence, outcome, 10) == pytest.approx((0.05 + 0.85 + 0.95) / 4)
    assert equal_mass_error(confidence, outcome, 2) == pytest.approx((abs(0.05 - 0.85) + 0.95) / 4)


def test_conditional_auc_is_among_rounds_that_got_there() -> None:
    observations = Observations.of([(2, 2, [0.9, 0.9]), (2, 1, [0.8, 0.2]), (2, 0, [0.1, 0.95])], 2)
    assert conditional_auc(observations) == [1.0, 1.0]


def test_reliability_bins_hold_all_rounds() -> None:
    bins = reliability(np.array([0.01, 0.02, 0.99]), np.array([True, False, True]), 20)
    assert [one.to_json() for one in bins] == [
        {"confidence": pytest.approx(0.015), "observed": 0.5, "rounds": 2},
        {"confidence": pytest.approx(0.99), "observed": 1.0, "rounds": 1},
    ]


@pytest.mark.parametrize("name", RATES)
def test_no_list_of_a_calibration_has_a_null(name: str) -> None:
    """Also of one that an earlier version wrote, which had them."""
    written = json.dumps({"applicable": True, "temperatures": [1.1, 1.0, 1.0, 1.0], name: [None, 0.75, None, None]})
    text = rewritten(written, where="here")
    assert json.loads(text, parse_constant=pytest.fail)[name] == [NO_AREA, 0.75]
    assert rewritten(text, where="here") == text
    empty = rewritten(json.dumps({"applicable": True, name: [None, None]}), where="here")
    assert json.loads(empty)[name] == []


def test_what_no_strict_reader_takes_is_not_written() -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperatures"):
            calibration_text(CalibrationResult(applicable=True, temperatures=(1.0, wrong)))
