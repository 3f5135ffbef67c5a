"""The command `cost`: what a draft, an artifact, a run or the runs of a month have cost."""

from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from deepspec.errors import BadArgument
from deepspec.units import in_units
from flows.cli.terminal import AsJson, artifact_store, finite, home, note, print_json, show_lines, show_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deepspec.cost.making import MakingCost
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
    item = artifact_of(name, home(), store, where="NAME")
    measured = registration_of(store, item) if item.kind in DRAFT_KINDS else None
    return making_cost(store, [item, *([measured] if measured else [])], DRAFT_KINDS, prices)


def _show_making(made: "MakingCost") -> None:
    show_lines(f"{made.kind}/{made.key[:12]}, and what it was made from and measured by:")
    rows = [
        [
            one.stage,
            one.key[:12],
            one.run or "not recorded",
            one.model or "",
            *_used(one.cost),
            "" if one.amount is None else _money({str(one.currency): one.amount}),
            "; ".join(
                filter(
                    None,
                    (
                        "" if one.finished else "did not finish",
                        f"shared with {one.shared_with} other drafts" if one.shared_with > 1 else "",
                        "shared with another draft" if one.shared_with == 1 else "",
                    ),
                )
            ),
        ]
        for one in made.attempts
    ]
    total = ["total", "", "", "", *_used(made.cost), _money(made.amounts), ""]
    show_table(["stage", "key", "paid by run", "model", *_COLUMNS, "money", ""], [*rows, total])
    _hint(made.num_unpriced, len(made.attempts), "attempts")
    for gone in made.absent:
        note(f"deepspec: {gone} is not in this store; what it cost is not known.")


def _show_month(found: "MonthCost") -> None:
    show_lines(f"Runs that began in {found.month}, by {found.by}:")
    columns = [found.by, "runs", *_STATUSES, "other"] if found.by != "stage" else ["stage", "runs"]
    rows = [_group_row(group, found.by) for group in (*found.groups, found.total)]
    show_table([*columns, *_COLUMNS, "money"], rows)
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
    rows = [[group.name, *_used(group.cost), _money(group.amounts)] for group in (*found.stages, found.total)]
    show_table(["stage", *_COLUMNS, "money"], rows)
    _hint(found.total.num_unpriced, found.total.num_runs, "runs")


_COLUMNS = ("GPU h", "CPU h", "hours", "written", "read", "put/get/list/delete", "endpoints")


def _used(cost: "Mapping[str, float]") -> list[str]:
    hours = [f"{cost.get(name, 0.0) / 3600:,.4f}" for name in ("gpu_seconds", "cpu_seconds", "seconds")]
    sizes = [in_units(cost.get(name, 0.0)) for name in ("bytes_written", "bytes_read")]
    requests = "/".join(f"{cost.get(name, 0.0):.0f}" for name in _REQUESTS)
    return [*hours, *sizes, requests, f"{cost.get('endpoint_requests', 0.0):,.0f}"]


def _group_row(group: "CostGroup", by: str) -> list[str]:
    counts: Sequence[str] = ()
    if by != "stage":
        known = [group.statuses.get(status, 0) for status in _STATUSES]
        counts = [str(number) for number in (*known, sum(group.statuses.values()) - sum(known))]
    return [group.name, str(group.num_runs), *counts, *_used(group.cost), _money(group.amounts)]


def _money(amounts: "Mapping[str, float]") -> str:
    return ", ".join(f"{amount:,.2f} {currency}" for currency, amount in amounts.items())


def _hint(num_unpriced: int, num_all: int, what: str) -> None:
    if num_unpriced:
        note(f"deepspec: {num_unpriced} of {num_all} {what} have no prices and are no part of the amounts. {_HINT}")
