"""The command `cost`: what a draft, an artifact, a run or the runs of a month have cost."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from deepspec.errors import ArtifactUnknown, BadArgument
from deepspec.units import in_units
from flows.cli.terminal import AsJson, artifact_store, finite, home, note, print_json, show_lines, show_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deepspec.cost.making import MakingCost, PaidAttempt
    from deepspec.cost.months import CostGroup, MonthCost, RunCost
    from deepspec.cost.prices import Prices
    from deepspec.store.records import JsonRecord

FoundT = TypeVar("FoundT", bound="JsonRecord")

_NAME = "A draft (models:/<name>@champion, models:/<name>/<version>), an artifact (train/<key>) or a run's id."
_REQUESTS = ("put_requests", "get_requests", "list_requests", "delete_requests")
_STATUSES = ("promoted", "refused", "failed", "interrupted")
_HINT = "Set run.price_per_gpu_hour and run.price_per_cpu_hour in the recipe, or give --price-gpu-hour."


def cost(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help=_NAME)] = None,
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="The runs that began in it, UTC; default: this month.")
    ] = None,
    by: Annotated[str, typer.Option(help="With --month: model, stage or status.")] = "model",
    price_gpu_hour: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Of one GPU; given prices replace those of recipes.")
    ] = None,
    price_cpu_hour: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Of an hour of processor time.")
    ] = None,
    currency: Annotated[str, typer.Option(help="What these prices are in.")] = "USD",
    as_json: AsJson = False,
) -> None:
    """Show what a draft cost to make, or what the runs of a month have cost; attempts that were killed count.

    Example: deepspec cost models:/demo@champion
    """
    from deepspec.cost.months import By, is_run_id, month_cost, run_cost

    prices = _prices(price_gpu_hour, price_cpu_hour, currency)
    if name is not None and month is not None:
        raise BadArgument("a name and a month were given.", where="--month", remedy="Ask for one of them.")
    if by not in get_args(By):
        raise BadArgument(f"{by!r} is unknown.", where="--by", remedy=f"Name one of {', '.join(get_args(By))}.")
    store = artifact_store()
    if name is None:
        found = month_cost(store.backend, month or _this_month(), by, prices)  # type: ignore[arg-type]  # checked above
        _shown(found, _show_month, as_json=as_json)
    elif is_run_id(name):
        _shown(run_cost(store.backend, name, prices), _show_run, as_json=as_json)
    else:
        _shown(_making(name, prices), _show_making, as_json=as_json)


def _shown(found: FoundT, show: "Callable[[FoundT], None]", *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    else:
        show(found)


def _prices(gpu: float | None, cpu: float | None, currency: str) -> "Prices | None":
    from deepspec.cost.prices import Prices

    return None if gpu is None and cpu is None else Prices(gpu, cpu, currency)


def _this_month() -> str:
    from datetime import UTC, datetime

    return f"{datetime.now(UTC):%Y-%m}"


def _making(name: str, prices: "Prices | None") -> "MakingCost":
    from deepspec.cost.making import making_cost, registration_of
    from deepspec.registry.draft_names import artifact_of
    from deepspec.registry.identity import DRAFT_KINDS

    store = artifact_store()
    try:
        item = artifact_of(name, home(), store, where="NAME")
    except ArtifactUnknown as error:
        raise BadArgument(
            f"{name} is no draft, artifact or run of this store: {error.what}",
            where="NAME",
            remedy="Name models:/<name>@champion, models:/<name>/<version>, train/<key> or the id of a run.",
        ) from error
    measured = registration_of(store, item) if item.kind in DRAFT_KINDS else None
    return making_cost(store, [item, *([measured] if measured else [])], DRAFT_KINDS, prices)


def _show_making(made: "MakingCost") -> None:
    show_lines(f"{made.kind}/{made.key[:12]}, and what it was made from and measured by:")
    rows = [
        _Row(
            [one.stage, one.key[:12], one.run or "not recorded", one.model or ""],
            one.cost,
            {} if one.amount is None else {str(one.currency): one.amount},
            [_note_on(one)],
        )
        for one in made.attempts
    ]
    _show(["stage", "key", "paid by run", "model"], [*rows, _Row(["total"], made.cost, made.amounts)], ["note"])
    _hint(made.num_unpriced, len(made.attempts), "attempts")
    for gone in made.absent:
        note(f"deepspec: {gone} is not in this store; what it cost is not known.")


def _note_on(one: "PaidAttempt") -> str:
    others = f"shared with {one.shared_with} other draft{'s' if one.shared_with > 1 else ''}" if one.shared_with else ""
    return "; ".join(filter(None, ("" if one.finished else "did not finish", others)))


def _show_month(found: "MonthCost") -> None:
    show_lines(f"Runs that began in {found.month}, by {found.by}:")
    names = [found.by, "runs"] if found.by == "stage" else [found.by, "runs", *_STATUSES, "other"]
    _show(names, [_row_of(group, by_run=found.by != "stage") for group in (*found.groups, found.total)])
    if found.in_vain.num_runs:
        show_lines(_in_vain(found))
    _hint(found.total.num_unpriced, found.total.num_runs, "runs")


def _in_vain(found: "MonthCost") -> str:
    """What the runs took that brought no new champion, in a sentence."""
    vain, total = found.in_vain, found.total
    shares = [
        f"{vain.cost.get(name, 0.0) / total.cost[name]:.0%} of the {what} hours"
        for what, name in (("GPU", "gpu_seconds"), ("processor", "cpu_seconds"))
        if total.cost.get(name)
    ]
    money = f", {_money(vain.amounts)}" if vain.amounts else ""
    took = " and ".join(shares) or "no time"
    return f"{vain.num_runs} of {total.num_runs} runs brought no new champion and took {took}{money}."


def _show_run(found: "RunCost") -> None:
    show_lines(f"{found.run_id} ({found.recipe}): {found.status}")
    _show(["stage"], [_Row([group.name], group.cost, group.amounts) for group in (*found.stages, found.total)])
    _hint(found.total.num_unpriced, found.total.num_runs, "runs")


@dataclass(frozen=True)
class _Row:
    """A line of a table.

    Attributes:
        names: its first cells.
        cost, amounts: what was used, and the money.
        notes: its last cells.
    """

    names: "Sequence[str]"
    cost: "Mapping[str, float]"
    amounts: "Mapping[str, float]"
    notes: "Sequence[str]" = ()


def _row_of(group: "CostGroup", *, by_run: bool) -> _Row:
    known = [group.statuses.get(status, 0) for status in _STATUSES]
    counts = [*known, sum(group.statuses.values()) - sum(known)] if by_run else []
    return _Row([group.name, str(group.num_runs), *map(str, counts)], group.cost, group.amounts)


def _show(names: "Sequence[str]", rows: "Sequence[_Row]", notes: "Sequence[str]" = ()) -> None:
    """Print rows with what they have in common; a column that is empty in all of them is left out."""
    used = {
        title: cells
        for title, cell in _COLUMNS.items()
        if any(cells := [cell(row.cost) for row in rows]) or title in _ALWAYS
    }
    money = [_money(row.amounts) for row in rows]
    columns = [*used.values(), *([money] if any(money) else [])]
    titles = [*names, *used, *(["money"] if any(money) else []), *notes]
    blank = [""] * len(names)
    show_table(
        titles,
        [
            [
                *[*row.names, *blank][: len(names)],
                *(cells[place] for cells in columns),
                *(row.notes or [""] * len(notes)),
            ]
            for place, row in enumerate(rows)
        ],
    )


def _time(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is read best; empty for none."""
    for length, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:,.2f} {unit}"
    return f"{seconds:.1f} s" if seconds else ""


