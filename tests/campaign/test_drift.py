"""How often drift is told that is none, and how soon one that is: on traffic that is drawn from recorded rounds.

A unit is one size of registration and one kind of traffic, 200 simulations each. `tests/fixtures/simulated_traffic.py`
says what is drawn; the guide's page "monitoring" shows what comes out.
"""

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, chi2

from deepspec.monitoring.detector import PER_WINDOWS
from deepspec.monitoring.streams import ALL_TRAFFIC, WITHIN
from tests.campaign.conftest import Record
from tests.fixtures.simulated_traffic import Served, Simulation, delay, false_alarms

pytestmark = pytest.mark.campaign

SIMULATIONS = 200
LEAST_FOUND = 0.95
KINDS = {
    "registered on 1,000 prompts a domain": Served(1000),
    "registered on 30 prompts a domain": Served(30),
    "not registered": Served(0),
    "without labels": Served(30, labelled=False),
    "one domain is most": Served(30, mix=(0.8, 0.15, 0.05)),
    "answers nine times as long": Served(30, pieces=9),
}
"""Of the recorded prompts' length: eleven rounds in the mean."""
USUAL = ("registered on 1,000 prompts a domain", "registered on 30 prompts a domain", "not registered")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_happens(record: Record, kind: str) -> None:
    counts = [false_alarms([1, seed], KINDS[kind], PER_WINDOWS) for seed in range(SIMULATIONS)]
    total = sum(counts)
    low = float(chi2.ppf(0.025, 2 * total)) / 2 if total else 0.0
    record(
        {
            "what": "false alarms",
            "kind": kind,
            "mean": total / SIMULATIONS,
            "ci95": [low / SIMULATIONS, float(chi2.ppf(0.975, 2 * total + 2)) / 2 / SIMULATIONS],
            "most": max(counts),
        }
    )


@pytest.mark.parametrize("stream", [ALL_TRAFFIC, "chat", "math"])
@pytest.mark.parametrize("kind", USUAL)
def test_a_tenth_is_lost(record: Record, kind: str, stream: str) -> None:
    found = [delay([2, seed], KINDS[kind], stream, 0.1) for seed in range(SIMULATIONS)]
    record({"what": "delays", "kind": kind, "stream": stream, "drop": 0.1, **_delays(found)})


@pytest.mark.parametrize("kind", ["registered on 30 prompts a domain", "answers nine times as long"])
def test_the_smallest_drop_is_found(record: Record, kind: str) -> None:
    """What the monitor itself says after its burn-in."""
    said = []
    for seed in range(20):
        simulated = Simulation([3, seed], KINDS[kind])
        simulated.serve(25)
        [stream] = [one for one in simulated.streams if one.name == ALL_TRAFFIC]
        said.append(stream.smallest_drop("burn_in") or np.nan)
    drop = float(np.median(said))
    found = [delay([4, seed], KINDS[kind], ALL_TRAFFIC, drop) for seed in range(SIMULATIONS)]
    record({"what": "delays", "kind": kind, "stream": "smallest drop", "drop": drop, **_delays(found)})


@pytest.mark.parametrize("kind", ["registered on 1,000 prompts a domain", "registered on 30 prompts a domain"])
def test_it_is_lost_from_the_start(record: Record, kind: str) -> None:
    """Only what was registered can say so; of 30 prompts it finds less."""
    found = [delay([5, seed], KINDS[kind], ALL_TRAFFIC, 0.1, before=0, most=13) for seed in range(SIMULATIONS)]
    record({"what": "from the start", "kind": kind, "drop": 0.1, **_delays(found, WITHIN + 3)})


def _delays(found: list[int | None], within: int = WITHIN) -> dict[str, Any]:
    """Shares, with their exact 95 % intervals, and quantiles of what was found."""
    soon = sum(one is not None and one <= within for one in found)
    known = [one for one in found if one is not None]
    return {
        "found": soon / len(found),
        "ci95": [
            float(beta.ppf(0.025, soon, len(found) - soon + 1)) if soon else 0.0,
            float(beta.ppf(0.975, soon + 1, len(found) - soon)) if soon < len(found) else 1.0,
        ],
        "never": len(found) - len(known),
        "quantiles": np.quantile(known, [0.05, 0.5, 0.95, 1.0], method="higher").tolist() if known else [],
    }


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures, and those that are not as the guide says."""
    found: dict[str, Any] = {"wrong": []}
    for unit in units:
        found.setdefault(unit["what"], []).append({name: value for name, value in unit.items() if name != "what"})
    found["wrong"] += [unit for unit in found.get("false alarms", []) if unit["ci95"][1] > 1.0]
    found["wrong"] += [unit for unit in found.get("delays", []) if unit["found"] < LEAST_FOUND]
    return found
