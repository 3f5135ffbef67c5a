"""Intervals, isotonic curves and areas against what a page of a textbook gives, prompt by prompt and pair by pair."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.decoding.step_costs import Curve
from deepspec.evaluation.calibration.fit import area_under_curve
from deepspec.evaluation.compare.drafts import Counts, differences, paired_difference
from deepspec.evaluation.compare.seeds import side_by_side
from deepspec.evaluation.intervals import student_interval
from deepspec.evaluation.metrics import RoundTable, acceptance_length_interval, macro_interval, speedup_interval

SAMPLES = 100
ROUNDING = 1e-12  # both sides are fp64, and differ in the order of their sums

Interval = tuple[float, float]
ROUNDS = st.lists(st.integers(1, 8), max_size=4)  # committed tokens of each; a prompt may have no round
PROMPTS = st.lists(ROUNDS, min_size=1, max_size=5)
COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1)


def drawn(count: int, generator: np.random.Generator) -> list[list[int]]:
    """The members of each resample, one by one; these draws are what stored intervals are made of."""
    counts = generator.multinomial(count, [1 / count] * count, size=SAMPLES)
    return [[member for member, times in enumerate(row) for _ in range(times)] for row in counts.tolist()]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def interval(values: Sequence[float]) -> Interval:
    return percentile(values, 0.025), percentile(values, 0.975)


def tau(prompts: Sequence[tuple[int, int]]) -> float | None:
    rounds = sum(count for _, count in prompts)
    return sum(committed for committed, _ in prompts) / rounds if rounds else None


@given(st.lists(PROMPTS, min_size=1, max_size=3), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_intervals_of_acceptance_lengths_and_of_their_mean(benchmarks: list[list[list[int]]], seed: int) -> None:
    tables = [
        RoundTable.of([[(7, committed - 1, committed) for committed in of_prompt] for of_prompt in prompts])
        for prompts in benchmarks
    ]
    measured = [[(sum(rounds), len(rounds)) for rounds in prompts] for prompts in benchmarks if any(prompts)]
    samples = []
    for place, counts in enumerate(measured):
        draws = drawn(len(counts), np.random.default_rng(seed + place))
        samples.append([tau([counts[member] for member in members]) for members in draws])
    means = [mean(taus) for taus in zip(*samples, strict=True) if None not in taus]
    found = macro_interval(tables, SAMPLES, seed)
    assert found == (pytest.approx(interval(means), abs=ROUNDING) if means else None)
    assert acceptance_length_interval(tables[0], SAMPLES, seed) == macro_interval(tables[:1], SAMPLES, seed)


@given(
    st.lists(st.tuples(*[st.floats(0.1, 50)] * 3, st.just(0.0) | st.floats(0.1, 5)), min_size=1, max_size=6),
    st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_intervals_of_speedups(prompts: list[tuple[float, float, float, float]], seed: int) -> None:
    found = speedup_interval(
        [prompt[:2] for prompt in prompts], [prompt[2:] for prompt in prompts], num_samples=SAMPLES, seed=seed
    )
    samples = []
    for members in drawn(len(prompts), np.random.default_rng(seed)):
        tokens, seconds, their_tokens, their_seconds = (sum(prompts[m][column] for m in members) for column in range(4))
        if their_seconds:
            samples.append((tokens / seconds) / (their_tokens / their_seconds))
    assert found == (pytest.approx(interval(samples), rel=ROUNDING, abs=ROUNDING) if samples else None)


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=3), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_paired_differences_and_their_mean(pairs: list[tuple[Counts, Counts]], seed: int) -> None:
    samples, exact = [], []
    for ours, theirs in pairs:
        shared = sorted(ours.keys() & theirs.keys())
        alone = paired_difference(ours, theirs, SAMPLES, seed)
        assert alone.prompts == len(shared)
        if not shared:
            assert alone.ci95 is None
            continue

        def difference(
            members: Sequence[int], shared: list[str] = shared, ours: Counts = ours, theirs: Counts = theirs
        ) -> float:
            names = [shared[member] for member in members]
            return tau([ours[name] for name in names]) - tau([theirs[name] for name in names])  # type: ignore[operator]

        by_hand = [difference(members) for members in drawn(len(shared), np.random.default_rng(seed))]
        assert alone.ci95 == pytest.approx(interval(by_hand), abs=ROUNDING)
        exact.append(difference(range(len(shared))))
        assert alone.difference == pytest.approx(exact[-1], abs=ROUNDING)
        draws = drawn(len(shared), np.random.default_rng(seed + len(samples)))
        samples.append([difference(members) for members in draws])
    sides = [{f"benchmark {place}": pair[side] for place, pair in enumerate(pairs)} for side in (0, 1)]
    macro = differences(*sides, {}, num_samples=SAMPLES, seed=seed).macro
    if not samples:
        assert (macro.difference, macro.ci95) == (None, None)
        return
    assert macro.difference == pytest.approx(mean(exact), abs=ROUNDING)
    assert macro.ci95 == pytest.approx(interval([mean(one) for one in zip(*samples, strict=True)]), abs=ROUNDING)


@given(st.data(), st.integers(1, 3), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_seeds_and_prompts_are_resampled_together(data: st.DataObject, num_seeds: int, prompts: int, seed: int) -> None:
    counts = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=prompts, max_size=prompts)
    by_seed = data.draw(st.lists(counts, min_size=num_seeds, max_size=num_seeds))
    measured = [{"math": {f"p{place}": pair for place, pair in enumerate(one)}} for one in by_seed]
    found = side_by_side({"draft": measured}, num_samples=SAMPLES, seed=seed).tau["draft"]["math"]
    generator = np.random.default_rng(seed)  # the seeds are drawn first
    seeds, members = drawn(num_seeds, generator), drawn(prompts, generator)
    samples = [
        mean(tau([by_seed[one][member] for member in of_prompts]) for one in of_seeds)  # type: ignore[type-var, misc]
        for of_seeds, of_prompts in zip(seeds, members, strict=True)
    ]
    assert found.ci95 == pytest.approx(interval(samples), abs=ROUNDING)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=20))
@settings(deadline=None)
def test_curves_are_the_isotonic_regression(measured: list[tuple[int, int]]) -> None:
    """By the min-max formula: the largest, over starts, of the smallest, over ends, mean of what lies between."""
    loads = sorted({load for load, _ in measured})
    seconds = [[value for at, value in measured if at == load] for load in loads]

    def pooled(first: int, last: int) -> float:
        return mean(value for of_load in seconds[first : last + 1] for value in of_load)

    count = len(loads)
    expected = [
        max(min(pooled(first, last) for last in range(place, count)) for first in range(place + 1))
        for place in range(count)
    ]
    found = Curve.fitted([(load, float(value)) for load, value in measured])
    assert found.loads == tuple(loads)
    assert found.seconds == pytest.approx(expected, abs=ROUNDING)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
@settings(deadline=None)
def test_area_under_curve_counts_pairs(rounds: list[tuple[int, bool]]) -> None:
    score, outcome = np.array([one[0] / 4 for one in rounds]), np.array([one[1] for one in rounds], dtype=bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[outcome] for b in score[~outcome]]
    assert area_under_curve(score, outcome) == (pytest.approx(mean(pairs), abs=ROUNDING) if pairs else None)


def test_students_interval_has_the_quantiles_that_closed_forms_give() -> None:
    beyond = 4 * 0.975 * 0.025
    quantiles = {
        1: math.tan(math.pi * 0.475),
        2: 0.95 * math.sqrt(2 / beyond),
        4: 2 * math.sqrt(math.cos(math.acos(math.sqrt(beyond)) / 3) / math.sqrt(beyond) - 1),
    }
    for degrees, quantile in quantiles.items():
        values = [float(value) for value in np.random.default_rng(degrees).uniform(100, 200, size=degrees + 1)]
        half = quantile * stdev(values) / math.sqrt(len(values))
        assert student_interval(values) == pytest.approx((mean(values) - half, mean(values) + half), rel=ROUNDING)
    assert student_interval([3.0]) is None
    assert student_interval([3.0, 3.0]) == (3.0, 3.0)
