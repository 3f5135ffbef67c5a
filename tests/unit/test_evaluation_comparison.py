"""Paired differences: exact where a hand can count, and against a bootstrap that draws prompt by prompt."""

import random
from statistics import mean

import numpy as np
import pyarrow as pa
import pytest

from deepspec.evaluation.compare.drafts import Counts, counts_by_prompt, differences, paired_difference


def made_up(seed: int, num_prompts: int, gain: float) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """Two drafts on the same prompts, which differ in difficulty far more than the drafts do."""
    draw = random.Random(seed)
    ours, theirs = {}, {}
    for place in range(num_prompts):
        rounds, hard = draw.randint(5, 30), draw.uniform(1.2, 5.0)
        theirs[f"p{place}"] = (round(rounds * hard), rounds)
        ours[f"p{place}"] = (round(rounds * (hard + gain + draw.uniform(-0.2, 0.2))), rounds)
    return ours, theirs


def tau(counts: Counts, names: list[str]) -> float:
    return sum(counts[name][0] for name in names) / sum(counts[name][1] for name in names)


def brute_force(pairs: list[tuple[Counts, Counts]], num_samples: int, seed: int) -> tuple[float, float]:
    """The interval of the mean difference: draw prompts of every benchmark with replacement, one after the other."""
    draw = random.Random(seed)
    found = []
    for _ in range(num_samples):
        per_benchmark = []
        for ours, theirs in pairs:
            names = sorted(ours)
            drawn = [draw.choice(names) for _ in names]
            per_benchmark.append(tau(ours, drawn) - tau(theirs, drawn))
        found.append(mean(per_benchmark))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def test_counts_are_pooled_over_rounds_and_turns() -> None:
    table = pa.table(
        {
            "benchmark": ["a", "a", "a", "b", "gate"],
            "prompt": ["p", "p", "q", "p", "p"],
            "turn": [0, 1, 0, 0, 0],
            "committed": [3, 4, 1, 2, 5],
        }
    )
    assert counts_by_prompt(table) == {"a": {"p": (7, 2), "q": (1, 1)}, "b": {"p": (2, 1)}, "gate": {"p": (5, 1)}}


def test_one_prompt_a_benchmark_is_exact() -> None:
    ours = {"a": {"p": (12, 4)}, "b": {"p": (10, 4)}, "gate": {"g": (4, 2)}}
    theirs = {"a": {"p": (8, 4)}, "b": {"p": (10, 5)}, "gate": {"g": (3, 2)}}
    found = differences(ours, theirs, {"math": ["a"], "chat": ["b", "unknown"]}, num_samples=100, seed=0)
    assert found.to_json()["benchmarks"] == {
        "a": {"difference": 1.0, "ci95": [1.0, 1.0], "prompts": 1},
        "b": {"difference": 0.5, "ci95": [0.5, 0.5], "prompts": 1},
    }
    assert found.macro.to_json() == {"difference": 0.75, "ci95": [0.75, 0.75], "benchmarks": ["a", "b"]}
    assert found.domains["math"].to_json() == {"difference": 1.0, "ci95": [1.0, 1.0], "benchmarks": ["a"]}
    assert found.domains["chat"].to_json() == {"difference": 0.5, "ci95": [0.5, 0.5], "benchmarks": ["b"]}
    assert found.gate is not None
    assert found.gate.to_json() == {"difference": 0.5, "ci95": [0.5, 0.5], "prompts": 1}


def test_two_prompts_give_the_extremes_that_enumeration_gives() -> None:
    # Resamples are {p,p}, {p,q}, {q,q}: the outer two come a quarter of the time each, so they are the interval.
    ours, theirs = {"a": {"p": (4, 2), "q": (9, 3)}}, {"a": {"p": (2, 2), "q": (9, 3)}}
    found = differences(ours, theirs, {}, num_samples=1000, seed=3)
    assert found.macro.difference == pytest.approx(13 / 5 - 11 / 5)
    assert found.macro.ci95 == (0.0, 1.0)


