"""What runs used, by month and model, as text and as bars."""

import calendar
from collections.abc import Sequence
from dataclasses import dataclass

from deepspec.reports.dashboard.feed import Feed, MonthCost, Spent
from deepspec.reports.formatting import NOT_MEASURED, number
from deepspec.units import in_units


@dataclass(frozen=True)
class CostRow:
    """A model in a month; `share` is that of the bar, in percent of the largest."""

    model: str
    runs: int
    gpu_hours: str
    cpu_hours: str
    written: str
    requests: str
    money: str
    share: float


@dataclass(frozen=True)
class CostMonth:
    """A month with its models, and their sum."""

    title: str
    rows: Sequence[CostRow]
    total: str


def months_of(feed: Feed) -> list[CostMonth]:
    """Newest first. Bars are of money where all have it in one currency, else of GPU or processor hours."""
    most = max((_size(one.spent, feed.costs) for one in feed.costs), default=0.0)
    found: dict[str, list[MonthCost]] = {}
    for one in feed.costs:
        found.setdefault(one.month, []).append(one)
    return [
        CostMonth(
            title=_title(month),
            rows=[_row(one, _size(one.spent, feed.costs) / most if most else 0.0) for one in rows],
            total=_total(rows),
        )
        for month, rows in found.items()
    ]


def gpu_hours(spent: Spent) -> str:
    """GPU hours, or processor hours where no GPU was used."""
    seconds, of = (spent.gpu_seconds, "GPU") if spent.gpu_seconds else (spent.cpu_seconds, "processor")
    if seconds < 360:
        return f"{number(seconds / 60, 1)} {of} minutes"
    return f"{number(seconds / 3600, 1)} {of} hours"


def money(spent: Spent) -> str:
    """What it comes to in money; in hours where there are no prices."""
    return ", ".join(f"{number(amount, 2)} {currency}" for currency, amount in spent.amounts.items()) or gpu_hours(
        spent
    )


def _title(month: str) -> str:
    year, _, number_ = month.partition("-")
    return f"{calendar.month_name[int(number_)]} {year}"


def _row(one: MonthCost, share: float) -> CostRow:
    return CostRow(
        model=one.model,
        runs=one.runs,
        gpu_hours=number(one.spent.gpu_seconds / 3600, 1),
        cpu_hours=number(one.spent.cpu_seconds / 3600, 1),
        written=in_units(one.spent.bytes_written),
        requests=number(one.spent.requests, 0) if one.spent.requests else NOT_MEASURED,
        money=money(one.spent) if one.spent.amounts else NOT_MEASURED,
        share=round(100 * share, 1),
    )


def _size(spent: Spent, all_of: Sequence[MonthCost]) -> float:
    currencies = {currency for one in all_of for currency in one.spent.amounts}
    if len(currencies) == 1:
        return sum(spent.amounts.values())
    return spent.gpu_seconds if any(one.spent.gpu_seconds for one in all_of) else spent.cpu_seconds


def _total(rows: Sequence[MonthCost]) -> str:
    amounts: dict[str, float] = {}
    for one in rows:
        for currency, amount in one.spent.amounts.items():
            amounts[currency] = amounts.get(currency, 0.0) + amount
    seconds = {
        "gpu_seconds": sum(one.spent.gpu_seconds for one in rows),
        "cpu_seconds": sum(one.spent.cpu_seconds for one in rows),
    }
    return money(Spent(**seconds, amounts=amounts))
