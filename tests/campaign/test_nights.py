"""60 nights whose servers and workers are killed, alone and two at once: see tests/fixtures/killed_nights.py.

A night and the next one take a minute, or seven where Prefect has to notice first that a run's process has died.
"""

from collections import Counter
from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.fixtures.killed_nights import GOOD, Trouble, late_nights, night
from tests.fixtures.stack import Deployed
from tests.integration.test_stack import REVIEWED, deployed, stack, suspended

__all__ = ["deployed", "stack"]

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def undisturbed(deployed: Deployed) -> str:
    """The part of the bucket that a night has filled which nothing befell."""
    assert deployed.ended(deployed.flow_run()) in GOOD
    return "store"


@pytest.mark.parametrize("number", range(60))
def test_a_night_ends_right_by_itself_or_by_the_next_one(
    deployed: Deployed, undisturbed: str, record: Record, number: int
) -> None:
    found = night(deployed, Trouble.of(number), undisturbed)
    assert not found.wrong
    record(found.figures())


def test_three_late_nights_promote_once(deployed: Deployed, undisturbed: str, record: Record) -> None:
    record(late_nights(deployed, undisturbed))


def test_a_night_that_waits_for_a_person_is_approved_after_the_stack_was_down(
    deployed: Deployed, undisturbed: str, record: Record
) -> None:
    waiting = deployed.flow_run(*REVIEWED)
    suspended(deployed, waiting)
    assert deployed.stack.call("down").returncode == 0
    deployed.stack.up()
    assert deployed.api(f"/flow_runs/{waiting}")["state"]["name"] == "Suspended"
    given = {"reason": "the canary was fine", "name": "Ada"}
    assert deployed.api(f"/flow_runs/{waiting}/resume", {"run_input": given})["status"] == "ACCEPT"
    assert deployed.ended(waiting) == "Promoted", deployed.log(waiting)
    assert [entry["reason"] for entry in deployed.json("models", "history", "reviewed")] == [given["reason"]]
    record({"waited": "Promoted"})


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """How many nights, what befell them, and how they ended: by themselves, and then."""
    nights = [unit for unit in units if "killed" in unit]
    counted = {name: Counter(str(unit[name]) for unit in nights) for name in ("killed", "ended", "again")}
    digests = {unit["digest"] for unit in nights}
    return {
        "nights": len(nights),
        "drafts": len(digests),
        **{name: dict(counts.most_common()) for name, counts in counted.items()},
    }
