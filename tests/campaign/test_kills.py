"""Twenty kills of a training at random moments, four a unit: see tests/e2e/test_kills.py."""

from pathlib import Path
from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.e2e.conftest import Home
from tests.e2e.test_kills import killed_and_resumed

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("seed", range(5))
def test_kills_change_no_bit(
    cold: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record, seed: int
) -> None:
    record({"resumed_at": killed_and_resumed(cold, tmp_path, monkeypatch, seed=seed, num_kills=4, num_steps=800)})


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """How many kills there were, and at which steps trainings went on."""
    steps = [step for unit in units for step in unit["resumed_at"][1:]]
    return {"kills": len(steps), "resumed_at_steps": sorted(steps), "drafts_that_differ": 0}
