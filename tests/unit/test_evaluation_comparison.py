"""Paired differences: exact where a hand can count, and against leaving one prompt out after the other."""

import random
from statistics import mean, pstdev

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import t

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


def by_hand(pairs: list[tuple[Counts, Counts]]) -> tuple[float, float]:
    """The interval of the mean difference: leave one prompt out after the other, and Welch's degrees of freedom."""
    errors, freedoms, values = [], [], []
    for ours, theirs in pairs:
        names = sorted(ours)
        without = [
            tau(ours, rest) - tau(theirs, rest) for rest in ([one for one in names if one != name] for name in names)
        ]
        count = len(names)
        errors.append((count - 1) / count * sum((one - mean(without)) ** 2 for one in without) / len(pairs) ** 2)
        skewness = mean((one - mean(without)) ** 3 for one in without) / pstdev(without) ** 3
        freedoms.append(max((count - 1) / (1 + skewness**2), 1.0))
        values.append(tau(ours, names) - tau(theirs, names))
    freedom = sum(errors) ** 2 / sum(one**2 / freedom for one, freedom in zip(errors, freedoms, strict=True))
    half = float(t.ppf(0.975, freedom)) * sum(errors) ** 0.5
    return mean(values) - half, mean(values) + half


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


def test_few_prompts_have_a_difference_and_no_interval() -> None:
    ours = {"a": {"p": (12, 4)}, "b": {"p": (10, 4)}, "gate": {"g": (4, 2)}}
    theirs = {"a": {"p": (8, 4)}, "b": {"p": (10, 5)}, "gate": {"g": (3, 2)}}
    found = differences(ours, theirs, {"math": ["a"], "chat": ["b", "unknown"]})
    assert found.to_json()["benchmarks"] == {
        "a": {"difference": 1.0, "ci95": None, "prompts": 1},
        "b": {"difference": 0.5, "ci95": None, "prompts": 1},
    }
    assert found.macro.to_json() == {"difference": 0.75, "ci95": None, "benchmarks": ["a", "b"]}
    assert found.domains["math"].to_json() == {"difference": 1.0, "ci95": None, "benchmarks": ["a"]}
    assert found.domains["chat"].to_json() == {"difference": 0.5, "ci95": None, "benchmarks": ["b"]}
    assert found.gate is not None
    assert found.gate.to_json() == {"difference": 0.5, "ci95": None, "prompts": 1}


def test_a_mean_has_no_interval_where_a_benchmark_has_none() -> None:
    ours, theirs = made_up(3, 30, 0.3)
    few = {"p": (12, 4)}
    found = differences({"a": ours, "b": few}, {"a": theirs, "b": few}, {})
    assert found.benchmarks["a"].ci95 is not None
    assert found.macro.ci95 is None


def test_a_draft_does_not_differ_from_itself() -> None:
    ours, _ = made_up(0, 40, 0.0)
    found = differences({"a": ours, "b": ours}, {"a": ours, "b": ours}, {})
    assert found.macro.to_json() == {"difference": 0.0, "ci95": [0.0, 0.0], "benchmarks": ["a", "b"]}
    assert found.gate is None


def test_intervals_are_those_of_leaving_prompts_out_by_hand() -> None:
    a, b = made_up(1, 30, 0.3), made_up(2, 60, -0.1)
    found = differences({"a": a[0], "b": b[0]}, {"a": a[1], "b": b[1]}, {})
    for part, pairs in ((found.benchmarks["a"], [a]), (found.benchmarks["b"], [b]), (found.macro, [a, b])):
        assert part.ci95 == pytest.approx(by_hand(pairs))
        assert part.ci95[0] < part.difference < part.ci95[1]
    assert found.benchmarks["a"] == paired_difference(a[0], a[1])


def test_pairing_makes_the_interval_narrow() -> None:
    ours, theirs = made_up(4, 50, 0.1)
    paired = differences({"a": ours}, {"a": theirs}, {}).macro.ci95
    mixed = dict(zip(ours, random.Random(9).sample(list(ours.values()), len(ours)), strict=True))
    unpaired = differences({"a": mixed}, {"a": theirs}, {}).macro.ci95
    assert paired is not None
    assert unpaired is not None
    assert paired[1] - paired[0] < (unpaired[1] - unpaired[0]) / 3


def test_only_prompts_and_benchmarks_of_both_count() -> None:
    ours = {"a": {"p": (6, 2), "only ours": (99, 3), "no rounds": (0, 0)}, "b": {"x": (3, 1)}, "c": {"y": (1, 1)}}
    theirs = {"a": {"p": (4, 2), "only theirs": (1, 1), "no rounds": (3, 1)}, "b": {"z": (3, 1)}}
    found = differences(ours, theirs, {"none": ["c"]})
    assert found.benchmarks["a"].to_json() == {"difference": 1.0, "ci95": None, "prompts": 1}
    assert found.benchmarks["b"].to_json() == {"difference": None, "ci95": None, "prompts": 0}
    assert found.macro.to_json() == {"difference": 1.0, "ci95": None, "benchmarks": ["a"]}
    assert found.domains["none"].to_json() == {"difference": None, "ci95": None, "benchmarks": []}


def test_paired_difference_uses_shared_prompts_only() -> None:
    ours = {"a": (30, 10), "b": (12, 6), "only ours": (100, 1), "no rounds": (0, 0)}
    theirs = {"b": (12, 8), "a": (30, 12), "no rounds": (5, 1)}
    found = paired_difference(ours, theirs)
    assert found.prompts == 2
    assert found.difference == pytest.approx(42 / 16 - 42 / 20)


def test_paired_interval_is_narrower_than_the_unpaired_ones() -> None:
    generator = np.random.default_rng(1)
    levels = generator.integers(20, 60, size=50)
    theirs = {str(index): (int(level), 10) for index, level in enumerate(levels)}
    ours = {name: (committed + 2, rounds) for name, (committed, rounds) in theirs.items()}
    found = paired_difference(ours, theirs)
    assert found.ci95 == pytest.approx((0.2, 0.2))


def test_paired_difference_without_shared_prompts() -> None:
    found = paired_difference({"a": (1, 1)}, {"b": (1, 1)})
    assert (found.difference, found.ci95, found.prompts) == (None, None, 0)
