"""Thresholds swept, and ways of decoding compared under load, on a tiny target with stub drafts."""

import math

import pytest
from decoding_stubs import StubDrafter, save_tiny_target

from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.decoding.profiling import StepLoad, loads_up_to, measured_costs
from deepspec.evaluation.answering import requests_for
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.config import Config
from deepspec.evaluation.load_test import Calibrated, load_experiment
from deepspec.evaluation.prompts.selection import EncodedPrompt
from deepspec.evaluation.threshold_sweep import threshold_sweep
from deepspec.targets.model import Target

PROMPTS = [EncodedPrompt(str(n), (n + 2, n + 3, n + 4), "here") for n in range(6)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.load(save_tiny_target(tmp_path_factory.mktemp("target")), layer_ids=(0,))


def config(**fields: object) -> Config:
    return Config(**{"max_new_tokens": 12, "thresholds": (0.0, 0.3, 1.0), **fields})


def drafter(target: Target, *, with_confidence: bool = True) -> StubDrafter:
    return StubDrafter(target, "partly", with_confidence=with_confidence)


def test_a_higher_threshold_verifies_less(target: Target) -> None:
    found = threshold_sweep(config(), target=target, drafter=drafter(target), prompts=PROMPTS, rows=4)
    assert found is not None
    assert (found.applicable, found.prompts) == (True, 6)
    all_of_it, some, none = found.points
    assert [point.threshold for point in found.points] == [0.0, 0.3, 1.0]
    assert all_of_it.mean_proposed > some.mean_proposed > none.mean_proposed == 0
    assert all_of_it.tau > some.tau > none.tau == 1
    assert none.draft_acceptance is None
    assert none.verify_rate == 1
    completions = list(Engine(target, drafter(target), rows=2).run(requests_for(config(), PROMPTS)))
    rounds = [one for completion in completions for one in completion.rounds]
    assert all_of_it.tau == pytest.approx(sum(one.committed for one in rounds) / len(rounds))
    accepted, proposed = sum(one.accepted for one in rounds), sum(one.proposed for one in rounds)
    assert all_of_it.draft_acceptance == pytest.approx(accepted / proposed)


def test_a_sweep_of_a_draft_without_confidences_is_not_applicable(target: Target) -> None:
    unsure = drafter(target, with_confidence=False)
    found = threshold_sweep(config(), target=target, drafter=unsure, prompts=PROMPTS, rows=4)
    assert found is not None
    assert found.to_json() == {"applicable": False, "reason": "The draft has no confidence head."}
    assert threshold_sweep(config(thresholds=()), target=target, drafter=unsure, prompts=PROMPTS, rows=4) is None


CALIBRATED = Calibrated((1.0, 1.2, 0.9), [[0.9, 0.8, 0.7], [0.5, 0.4, 0.9], [0.2, 0.5, 0.5]])


def test_every_way_is_measured_at_every_concurrency(target: Target) -> None:
    asked = config(load={"concurrency": (1, 4), "num_repeats": 2, "max_new_tokens": 8})
    found = load_experiment(asked, target=target, drafter=drafter(target), prompts=PROMPTS, calibrated=CALIBRATED)
    assert found is not None
    assert found.modes == ("plain", "fixed", "scheduled")
    assert [point.concurrency for point in found.points] == [1, 4]
    for point in found.points:
        for mode in found.modes:
            measured = point.run(mode)
            assert measured is not None
            assert measured.ci95 is not None
            low, high = measured.ci95
            assert low <= measured.tokens_per_second <= high
            # Many at once may serve more, but no one faster than all of them together.
            assert measured.request_tokens_per_second > 0
        assert point.plain is not None
        assert point.fixed is not None
        assert (point.plain.tau, point.plain.mean_proposed) == (1, 0)
        assert point.fixed.tau is not None
        assert point.fixed.tau > 1
    assert set(found.by_rows) == {"1", "2", "4"}
    assert set(found.by_rows.values()) <= {"none", "all", "scheduled"}
    assert found.costs is not None
    assert set(found.costs.plain_seconds) == {"1", "2", "4"}
    assert set(found.costs.drafting_seconds) == {"1", "2", "4"}


def test_without_calibration_nothing_is_scheduled(target: Target) -> None:
    asked = config(load={"concurrency": (1,), "num_repeats": 1, "max_new_tokens": 4})
    found = load_experiment(asked, target=target, drafter=drafter(target), prompts=PROMPTS, calibrated=None)
    assert found is not None
    assert found.modes == ("plain", "fixed")
    assert found.points[0].plain is not None
    assert found.points[0].plain.ci95 is None
    nothing = config(load={"concurrency": ()})
    assert load_experiment(nothing, target=target, drafter=drafter(target), prompts=PROMPTS, calibrated=None) is None


def test_calibration_is_read_as_it_was_written() -> None:
    confidences = [[0.9, 0.8], [0.9]]
    fitted = CalibrationResult(applicable=True, temperatures=(1.0, 2.0))
    assert Calibrated.of(fitted, confidences) == Calibrated((1.0, 2.0), [[0.9, 0.8]])
    assert Calibrated.of(CalibrationResult(applicable=False, reason="…"), confidences) is None


def test_costs_are_those_of_steps_at_full_load(target: Target) -> None:
    requests = requests_for(config(), PROMPTS)
    costs = measured_costs(
        target, drafter(target), requests, loads_up_to(4, 3), sampling=Sampling(), num_steps=2, num_turns=1
    )
    assert costs.plain.loads == (1, 2, 4)
    assert sorted(costs.drafting) == [1, 2, 4]
    for rows, curve in costs.drafting.items():
        assert curve.loads[0] == rows  # anchors alone
        assert curve.loads[-1] == 4 * rows  # all drafts
        assert all(0 < seconds < math.inf for seconds in curve.seconds)


def test_loads_are_powers_of_two_and_the_most_that_is_asked_for() -> None:
    loads = loads_up_to(6, 7)
    assert sorted({load.rows for load in loads}) == [1, 2, 4, 6]
    assert [load.length for load in loads if load.rows == 4] == [None, 0, 2, 4, 7]
    assert loads_up_to(1, 1) == [StepLoad(1, None), StepLoad(1, 0), StepLoad(1, 1)]


def test_concurrencies_and_thresholds_that_make_no_sense_are_refused() -> None:
    for fields in ({"thresholds": (1.5,)}, {"load": {"concurrency": (0,)}}, {"sampling": {"temperature": -1}}):
        with pytest.raises(ValueError, match=r"probability|at least 1|greater than or equal to 0"):
            Config(**fields)
