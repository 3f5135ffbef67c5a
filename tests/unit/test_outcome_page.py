"""The summary on a flow run's page, and its tags."""

import pytest

from deepspec.record import RecordedVerdict, RunRecord
from deepspec.reports.run_markdown import summary
from flows.outcome_page import tags_of
from tests.fixtures import reports
from tests.fixtures.verdicts import judged


def record(challenger: float, champion: float | None, **fields: object) -> RunRecord:
    serving = None if champion is None else "d" * 64
    verdict = judged(challenger, champion, challenger_digest="c" * 64, champion_digest=serving)
    return reports.record(verdict=RecordedVerdict(**verdict.model_dump()), **fields)


def test_a_refused_draft_stands_beside_the_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow.example:5000")
    refused = record(2.0, 2.5, status="refused", model=reports.model("mine", "7"))
    page = summary(refused)
    assert page.startswith("# mine version 7: refused\n")
    assert "## Refused" in page
    assert "* ✗ **tau_gain**: " in page
    assert "| gate | 8 | 2.000 | 2.500 | -0.500 | -0.500 to -0.500 |" in page
    assert "(http://mlflow.example:5000/#/models/mine/versions/7?workflowType=machine_learning)" in page
    assert "hunter2" not in page
    assert tags_of(refused) == ["model:mine", "status:refused", "verdict:refused", "version:mine/7"]


def test_what_waits_is_tagged_so() -> None:
    waiting = record(2.0, None, status="awaiting_approval", model=reports.model("mine", "7"), notes=("It waits.",))
    assert "awaiting:mine" in tags_of(waiting)
    assert "It waits." in summary(waiting)
    assert "| gate | 8 | 2.000 | — | — | — |" in summary(waiting)
