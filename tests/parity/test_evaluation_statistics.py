"""Intervals, isotonic curves and areas against what a page of a textbook gives, prompt by prompt and pair by pair."""

import math
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from deepspec.decoding.step_costs import Curve
from deepspec.evaluation.calibration.fit import area_under_curve
from deepspec.evaluation.compare.drafts import Counts, differences, paired_difference
from deepspec.evaluation.compare.seeds import side_by_side
from deepspec.evaluation.intervals import student_interval
from deepspec.evaluation.metrics import RoundTable, acceptance_length_interval, speedup_interval
from deepspec.evaluation.results import FEWEST_PROMPTS

ROUNDING = 1e-12  # both sides are fp64, and differ in the order of their sums

Interval = tuple[float, float]
ROUNDS = st.lists(st.integers(1, 8), max_size=4)  # committed tokens of each; a prompt may have no round
PROMPTS = st.lists(ROUNDS, min_size=1, max_size=7)
COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1)


def left_out(count: int) -> list[list[int]]:
    """The members that are there when each is left out."""
    return [[member for member in range(count) if member != out] for out in range(count)]


def student(value: float, without: Sequence[Sequence[float]], repeats: Sequence[float] = ()) -> Interval:
    """Tukey's interval of the mean over tables, from what each says with one of its members left out."""
    parts = []
    for values in without:
        count, middle = len(values), mean(values)
        moments = [mean((one - middle) ** power for one in values) for power in (2, 3)]
        skewness = moments[1] / moments[0] ** 1.5 if moments[0] > 0 else 0.0
        parts.append(((count - 1) * moments[0] / len(without) ** 2, max((count - 1) / (1 + skewness**2), 1.0)))
    if len(repeats) > 1:
        parts.append((stdev(repeats) ** 2 / len(repeats), len(repeats) - 1.0))
    total = sum(square for square, _ in parts)
    unsure = sum(square**2 / freedom for square, freedom in parts)
    half = float(t.ppf(0.975, total**2 / unsure)) * math.sqrt(total) if unsure else 0.0
    return value - half, value + half


def tau(prompts: Sequence[tuple[int, int]]) -> float | None:
    rounds = sum(count for _, count in prompts)
    return sum(committed for committed, _ in prompts) / rounds if rounds else None


@given(st.lists(PROMPTS, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_intervals_of_acceptance_lengths_and_of_their_mean(benchmarks: list[list[list[int]]]) -> None:
    tables = [
        RoundTable.of([[(7, committed - 1, committed) for committed in of_prompt] for of_prompt in prompts])
        for prompts in benchmarks
    ]
    measured = [[(sum(rounds), len(rounds)) for rounds in prompts] for prompts in benchmarks if any(prompts)]
    without = [[tau([counts[member] for member in rest]) for rest in left_out(len(counts))] for counts in measured]
    found = acceptance_length_interval(tables)
    if not measured or any(len(values) < FEWEST_PROMPTS or None in values for values in without):
        assert found is None
        return
    whole = mean(tau(counts) for counts in measured)  # type: ignore[type-var]
    low, high = student(whole, without)  # type: ignore[arg-type]
    assert found == pytest.approx((max(low, 1.0), high), abs=1e-9)


@given(st.lists(st.tuples(*[st.floats(0.1, 50)] * 4), min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_intervals_of_speedups(prompts: list[tuple[float, float, float, float]]) -> None:
    def speedup(members: Iterable[int]) -> float:
        chosen = list(members)
        tokens, seconds, plain_tokens, plain_seconds = (
            sum(prompts[member][column] for member in chosen) for column in range(4)
        )
        return (tokens / seconds) / (plain_tokens / plain_seconds)

    without = [[speedup(rest) for rest in left_out(len(prompts))]]
    expected = student(speedup(range(len(prompts))), without)
    assert speedup_interval([prompts]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert speedup_interval([prompts[:1]]) is None


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_paired_differences_and_their_mean(pairs: list[tuple[Counts, Counts]]) -> None:
    exact, without = [], []
    for ours, theirs in pairs:
        shared = sorted(ours.keys() & theirs.keys())
        alone = paired_difference(ours, theirs)
        assert alone.prompts == len(shared)
        if not shared:
            assert (alone.difference, alone.ci95) == (None, None)
            continue

        def difference(
            members: Sequence[int], shared: list[str] = shared, ours: Counts = ours, theirs: Counts = theirs
        ) -> float:
            names = [shared[member] for member in members]
            return tau([ours[name] for name in names]) - tau([theirs[name] for name in names])  # type: ignore[operator]

        exact.append(difference(range(len(shared))))
        assert alone.difference == pytest.approx(exact[-1], abs=ROUNDING)
        without.append([difference(rest) for rest in left_out(len(shared)) if rest])
        if len(shared) < FEWEST_PROMPTS:
            assert alone.ci95 is None
        else:
            assert alone.ci95 == pytest.approx(student(exact[-1], without[-1:]), abs=1e-9)
    sides = [{f"benchmark {place}": pair[side] for place, pair in enumerate(pairs)} for side in (0, 1)]
    macro = differences(*sides, {}).macro
    if not exact:
        assert (macro.difference, macro.ci95) == (None, None)
        return
    assert macro.difference == pytest.approx(mean(exact), abs=ROUNDING)
    few = any(len(values) < FEWEST_PROMPTS for values in without)
    assert macro.ci95 == (None if few else pytest.approx(student(mean(exact), without), abs=1e-9))


@given(st.data(), st.integers(1, 3), st.integers(2, 7))
@settings(max_examples=40, deadline=None)
def test_what_seeds_vary_by_is_added_to_what_prompts_vary_by(data: st.DataObject, num_seeds: int, prompts: int) -> None:
    counts = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=prompts, max_size=prompts)
    by_seed = data.draw(st.lists(counts, min_size=num_seeds, max_size=num_seeds))
    measured = [{"math": {f"p{place}": pair for place, pair in enumerate(one)}} for one in by_seed]
    found = side_by_side({"draft": measured}).tau["draft"]["math"]
    taus = [tau(one) for one in by_seed]
    assert found.by_seed == pytest.approx(taus)
    without = [
        mean(tau([one[member] for member in rest]) for one in by_seed)  # type: ignore[type-var]
        for rest in left_out(prompts)
    ]
    if prompts < FEWEST_PROMPTS:
        assert found.ci95 is None
    else:
        expected = student(mean(taus), [without], taus)  # type: ignore[type-var, list-item, arg-type]
        assert found.ci95 == pytest.approx(expected, abs=1e-9)


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
