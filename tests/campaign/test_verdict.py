"""How sure a verdict is: coverage, false promotions over reigns, power, on drafts drawn from recorded rounds.

A unit is one number of prompts. `tests/fixtures/simulated_drafts.py` says what is drawn; the guide's page "judging"
shows what comes out.
"""

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from deepspec.gates.config import Config
from deepspec.gates.detectable import POWER, detectable
from deepspec.gates.domains import Domains
from tests.campaign.conftest import Record
from tests.fixtures.simulated_drafts import (
    NIGHTS,
    drawn_prompts,
    gain_of,
    measured,
    passes,
    reign_ends_falsely,
    tau_of,
    tilt_for,
    true_tau,
)
from tests.fixtures.verdicts import evidence

pytestmark = pytest.mark.campaign

CONFIG = Config()
REIGNS, EXPERIMENTS = 2000, 4000
MOST_FALSE = 0.065
LEAST_COVERAGE = 0.93
DOMAINS = ("math", "code", "chat")


def upper(count: int, total: int) -> float:
    """The exact upper 95 % bound of a share."""
    return float(beta.ppf(0.95, count + 1, total - count))


@pytest.mark.parametrize("count", [4, 8, 12, 30, 64, 263])
def test_intervals_cover(record: Record, count: int) -> None:
    draws, truth = np.random.default_rng(count), true_tau(0.0)
    of_tau = of_gain = 0
    for _ in range(EXPERIMENTS):
        prompts = drawn_prompts(draws, count)
        ours, theirs = measured(draws, prompts), measured(draws, prompts)
        low, high = tau_of(ours).interval()
        of_tau += low <= truth <= high
        low, high = gain_of(ours, theirs).interval()
        of_gain += low <= 0.0 <= high
    record({"what": "coverage", "prompts": count, "tau": of_tau / EXPERIMENTS, "gain": of_gain / EXPERIMENTS})


@pytest.mark.parametrize("same_prompts", [True, False])
@pytest.mark.parametrize("count", [12, 64])
def test_equal_drafts_end_few_reigns(record: Record, count: int, *, same_prompts: bool) -> None:
    draws = np.random.default_rng([count, same_prompts])
    ended = sum(reign_ends_falsely(draws, count, CONFIG, same_prompts=same_prompts) for _ in range(REIGNS))
    record(
        {
            "what": "reigns",
            "prompts": count,
            "same_prompts": same_prompts,
            "nights": NIGHTS,
            "false": ended / REIGNS,
            "upper": upper(ended, REIGNS),
        }
    )


@pytest.mark.parametrize("look", [1, 5])
@pytest.mark.parametrize("count", [12, 64, 500])
def test_the_stated_gain_is_found(record: Record, count: int, look: int) -> None:
    """As often as half of all verdicts say; by the gate on the gain, and by it and the gate on domains together."""
    draws = np.random.default_rng([count, look])
    equal = [
        gain_of(*(measured(draws, prompts) for _ in range(2)))
        for prompts in (drawn_prompts(draws, count) for _ in range(1000))
    ]
    spread = float(np.mean([one.error for one in equal]) * np.sqrt(count))
    said = [detectable(count, one, CONFIG.confidence, look).gain for one in equal]
    effect = float(np.median([gain for gain in said if gain is not None]))
    tilt, total, alone, together = tilt_for(effect), 2000, 0, 0
    for _ in range(total):
        prompts = drawn_prompts(draws, count)
        challenger, champion = measured(draws, prompts, tilt), measured(draws, prompts)
        found = passes(challenger, champion, look, CONFIG)
        alone += found
        together += found and domains_pass(draws, tilt)
    record(
        {
            "what": "power",
            "prompts": count,
            "look": look,
            "stated_gain": effect,
            "spread": spread,
            "found": alone / total,
            "at_most": float(beta.ppf(0.975, alone + 1, total - alone)),
            "found_by_the_table": together / total,
        }
    )


def domains_pass(draws: np.random.Generator, tilt: float) -> bool:
    """Whether three domains of 30 prompts each pass."""
    sides: tuple[dict[str, dict[str, tuple[int, int]]], ...] = ({}, {})
    for name in DOMAINS:
        prompts = drawn_prompts(draws, 30)
        for side, shift in zip(sides, (tilt, 0.0), strict=True):
            table = measured(draws, prompts, shift)
            side[name] = {str(place): (int(row[0]), int(row[1])) for place, row in enumerate(table)}
    known = evidence(
        3.0,
        3.0,
        benchmarks=sides[0],
        champion_benchmarks=sides[1],
        domains={name: [name] for name in DOMAINS},
    )
    found = Domains().judge(known, CONFIG)
    assert found is not None
    return found.passed


@pytest.mark.parametrize(("worse", "old_rule"), [(0.0, 0.48), (0.08, 0.26)])
def test_a_night_promotes_what_is_no_better(record: Record, worse: float, old_rule: float) -> None:
    """At 64 prompts; the old rule took any higher τ."""
    draws, tilt, total = np.random.default_rng(int(100 * worse)), tilt_for(worse), 4000
    now = before = 0
    for _ in range(total):
        prompts = drawn_prompts(draws, 64)
        challenger, champion = measured(draws, prompts), measured(draws, prompts, tilt)
        now += passes(challenger, champion, 1, CONFIG)
        before += gain_of(challenger, champion).value > 0
    record(
        {
            "what": "night",
            "worse": worse,
            "promoted": now / total,
            "by_higher_tau": before / total,
            "reported": old_rule,
        }
    )


@pytest.mark.parametrize("count", [12, 64])
def test_a_promotion_makes_the_next_one_harder(record: Record, count: int) -> None:
    """On the same prompts: the new champion was chosen for what it did on them, and is remembered by that."""
    draws, better, total = np.random.default_rng([count, 1]), 1.2 if count == 12 else 0.5, 6000
    tilt, truth = tilt_for(better), true_tau(tilt_for(better))
    lucky, then = [], 0
    for _ in range(total):
        prompts = drawn_prompts(draws, count)
        promoted, champion, challenger = (measured(draws, prompts, by) for by in (tilt, 0.0, tilt))
        if passes(promoted, champion, 1, CONFIG):
            lucky.append(tau_of(promoted).value - truth)
            then += passes(challenger, promoted, 1, CONFIG)
    record(
        {
            "what": "after a promotion",
            "prompts": count,
            "better": better,
            "promoted": len(lucky) / total,
            "measured_above_the_truth": float(np.mean(lucky)),
            "an_equal_one_promoted": then / len(lucky),
        }
    )


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures, and those that are not as the guide says."""
    found: dict[str, Any] = {"wrong": []}
    for unit in units:
        found.setdefault(unit["what"], []).append({name: value for name, value in unit.items() if name != "what"})
    for unit in found.get("coverage", []):
        if min(unit["tau"], unit["gain"]) < LEAST_COVERAGE:
            found["wrong"].append(unit)
    found["wrong"] += [unit for unit in found.get("reigns", []) if unit["upper"] > MOST_FALSE]
    few = [unit for unit in found.get("power", []) if unit["prompts"] < 30 and unit["look"] > 1]
    for unit in found.get("power", []):
        if unit not in few and unit["at_most"] < POWER:
            found["wrong"].append(unit)
    return found
