"""What runs have cost: those of a month by model, stage or status; or one run, stage by stage.

A run counts in the month in which it began (UTC), once, with what it used itself: what it found ready, another run has
paid for. Amounts of money stand by currency, and are never added up over several.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from deepspec import history
from deepspec.cost.prices import Prices, prices_in, summed
from deepspec.errors import BadArgument
from deepspec.evaluation.results import Number
from deepspec.record import RunRecord
from deepspec.store import Backend
from deepspec.store.layout import HISTORY
from deepspec.store.records import JsonRecord
from deepspec.usage import USED, added_up, spelled_out

By: TypeAlias = Literal["model", "stage", "status"]

IN_VAIN = ("refused", "failed", "interrupted", "budget_exhausted")
"""How runs end that worked for a new champion and brought none."""

OUTSIDE = "outside stages"
"""Of a run's processor time and requests: its start, its look-ups, its servers, its report."""

_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")
_RUN = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


class CostGroup(JsonRecord):
    """What runs have cost that have something in common.

    Attributes:
        name: what that is: the model or models, the stage, the status.
        num_runs: that have paid for it.
        statuses: how many runs ended in each; of a stage, how often it did.
        cost: what was used, by the names in `deepspec.usage.USED`.
        amounts: money by currency.
        num_unpriced: runs without prices, which are no part of the amounts.
    """

    name: str
    num_runs: int
    statuses: dict[str, int]
    cost: dict[str, Number]
    amounts: dict[str, Number]
    num_unpriced: int


class MonthCost(JsonRecord):
    """What the runs of a month have cost.

    Attributes:
        month: year and month, `2026-12`.
        by: what the groups are.
        groups: by name; of stages, in the order of a run.
        total: of all runs.
        in_vain: of those that brought no new champion (`IN_VAIN`).
    """

    month: str
    by: By
    groups: tuple[CostGroup, ...]
    total: CostGroup
    in_vain: CostGroup


class RunCost(JsonRecord):
    """What one run has cost.

    Attributes:
        run_id, recipe, status: as in its record.
        stages: that it paid for, and what it used outside them.
        total: of the whole run.
    """

    run_id: str
    recipe: str
    status: str
    stages: tuple[CostGroup, ...]
    total: CostGroup


@dataclass
class _Sum:
    """A group while it is added up."""

    runs: set[str] = field(default_factory=set)
    unpriced: set[str] = field(default_factory=set)
    statuses: dict[str, int] = field(default_factory=dict)
    used: list[Mapping[str, float]] = field(default_factory=list)
    amounts: list[tuple[str, float]] = field(default_factory=list)

    def add(self, run_id: str, used: Mapping[str, float], prices: Prices, status: str | None) -> None:
        self.runs.add(run_id)
        self.used.append(used)
        amount = prices.amount(used)
        if amount is None:
            self.unpriced.add(run_id)
        else:
            self.amounts.append((prices.currency, amount))
        if status is not None:
            self.statuses[status] = self.statuses.get(status, 0) + 1

    def group(self, name: str) -> CostGroup:
        return CostGroup(
            name=name,
            num_runs=len(self.runs),
            statuses=dict(sorted(self.statuses.items())),
            cost=spelled_out(added_up(self.used)),
            amounts=summed(self.amounts),
            num_unpriced=len(self.unpriced),
        )


def span_of(month: str) -> tuple[datetime, datetime]:
    """The first moments of a month and of the next one, in UTC.

    Raises:
        BadArgument: it is no month.
    """
    match = _MONTH.fullmatch(month)
    year, number = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= year < 9999 and 1 <= number <= 12):
        raise BadArgument(
            f"{month!r} is no month.", where="--month", remedy="Write year and month, as in --month 2026-12."
        )
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return datetime(year, number, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)


