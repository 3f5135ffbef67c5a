"""What a recipe's budget still allows while a stage is made, by what has been used and not by what was estimated.

Counted are the stage's own use so far, what its earlier attempts have cost in whichever run (paid.py), and what this
run has made before it. Time is measured by a clock that nobody sets.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deepspec.cost.attempts import attempts_at
from deepspec.cost.prices import Prices
from deepspec.errors import BudgetExceeded
from deepspec.recipe import Recipe
from deepspec.store.manifest import EarlierAttempt
from deepspec.usage import added_up, cpu_seconds_so_far
from tasks.runtime.run import Run

_LOOK_SECONDS = 1.0
"""Asking for processor time looks at every process that computes."""


@dataclass(frozen=True)
class Limit:
    """One of the recipe's limits.

    Attributes:
        field: of `budget`.
        most: what it allows.
        used: seconds, cpu_seconds and gpu_seconds -> how much of it they are.
        unit: of both, for the reader.
    """

    field: str
    most: float
    used: Callable[[Mapping[str, float]], float]
    unit: str


class Allowance:
    """What the budget allows for one stage that can end in the middle.

    Args:
        limits: of the recipe; none: everything is allowed.
        before: seconds, cpu_seconds and gpu_seconds that count, too.
        num_gpus: that the stage computes on.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        limits: tuple[Limit, ...],
        before: Mapping[str, float],
        *,
        num_gpus: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._before = before
        self._num_gpus = num_gpus
        self._clock = clock
        self._started = self._looked = clock()
        self._started_cpu = cpu_seconds_so_far() if limits else 0.0
        self._over = self._look()

    def is_spent(self) -> bool:
        """Whether a limit has been reached."""
        if self._over is None and self._limits and self._clock() - self._looked >= _LOOK_SECONDS:
            self._over = self._look()
        return self._over is not None

    def exceeded(self, reached: str) -> BudgetExceeded:
        """The error that the stage ends with once it is spent; `reached` is how far it has come, in a sentence."""
        if self._over is None:
            raise RuntimeError("the budget is not spent")
        limit, used = self._over
        return BudgetExceeded(
            f"{used:,.3g} {limit.unit} were used, earlier attempts included; the budget is {limit.most:,g}. {reached}",
            where=f"budget.{limit.field}",
            remedy="Raise it and run again: what was finished is kept.",
        )

    def _look(self) -> tuple[Limit, float] | None:
        if not self._limits:
            return None
        self._looked = self._clock()
        seconds = self._looked - self._started
        own = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds_so_far() - self._started_cpu,
            "gpu_seconds": seconds * self._num_gpus,
        }
        total = {name: value + self._before.get(name, 0.0) for name, value in own.items()}
        found = ((limit, limit.used(total)) for limit in self._limits)
        return next(((limit, used) for limit, used in found if used >= limit.most), None)


def allowance_of(run: Run[Any], earlier: Callable[[], Iterable[EarlierAttempt]], *, num_gpus: int) -> Allowance:
    """What the run's budget allows for a stage that begins now.

    Args:
        run: the run.
        earlier: the attempts at the stage before this one; called only if there is a limit.
        num_gpus: that the stage computes on.
    """
    limits = limits_of(run.recipe) if isinstance(run.recipe, Recipe) else ()
    if not limits:
        return Allowance((), {}, num_gpus=num_gpus)
    before = added_up([*_made_by(run), *(attempt.cost for attempt in earlier())])
    return Allowance(limits, before, num_gpus=num_gpus)


def limits_of(recipe: Recipe) -> tuple[Limit, ...]:
    """The limits that what is used is held against."""
    budget, how = recipe.budget, recipe.run
    prices = Prices(how.price_per_gpu_hour, how.price_per_cpu_hour, how.currency)
    found = (
        ("max_gpu_hours", budget.max_gpu_hours, lambda used: used["gpu_seconds"] / 3600, "GPU hours"),
        ("max_hours", budget.max_hours, lambda used: used["seconds"] / 3600, "hours"),
        ("max_cost", budget.max_cost, lambda used: prices.amount(used) or 0.0, prices.currency),
    )
    return tuple(Limit(field, most, used, unit) for field, most, used, unit in found if most is not None)


def _made_by(run: Run[Any]) -> Iterator[Mapping[str, float]]:
    """What the attempts at each artifact have used that this run has made so far."""
    for record in run.records:
        artifact = run.known.get((record.kind, record.key)) if record.status in ("ran", "rebuilt") else None
        if artifact is not None:
            yield from (attempt.used for attempt in attempts_at(artifact))
