"""What codecs of target states cost in acceptance: drafts of the recipe `tiny`, paired by seed.

A unit is one training. The summary holds the mean ratio of τ to that of bf16 states with its 95 % interval; a codec
that costs acceptance beyond noise fails the part.
"""

import math
import statistics
from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.e2e.conftest import Home
from tests.e2e.test_states_quality import tau

pytestmark = pytest.mark.campaign

SEEDS = range(5)
T_95 = 2.776
"""Student's t for 95 % and four degrees of freedom."""


@pytest.mark.parametrize("seed", SEEDS)
def test_codecs_cost_no_acceptance_beyond_noise(warm: Home, record: Record, seed: int) -> None:
    found = {codec: tau(warm, codec, seed) for codec in ("bf16", "int8", "int4")}
    # One pair says little; what all say is in the summary.
    assert all(other > 0.8 * found["bf16"] for other in found.values()), found
    record(found)


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios with their intervals, where there are enough seeds for one."""
    found: dict[str, Any] = {"tau_of_bf16": [unit["bf16"] for unit in units], "wrong": []}
    for codec in ("int8", "int4") if len(units) == len(SEEDS) else ():
        logs = [math.log(unit[codec] / unit["bf16"]) for unit in units]
        mean, half = statistics.mean(logs), T_95 * statistics.stdev(logs) / math.sqrt(len(logs))
        low, high = math.exp(mean - half), math.exp(mean + half)
        # The interval of five pairs misses the true ratio once in twenty times; 1 % more is no loss that matters. And
        # it must be narrow enough to have seen a loss of a tenth.
        found[codec] = {"ratio": math.exp(mean), "ci95": [low, high]}
        if not (high > 0.99 and low > 0.9):
            found["wrong"].append(codec)
    return found