def _size(num_bytes: float) -> str:
    return in_units(num_bytes) if num_bytes else ""


def _requests(cost: "Mapping[str, float]") -> str:
    numbers = [f"{cost.get(name, 0.0):.0f}" for name in _REQUESTS]
    return "/".join(numbers) if any(cost.get(name) for name in _REQUESTS) else ""


_COLUMNS: "Mapping[str, Callable[[Mapping[str, float]], str]]" = {
    "GPU": lambda cost: _time(cost.get("gpu_seconds", 0.0)),
    "processor": lambda cost: _time(cost.get("cpu_seconds", 0.0)),
    "wall": lambda cost: _time(cost.get("seconds", 0.0)),
    "written": lambda cost: _size(cost.get("bytes_written", 0.0)),
    "read": lambda cost: _size(cost.get("bytes_read", 0.0)),
    "put/get/list/delete": _requests,
    "endpoints": lambda cost: f"{cost['endpoint_requests']:,.0f}" if cost.get("endpoint_requests") else "",
}
_ALWAYS = ("GPU", "processor", "wall", "written")


def _money(amounts: "Mapping[str, float]") -> str:
    return ", ".join(f"{amount:,.{2 if amount >= 1 else 4}f} {currency}" for currency, amount in amounts.items())


def _hint(num_unpriced: int, num_all: int, what: str) -> None:
    if num_unpriced:
        note(f"deepspec: {num_unpriced} of {num_all} {what} have no prices and are no part of the amounts. {_HINT}")
