"""Money: GPU and processor seconds by the prices of an hour. Amounts of different currencies are never added up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deepspec.store.manifest import Payer


@dataclass(frozen=True)
class Prices:
    """What an hour costs.

    Attributes:
        per_gpu_hour, per_cpu_hour: of one GPU, of processor time; None: no price, and so no part of an amount.
        currency: of both.
    """

    per_gpu_hour: float | None = None
    per_cpu_hour: float | None = None
    currency: str = "USD"

    def amount(self, used: Mapping[str, float]) -> float | None:
        """What was used in money, unrounded; None: there are no prices."""
        parts = (("gpu_seconds", self.per_gpu_hour), ("cpu_seconds", self.per_cpu_hour))
        priced = [used.get(name, 0.0) / 3600 * price for name, price in parts if price is not None]
        return sum(priced) if priced else None


def prices_of(payer: Payer | None) -> Prices:
    """The prices of the run that paid for an attempt; none where they are not recorded."""
    if payer is None or payer.currency is None:
        return Prices()
    return Prices(payer.price_per_gpu_hour, payer.price_per_cpu_hour, payer.currency)


def prices_in(resolved_recipe: object) -> Prices:
    """The prices of a recipe as a record has it, or of the first of several; none where it cannot be read."""
    first: Any = (
        resolved_recipe[0] if isinstance(resolved_recipe, list | tuple) and resolved_recipe else resolved_recipe
    )
    try:
        section = first["run"]
        gpu, cpu = (_price(section.get(name)) for name in ("price_per_gpu_hour", "price_per_cpu_hour"))
        return Prices(gpu, cpu, str(section.get("currency") or "USD"))
    except (LookupError, TypeError, ValueError, AttributeError):
        return Prices()


def summed(amounts: Iterable[tuple[str, float]]) -> dict[str, float]:
    """(currency, amount) added up by currency, to a hundredth of a cent."""
    sums: dict[str, float] = {}
    for currency, amount in amounts:
        sums[currency] = sums.get(currency, 0.0) + amount
    return {currency: round(sums[currency], 4) for currency in sorted(sums)}


def _price(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]  # what is no number raises
