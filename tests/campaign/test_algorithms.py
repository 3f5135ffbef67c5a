"""Every algorithm's draft with three seeds in one run: see tests/e2e/test_all_algorithms.py."""

from pathlib import Path
from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.e2e.conftest import Home
from tests.e2e.test_all_algorithms import small, three_drafts

pytestmark = pytest.mark.campaign


def test_three_drafts_of_three_seeds_from_nothing(tmp_path: Path, record: Record) -> None:
    home = Home(tmp_path / "home")
    found = three_drafts(home, num_seeds=3)
    record({algorithm: part["arithmetic"]["by_seed"] for algorithm, part in found["seeds"]["tau"].items()})
    home.run("demo", "--all", "--seeds", "3", *small(home))
    assert home.record()["status"] == "no_change"


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """τ of every seed."""
    return {"tau_by_seed": units[0]}
