"""What a budget allows while a stage is made: by use, with what earlier attempts and earlier stages have cost."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from deepspec.errors import BudgetExceeded, RecipeError
from deepspec.recipe import load_recipe
from deepspec.store import open_store
from deepspec.store.manifest import EarlierAttempt, Payer
from tasks.runtime.allowance import Allowance, allowance_of, limits_of
from tasks.runtime.records import StageRecord
from tasks.runtime.run import Run
from tests.fixtures.refused import refused
from tests.fixtures.store import ingredients

GPU = ("run.gpu=h100", "run.price_per_gpu_hour=2")


class Clock:
    """Seconds, as they are set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def allowance(*budget: str, before: Mapping[str, float] | None = None, num_gpus: int = 0) -> tuple[Allowance, Clock]:
    clock = Clock()
    limits = limits_of(load_recipe("tiny", [*GPU, *budget]))
    return Allowance(limits, before or {}, num_gpus=num_gpus, clock=clock), clock


@pytest.mark.parametrize(
    ("budget", "num_gpus", "hours"),
    [("budget.max_hours=2", 0, 2.0), ("budget.max_gpu_hours=2", 4, 0.5), ("budget.max_cost=3", 1, 1.5)],
)
def test_it_is_spent_when_the_limit_is_reached_and_not_before(budget: str, num_gpus: int, hours: float) -> None:
    found, clock = allowance(budget, num_gpus=num_gpus)
    clock.now += 3600 * hours - 2
    assert not found.is_spent()
    clock.now += 2
    assert found.is_spent()
    assert found.is_spent()
    with refused(BudgetExceeded, "Saved at step 7.", where=budget.partition("=")[0]):
        raise found.exceeded("Saved at step 7.")


def test_gpu_hours_are_not_those_of_a_processor() -> None:
    found, clock = allowance("budget.max_gpu_hours=1", num_gpus=0)
    clock.now += 10 * 3600
    assert not found.is_spent()


def test_what_earlier_attempts_have_cost_counts() -> None:
    found, clock = allowance("budget.max_hours=2", before={"seconds": 7000.0})
    assert not found.is_spent()
    clock.now += 200
    assert found.is_spent()
    assert allowance("budget.max_gpu_hours=1", before={"gpu_seconds": 3600.0})[0].is_spent()
    assert allowance("budget.max_cost=1", before={"gpu_seconds": 1800.0})[0].is_spent()


def test_processor_time_is_money_where_it_has_a_price() -> None:
    recipe = load_recipe("tiny", ["run.price_per_cpu_hour=0.5", "budget.max_cost=1"])
    assert not Allowance(limits_of(recipe), {"cpu_seconds": 7100.0}, num_gpus=0).is_spent()
    assert Allowance(limits_of(recipe), {"cpu_seconds": 7200.0}, num_gpus=0).is_spent()
    with refused(RecipeError, "budget.max_cost"):
        load_recipe("tiny", ["budget.max_cost=1"])


def test_without_a_budget_nothing_is_asked(tmp_path: Path) -> None:
    run = Run(load_recipe("tiny"), open_store(str(tmp_path)), tmp_path)

    def earlier() -> list[EarlierAttempt]:
        raise AssertionError("the store is listed for nothing")

    assert not allowance_of(run, earlier, num_gpus=8).is_spent()


def test_what_the_run_has_made_counts_and_what_it_found_does_not(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", [*GPU, "budget.max_gpu_hours=2"])
    run = Run(recipe, open_store(str(tmp_path)), tmp_path)
    killed = Payer(run="20261130-020000-abcdef", attempt="1")
    with run.store.write("states", ingredients("states")) as writing:
        writing.gpu_seconds, writing.earlier = 3600.0, (EarlierAttempt(payer=killed, cost={"gpu_seconds": 1800.0}),)
    states = writing.artifact
    run.known[states.kind, states.key] = states
    for status, attempts, spent in (("ran", 1700.0, False), ("ran", 1800.0, True), ("hit", 1800.0, False)):
        run.records = [StageRecord("states", status, kind="states", key=states.key)]  # type: ignore[arg-type]
        earlier = [EarlierAttempt(payer=killed, cost={"gpu_seconds": attempts})]
        assert allowance_of(run, lambda earlier=earlier: earlier, num_gpus=1).is_spent() == spent  # type: ignore[misc]
