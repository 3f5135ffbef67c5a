"""The acceptance rule at the vocabulary of a real target (Qwen3's), by statistics: see tests/fixtures/two_positions.py.

A unit takes some minutes: 20,000 rounds of two drafts, two at a step, with the right verifier and with one that accepts
3 % too often.
"""

from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.fixtures.two_positions import SCHEDULERS, p_value_of_two_positions

pytestmark = pytest.mark.campaign

VOCABULARY = 151_936


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_committed_tokens_are_distributed_as_the_targets(scheduler: str, record: Record) -> None:
    right = p_value_of_two_positions(SCHEDULERS[scheduler], 1.0, VOCABULARY)
    generous = p_value_of_two_positions(SCHEDULERS[scheduler], 1.03, VOCABULARY)
    assert right > 0.01
    assert generous < 1e-6
    record({"scheduler": scheduler, "right": right, "generous": generous})


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """p-values by scheduler."""
    return {unit["scheduler"]: {name: unit[name] for name in ("right", "generous")} for unit in units}
