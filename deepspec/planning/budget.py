"""Refuses a run that would exceed its recipe's budget, or that certainly has no room."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from deepspec.errors import BudgetExceeded, DeepspecError, StoreFull
from deepspec.planning.before_run import known_lengths, room_of, without_memory
from deepspec.planning.results import Work
from deepspec.recipe import Recipe
from deepspec.units import in_units

_CERTAIN = 0.9
"""A run is refused for lack of room only where even this share of the estimate does not fit."""

_STAGE_OF: Mapping[Work, str] = {"capture": "states", "training": "train"}


class Previewed(Protocol):
    """A stage of a preview."""

    @property
    def name(self) -> str:
        """The stage's."""

    @property
    def status(self) -> str:
        """`would_run` where it is not in the store."""


def refuse(recipe: Recipe, home: Path, records: Iterable[Previewed]) -> None:
    """Refuse a run that would exceed the recipe's budget, or that certainly has no room for its states.

    Args:
        recipe: with local inputs, which are there.
        home: its home folder.
        records: of its preview; what the store has already costs nothing.

    Raises:
        BudgetExceeded: naming the limit and the estimate.
        StoreFull: no room.
    """
    would_run = {record.name for record in records if record.status == "would_run"}
    if not would_run & {"states", "train"}:
        return
    try:
        conversations, lengths = known_lengths(recipe, None, None)
    except DeepspecError:
        if recipe.budget != type(recipe.budget)():
            raise
        return  # reading the conversations reports better what is wrong with them
    room = room_of(recipe, home)
    found = without_memory(recipe, conversations, lengths, room)
    states = found.states
    size = states.bytes_by_layout[states.codec] if states.mode == "offline" and "states" in would_run else 0
    budget = recipe.budget
    if budget.max_states_bytes is not None and size > budget.max_states_bytes:
        raise BudgetExceeded(
            f"the states would take {in_units(size)}; the budget is {in_units(budget.max_states_bytes)}.",
            where="budget.max_states_bytes",
            remedy="Choose a smaller states.codec, states.mode=online, or data.max_rows.",
        )
    gpu = found.gpu
    if gpu is not None:
        wall_hours = sum(value for work, value in gpu.hours.items() if _STAGE_OF[work] in would_run)
        if budget.max_hours is not None and wall_hours > budget.max_hours:
            raise BudgetExceeded(
                f"it would take {wall_hours:,.3g} hours; the budget is {budget.max_hours:,g}.",
                where="budget.max_hours",
                remedy="Train for fewer epochs, on fewer rows (data.max_rows) or more GPUs, or raise it.",
            )
        hours = gpu.num_gpus * wall_hours
        if budget.max_gpu_hours is not None and hours > budget.max_gpu_hours:
            raise BudgetExceeded(
                f"it would take {hours:,.3g} GPU hours; the budget is {budget.max_gpu_hours:,g}.",
                where="budget.max_gpu_hours",
                remedy="Train for fewer epochs, on fewer rows (data.max_rows), or raise it.",
            )
        price = recipe.run.price_per_gpu_hour
        if budget.max_cost is not None and price is not None and hours * price > budget.max_cost:
            raise BudgetExceeded(
                f"it would cost {hours * price:,.2f} {recipe.run.currency}; the budget is {budget.max_cost:,.2f}.",
                where="budget.max_cost",
                remedy="Train for fewer epochs, on fewer rows (data.max_rows), or raise it.",
            )
    free = room.staging_free_bytes
    if size * _CERTAIN > free:
        raise StoreFull(
            f"no room left for the target's states: they would take {in_units(size)}, and {in_units(free)} are free.",
            where=room.staging,
            remedy="Free some space, or choose a smaller states.codec, or states.mode=online.",
        )
