"""More algorithms and ways of dividing their weights over processes: see tests/unit/test_training_parallel.py."""

from pathlib import Path
from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.fixtures.training import write_inputs
from tests.unit.test_training_parallel import MORE_CASES, equals, trained

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize(("algorithm", "execution"), MORE_CASES)
def test_processes_train_what_one_does(
    tmp_path: Path, record: Record, algorithm: str, execution: dict[str, Any]
) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    several = trained(inputs, tmp_path / "several", algorithm, **execution)
    equals(several, trained(inputs, tmp_path / "one", algorithm))
    record({"algorithm": algorithm, **execution})


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """What was trained, and came out equal."""
    return {"equal_to_one_process": units}