def month_cost(backend: Backend, month: str, by: By, prices: Prices | None = None) -> MonthCost:
    """What the runs of a month have cost.

    Args:
        backend: of the store, whose history is read.
        month: year and month, `2026-12`.
        by: what to tell apart.
        prices: given now; None: those of each run's recipe.

    Raises:
        BadArgument: it is no month, or the store has no history.
        DeepspecError: the store does not answer.
    """
    since, until = span_of(month)
    records = history.records(backend, since=since, until=until)
    if not records and not backend.list(HISTORY):
        raise no_history(backend)
    groups: dict[str, _Sum] = {}
    for record in records:
        for name, used, status in _PARTS[by](record):
            groups.setdefault(name, _Sum()).add(record.run_id, used, prices or prices_of(record), status)
    names = list(groups) if by == "stage" else sorted(groups)
    return MonthCost(
        month=month,
        by=by,
        groups=tuple(groups[name].group(name) for name in sorted(names, key=lambda name: name == OUTSIDE)),
        total=_together("total", records, prices),
        in_vain=_together("no new champion", [one for one in records if one.status in IN_VAIN], prices),
    )


def run_cost(backend: Backend, run_id: str, prices: Prices | None = None) -> RunCost:
    """What a run that has ended has cost.

    Raises:
        BadArgument: the history has no such run.
        DeepspecError: the store does not answer.
    """
    record = next((one for one in _around(backend, run_id) if one.run_id == run_id), None)
    if record is None:
        if not backend.list(HISTORY):
            raise no_history(backend)
        raise BadArgument(
            f"the history has no run {run_id}.",
            where=backend.location,
            remedy="A run is there once it has ended; one that died, once the next run in its home has begun.",
        )
    groups: dict[str, _Sum] = {}
    for name, used, status in _by_stage(record):
        groups.setdefault(name, _Sum()).add(run_id, used, prices or prices_of(record), status)
    return RunCost(
        run_id=run_id,
        recipe=record.recipe,
        status=record.status,
        stages=tuple(total.group(name) for name, total in groups.items()),
        total=_together("total", [record], prices),
    )


def is_run_id(name: str) -> bool:
    """Whether a name is that of a run."""
    return _RUN.fullmatch(name) is not None


def used_by(record: RunRecord) -> dict[str, float]:
    """What a run used, by the names in `deepspec.usage.USED`."""
    cost = record.cost.to_json()
    return added_up([{"seconds": record.seconds, **{name: cost[name] for name in USED if cost.get(name)}}])


def prices_of(record: RunRecord) -> Prices:
    """The prices of a run's recipe, or of the first of several."""
    return prices_in(record.resolved_recipe)


def no_history(backend: Backend) -> BadArgument:
    """What to say of a store that no run has left its record in."""
    return BadArgument(
        "this store has no history of runs.",
        where=backend.location,
        remedy="A run leaves its record there when it ends. Name another store with DEEPSPEC_STORE or --recipe.",
    )


def _together(name: str, records: Iterable[RunRecord], prices: Prices | None) -> CostGroup:
    total = _Sum()
    for record in records:
        total.add(record.run_id, used_by(record), prices or prices_of(record), record.status)
    return total.group(name)


_Part: TypeAlias = tuple[str, Mapping[str, float], str | None]
"""Name of a group, what a run used of it, and how that ended."""


def _by_model(record: RunRecord) -> Iterator[_Part]:
    yield ", ".join(record.registered_models) or record.recipe, used_by(record), record.status


def _by_status(record: RunRecord) -> Iterator[_Part]:
    yield record.status, used_by(record), record.status


def _by_stage(record: RunRecord) -> Iterator[_Part]:
    """What the run paid for each stage, and the rest of what its process used."""
    paid = [stage for stage in record.stages if stage.cost]
    for stage in paid:
        yield stage.name, stage.cost or {}, stage.status
    whole, inside = used_by(record), added_up(stage.cost or {} for stage in paid)
    # A run's record is rounded to a tenth of a second.
    rest = {name: whole[name] - inside.get(name, 0.0) for name in whole if whole[name] - inside.get(name, 0.0) > 0.1}
    if rest:
        yield OUTSIDE, rest, None


_PARTS: Mapping[By, Callable[[RunRecord], Iterator[_Part]]] = {
    "model": _by_model,
    "stage": _by_stage,
    "status": _by_status,
}


def _around(backend: Backend, run_id: str) -> Sequence[RunRecord]:
    """The records of runs that began in the second that a run's id says."""
    try:
        second = datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return ()
    return history.records(backend, since=second, until=second.replace(microsecond=1))
