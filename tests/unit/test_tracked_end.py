"""The end of a run in MLflow: what its page says, with τ and cost also where the evaluation was found."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.record import RunStatus
from deepspec.registry import keys
from deepspec.registry.entries import DraftReference
from deepspec.registry.mlflow.tracking import Tracking
from tasks.runtime.record.tracked_end import End, track_end
from tests.fixtures import reports

LINEAGE = {"train": ("k" * 64, "d" * 64), "evaluate": ("1" * 64, "2" * 64)}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """One database for all tests: making one takes seconds."""
    return Tracking.embedded(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def client(tracking: Tracking) -> Any:
    return tracking._server.client


def test_a_run_that_evaluated_nothing_itself_has_its_drafts_figures(
    tracking: Tracking, client: Any, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    draft = DraftReference(kind="train", key="k" * 64, digest="d" * 64)
    first, again = (tracking.start_pipeline_run("tiny · 2026-11-23", {}) for _ in range(2))
    version = tracking.register(tmp_path, "tiny", first, {}, draft=draft)
    cost = {"cpu_seconds": 10.0, "gpu_seconds": 7200.0, "amount": 5.0, "currency": "USD"}
    fields = {"cost": {**cost, "amount": 0.5}, "making_cost": cost, "verdict": reports.verdict().to_json()}
    record = reports.record(status="refused", model=reports.model("tiny", "1").to_json(), **fields)
    track_end(tracking, again, record, End("tiny", "refused", LINEAGE, reports.evaluation(), version))
    run = client.get_run(again)
    assert (run.info.run_name, run.info.status) == ("tiny · 2026-11-23 · refused v1", "FINISHED")
    assert run.data.tags[keys.NOTE].startswith("# tiny version 1: refused\n\n## Accepted\n")
    assert "Cost: 0.50 USD (2.00 GPU hours)" in run.data.tags[keys.NOTE]
    assert keys.lineage_in(run.data.tags) == LINEAGE
    expected = {
        "tau/arithmetic": 3.1,
        "tau/domain/math": 3.1,
        "tau/domain/chat": 2.4,
        "tau/macro": 2.75,
        "tau/gate": 2.9,
        "cost/amount": 0.5,
        "version_cost/amount": 5.0,
    }
    assert {name: run.data.metrics.get(name) for name in expected} == expected
    assert keys.undocumented(keys.Entity.RUN, keys.Sort.METRIC, run.data.metrics) == []
    assert keys.undocumented(keys.Entity.RUN, keys.Sort.TAG, run.data.tags) == []
    charted = client.get_run(tracking.chart_of("tiny")).data.metrics
    assert {name: charted.get(name) for name in ("tau/gate", "version_cost/amount")} == {
        "tau/gate": 2.9,
        "version_cost/amount": 5.0,
    }


@pytest.mark.parametrize(
    ("status", "ends"), [("failed", "FAILED"), ("interrupted", "KILLED"), ("no_change", "FINISHED")]
)
def test_a_run_that_registered_nothing_says_why(tracking: Tracking, client: Any, status: RunStatus, ends: str) -> None:
    run_id = tracking.start_pipeline_run("tiny · 2026-11-23", {})
    failure = {"error": "DataError", "message": "No rows.", "stage": "tokens", "at": "2026-11-23T10:00:00+00:00"}
    record = reports.record(status=status, error="No rows.", failure=failure)
    track_end(tracking, run_id, record, End("tiny", status, {}))
    run = client.get_run(run_id)
    assert run.info.status == ends
    assert run.info.run_name == f"tiny · 2026-11-23 · {status.replace('_', ' ')}"
    assert "DataError in tokens at 2026-11-23T10:00:00+00:00: No rows." in run.data.tags[keys.NOTE]