def test_a_draft_does_not_differ_from_itself() -> None:
    ours, _ = made_up(0, 40, 0.0)
    found = differences({"a": ours, "b": ours}, {"a": ours, "b": ours}, {}, num_samples=200, seed=0)
    assert found.macro.to_json() == {"difference": 0.0, "ci95": [0.0, 0.0], "benchmarks": ["a", "b"]}
    assert found.gate is None


def test_intervals_agree_with_a_bootstrap_by_hand() -> None:
    a, b = made_up(1, 30, 0.3), made_up(2, 60, -0.1)
    found = differences({"a": a[0], "b": b[0]}, {"a": a[1], "b": b[1]}, {}, num_samples=4000, seed=5)
    for part, pairs in (
        (found.benchmarks["a"], [a]),
        (found.benchmarks["b"], [b]),
        (found.macro, [a, b]),
    ):
        by_hand = brute_force(pairs, 4000, 7)
        # Two bootstraps of 4,000 samples: the ends wander by about 2 % of the width.
        width = by_hand[1] - by_hand[0]
        assert part.ci95 == pytest.approx(by_hand, abs=0.08 * width)
        assert part.ci95[0] < part.difference < part.ci95[1]
    single = paired_difference(a[0], a[1], 4000, 5)
    assert found.benchmarks["a"] == single


def test_pairing_makes_the_interval_narrow() -> None:
    ours, theirs = made_up(4, 50, 0.1)
    paired = differences({"a": ours}, {"a": theirs}, {}, num_samples=1000, seed=0).macro.ci95
    mixed = dict(zip(ours, random.Random(9).sample(list(ours.values()), len(ours)), strict=True))
    unpaired = differences({"a": mixed}, {"a": theirs}, {}, num_samples=1000, seed=0).macro.ci95
    assert paired is not None
    assert unpaired is not None
    assert paired[1] - paired[0] < (unpaired[1] - unpaired[0]) / 3


def test_only_prompts_and_benchmarks_of_both_count() -> None:
    ours = {"a": {"p": (6, 2), "only ours": (99, 3), "no rounds": (0, 0)}, "b": {"x": (3, 1)}, "c": {"y": (1, 1)}}
    theirs = {"a": {"p": (4, 2), "only theirs": (1, 1), "no rounds": (3, 1)}, "b": {"z": (3, 1)}}
    found = differences(ours, theirs, {"none": ["c"]}, num_samples=100, seed=0)
    assert found.benchmarks["a"].to_json() == {"difference": 1.0, "ci95": [1.0, 1.0], "prompts": 1}
    assert found.benchmarks["b"].to_json() == {"difference": None, "ci95": None, "prompts": 0}
    assert found.macro.to_json() == {"difference": 1.0, "ci95": [1.0, 1.0], "benchmarks": ["a"]}
    assert found.domains["none"].to_json() == {"difference": None, "ci95": None, "benchmarks": []}


def test_paired_difference_uses_shared_prompts_only() -> None:
    ours = {"a": (30, 10), "b": (12, 6), "only ours": (100, 1), "no rounds": (0, 0)}
    theirs = {"b": (12, 8), "a": (30, 12), "no rounds": (5, 1)}
    found = paired_difference(ours, theirs, 500, 0)
    assert found.prompts == 2
    assert found.difference == pytest.approx(42 / 16 - 42 / 20)
    assert found.ci95 is not None
    assert found.ci95[0] <= found.difference <= found.ci95[1]


def test_paired_interval_is_narrower_than_the_unpaired_ones() -> None:
    generator = np.random.default_rng(1)
    levels = generator.integers(20, 60, size=50)
    theirs = {str(index): (int(level), 10) for index, level in enumerate(levels)}
    ours = {name: (committed + 2, rounds) for name, (committed, rounds) in theirs.items()}
    found = paired_difference(ours, theirs, 500, 0)
    assert found.ci95 == pytest.approx((0.2, 0.2))


def test_paired_difference_without_shared_prompts() -> None:
    found = paired_difference({"a": (1, 1)}, {"b": (1, 1)}, 100, 0)
    assert (found.difference, found.ci95, found.prompts) == (None, None, 0)
