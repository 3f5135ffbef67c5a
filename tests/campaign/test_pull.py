"""A hundred kills of a pull at random moments, ten a unit: see tests/e2e/test_pull.py."""

from pathlib import Path
from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.e2e.test_pull import killed_and_pulled

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("seed", range(10))
def test_kills_leave_the_old_or_the_new_draft(tmp_path: Path, record: Record, seed: int) -> None:
    record(killed_and_pulled(tmp_path, seed=100 + seed, num_kills=10))


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """How many kills there were, and when they came; every one left a whole draft, or its unit did not end."""
    moments = {moment: sum(unit[moment] for unit in units) for moment in units[0]}
    return {"kills": sum(moments.values()), **moments, "mixtures": 0}
