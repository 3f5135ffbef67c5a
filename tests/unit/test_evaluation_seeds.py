"""Algorithms over seeds: means, and intervals that are paired in prompts and seeds."""

import io

import numpy as np
import pytest
from rich.console import Console

from deepspec.evaluation.compare.results import SeedStudy, TrainingBudget
from deepspec.evaluation.compare.seeds import side_by_side
from deepspec.evaluation.intervals import student_interval
from deepspec.reports.overview_page import over_seeds
from deepspec.reports.run_terminal import summary_table
from tests.fixtures import reports, results


def counts(taus: list[float], rounds: int = 10) -> dict[str, tuple[int, int]]:
    return {f"p{index}": (round(tau * rounds), rounds) for index, tau in enumerate(taus)}


def test_tau_is_the_mean_over_seeds_of_pooled_rounds() -> None:
    measured = {
        "one": [{"math": counts([2, 4]), "chat": counts([1, 1])}, {"math": counts([3, 5]), "chat": counts([2, 2])}],
        "other": [{"math": counts([2, 2]), "chat": counts([1, 1])}, {"math": counts([2, 2]), "chat": counts([1, 1])}],
    }
    found = side_by_side(measured)
    assert found.tau["one"]["math"].by_seed == (3.0, 4.0)
    assert found.tau["one"]["math"].tau == 3.5
    assert found.tau["one"]["macro"].by_seed == (2.0, 3.0)
    assert found.tau["other"]["macro"].to_json() == {"tau": 1.5, "ci95": [1.5, 1.5], "by_seed": [1.5, 1.5]}
    [pair] = found.differences
    assert (pair.of, pair.against) == ("other", "one")
    assert pair.benchmarks["math"].difference == -1.5
    low, high = pair.benchmarks["math"].ci95
    assert low < -1.5 < high
    assert found.prompts == {"math": 2, "chat": 2}


def test_what_prompts_and_seeds_share_falls_out_of_differences() -> None:
    draws = np.random.default_rng(0)
    hard = draws.uniform(1, 6, size=20)
    luck = [0.0, 0.8, -0.5]
    measured = {
        name: [{"math": counts(list(hard + gain + chance), 100)} for chance in luck]
        for name, gain in (("one", 0.0), ("other", 0.3))
    }
    found = side_by_side(measured)
    low, high = found.tau["one"]["math"].ci95
    assert high - low > 1
    low, high = found.differences[0].benchmarks["math"].ci95
    assert 0.28 < low <= high < 0.32


def test_intervals_cover_what_seeds_may_do() -> None:
    """With prompts that are all alike only the seeds differ: the interval is Student's of two values."""
    measured = {"one": [{"math": counts([2] * 4)}, {"math": counts([4] * 4)}]}
    assert side_by_side(measured).tau["one"]["math"].ci95 == pytest.approx(student_interval([2.0, 4.0]))


def test_only_common_prompts_count_and_the_gate_does_not() -> None:
    measured = {
        "one": [{"math": counts([2, 4]), "gate": counts([1])}],
        "other": [{"math": {"p1": (30, 10), "p9": (90, 10), "p0": (0, 0)}, "gate": counts([1])}],
    }
    found = side_by_side(measured)
    assert found.prompts == {"math": 1}
    assert found.tau["one"]["math"].tau == 4.0
    assert found.tau["other"]["math"].tau == 3.0


def test_different_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="numbers of seeds"):
        side_by_side({"one": [{}], "other": [{}, {}]})


def test_the_terminal_shows_means_over_seeds_and_which_differences_are_clear() -> None:
    measured = {
        "eagle3": [{"math": counts([2, 4, 3, 2]), "chat": counts([2, 1, 1, 2])}] * 2,
        "dspark": [{"math": counts([4, 6, 5, 4]), "chat": counts([1, 2, 2, 1])}] * 2,
    }
    budget = {name: TrainingBudget(epochs=8, steps=(5, 5), cpu_seconds=(1.0, 1.0)) for name in measured}
    compared = side_by_side(measured)
    study = SeedStudy(seeds=(0, 1), budget=budget, **dict(compared))
    evaluations = [{"algorithm": name, **results.evaluation(math=3.0).to_json()} for name in measured]
    told = reports.record(evaluation=evaluations, seeds=study.to_json(), status="promoted")
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(told))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    [start] = [place for place, line in enumerate(lines) if line.startswith("over seeds")]
    assert lines[start].split()[2:4] == ["chat", "math"]
    assert lines[start + 1].split()[:4] == ["eagle3", "1.50", "2.75", "2.12"]
    assert lines[start + 2].split()[:4] == ["dspark", "1.50", "4.75", "3.12"]
    assert lines[start + 3].split()[2:6] == ["eagle3", "0.00", "+2.00", "*"]
    # What is clearly worse is marked as well.
    turned = side_by_side(dict(reversed(measured.items())))
    tables = over_seeds(SeedStudy(seeds=(0, 1), budget=budget, **dict(turned)))
    assert tables is not None
    [difference] = tables.differences
    assert [(cell.value, cell.clear) for cell in difference.cells[:2]] == [
        ("0.00", False),
        ("\N{MINUS SIGN}2.00", True),
    ]
