"""Compiled by inductor, every algorithm and family: see tests/unit/test_drafts_computation.py."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.drafts import ALGORITHMS
from deepspec.targets.directory import read_spec
from tests.campaign.conftest import Record
from tests.fixtures.algorithms import TARGETS
from tests.unit.test_drafts_computation import VOCAB, keeps_the_loss_compiled

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("family", sorted(TARGETS))
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_inductor_compiles_once_and_keeps_the_loss(tmp_path: Path, record: Record, algorithm: str, family: str) -> None:
    spec = read_spec(TARGETS[family](tmp_path / "target", vocab_size=VOCAB))
    record({"case": f"{algorithm} {family}", "graphs": keeps_the_loss_compiled(ALGORITHMS[algorithm], spec)})


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """Graphs that were compiled for 50 batches of other lengths."""
    return {unit["case"]: unit["graphs"] for unit in units}
