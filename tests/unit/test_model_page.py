"""The page of a model on a seeded month: each of the questions that it answers, and what is said where nothing is."""

from datetime import timedelta
from pathlib import Path

import pytest

from deepspec.registry.mlflow.tracking import Tracking
from deepspec.store import Store, open_store
from flows.model_page import artifact_key, facts_of, page, show_again
from tests.fixtures.month import LAST_NIGHT, Month, seed

MORNING = LAST_NIGHT + timedelta(hours=7)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("month") / "store"))


@pytest.fixture(scope="module")
def month(store: Store) -> Month:
    return seed(store)


def part(month: Month, model: str, heading: str) -> str:
    """What stands under one heading of a model's page."""
    _, _, rest = page(facts_of(month.store.backend, model, MORNING)).partition(f"## {heading}\n")
    return rest.partition("\n## ")[0]


def test_who_serves_and_why(month: Month, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    promoted = part(month, "qwen3-4b", "Champion")
    assert "/#/models/qwen3-4b/versions/18?workflowType=machine_learning" in promoted
    assert "by nightly (MLflow user)" in promoted
    assert "Why: Accepted: τ 3.439 against the champion's 3.377" in promoted
    back = part(month, "gemma4-12b", "Champion")
    assert "version 5" in back
    assert "by ada (MLflow user): Answers in production are shorter." in back
    assert "rolled back to, from version 9" in back


def test_what_fails_and_what_waits(month: Month) -> None:
    assert "No: the last run ended as promoted." in part(month, "qwen3-4b", "Is anything failing?")
    waiting = part(month, "gemma4-12b", "Is anything failing?")
    assert "waits for a person's approval" in waiting
    assert "2 of 29. The last one, 2026-11-29 02:30: DataError in train" in waiting


def test_a_night_that_is_missing_is_said(month: Month) -> None:
    late = page(facts_of(month.store.backend, "qwen3-4b", MORNING + timedelta(days=2)))
    assert "**No run has ended for 53 hours.**" in late


def test_which_host_holds_what(month: Month) -> None:
    served = part(month, "qwen3-4b", "What is served where").splitlines()
    assert any("gpu-01 | version 18 (champion) | healthy" in line for line in served)
    assert any("gpu-02 | version 18 (champion) | lost" in line and "silent for 60 min" in line for line in served)
    assert any("gpu-03 | version 14 (not the champion) | unhealthy" in line for line in served)


def test_what_it_cost(month: Month) -> None:
    cost = part(month, "qwen3-4b", "Cost")
    spent = sum(night.record.cost.amount or 0.0 for night in month.of("qwen3-4b"))
    assert f"* 31 days: {spent:.2f} USD" in cost
    assert "* December 2026: 3.67 USD" in cost
    assert "making the champion, with all it was made from: 3.67 USD" in cost


def test_how_acceptance_has_moved_by_benchmark_and_domain(month: Month) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part(month, "qwen3-4b", "How τ has moved").splitlines()
        if line.startswith("|")
    ]
    assert (rows[0][0], rows[0][-1]) == ("champion", "change")
    assert [head.partition(",")[0] for head in rows[0][1:-1]] == ["v1", "v4", "v7", "v11", "v14", "v18"]
    names = {row[0]: row for row in rows[2:]}
    assert {"gate", "gsm8k", "humaneval", "mt-bench", "alpaca", "domain math", "domain code", "domain chat"} <= set(
        names
    )
    assert names["gate"][1:] == ["3.00", "3.09", "3.18", "3.29", "3.38", "3.44", "+0.44"]


def test_the_last_nights_are_listed_newest_first(month: Month) -> None:
    nights = [line for line in part(month, "gemma4-12b", "Last nights").splitlines() if line.startswith("| 20")]
    assert len(nights) == 14
    assert nights[0].startswith("| 2026-12-01 02:30 | awaiting approval v13 | 2.77 |")


def test_mlflow_holds_all_of_it(month: Month) -> None:
    assert len(page(facts_of(month.store.backend, "qwen3-4b", MORNING))) < 5000


def test_of_a_model_that_nothing_is_known_of_that_is_said(tmp_path: Path) -> None:
    said = page(facts_of(open_store(str(tmp_path / "store")).backend, "new"))
    for sentence in ("Nothing was ever promoted.", "No run has ended in 31 days.", "No host follows this model."):
        assert sentence in said


def test_who_rolls_back_changes_what_the_page_says(
    month: Month, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's page of the model follows a person, too, and not only the next night."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    tracking = Tracking.embedded(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    night = next(night for night in month.of("qwen3-4b") if night.draft is not None)
    assert night.draft is not None
    made = month.store.get(night.draft.kind, night.draft.key)
    run = tracking.start_pipeline_run("registers", {})
    tracking.register(made.directory() / "draft", "qwen3-4b", run, {}, draft=night.draft)
    show_again(tmp_path, month.store, "qwen3-4b")
    said = tracking._server.client.get_registered_model("qwen3-4b").description
    assert said.startswith("# qwen3-4b\n\n## Champion\n\n**version 18**")


def test_an_artifacts_key_is_one_that_prefect_takes() -> None:
    assert artifact_key("Gemma-4_12B.it") == "model-gemma-4-12b-it"
