"""`run.json`: one recipe's results as they are, several side by side."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deepspec.demo.recipes import ALL
from deepspec.errors import ArtifactError, DataError, TransientError
from deepspec.recipe import load_recipe
from deepspec.store import Artifact, Ingredients, Parent, open_store
from deepspec.store.manifest import EarlierAttempt, Payer
from tasks.runtime.record.result import RecipeRun, Result, Status
from tasks.runtime.record.run_record import read_record, record_of, write_record
from tasks.runtime.record.run_report import _earlier
from tasks.runtime.record.tracked_end import ENDS
from tasks.runtime.records import StageRecord
from tasks.runtime.run import Run
from tests.fixtures import reports
from tests.fixtures.refused import refused
from tests.fixtures.store import ingredients, put

PARTS = ("evaluation", "calibration", "verdict", "model")
FIELDS = {
    "format",
    "run_id",
    "recipe",
    "status",
    "seconds",
    "peak_rss_bytes",
    "stages",
    *PARTS,
    "cost",
    "making_cost",
    "report",
    "target",
    "store",
    "resolved_recipe",
    "registered_models",
}


def result_of(home: Path, *names: str) -> Result:
    """A run of recipes that has not begun."""
    parts = [RecipeRun(load_recipe(name)) for name in names]
    run: Run[Any] = Run(parts[0].recipe, open_store(str(home / "store")), home)
    return Result(run, "demo", parts)


def finish(result: Result, part: RecipeRun, status: Status = "promoted") -> None:
    """Leave what the stages of a part leave."""
    name = part.recipe.name
    contents = {
        "evaluation": {"benchmarks": {}, "macro": {"tau": 2.0, "speedup": 1.5}},
        "calibration": {"applicable": False, "reason": "The draft has no confidence head."},
        "verdict": reports.verdict().to_json(),
        "registration": {"name": name, "version": "1", "uri": f"models:/{name}/1"},
        "draft": {"name": name},
    }
    outcome: dict[str, Artifact] = {
        what: put(result.run.store, ingredients(what, name=name), {f"{what}.json": json.dumps(content).encode()})
        for what, content in contents.items()
    }
    part.outcome, part.status = outcome, status
    result.run.record(StageRecord("train", "ran", 1.0, "train", outcome["draft"].key))


def test_one_recipe_is_told_as_the_contract_says(tmp_path: Path) -> None:
    result = result_of(tmp_path, "demo")
    finish(result, result.parts[0])
    record = record_of(result)
    content = record.to_json()
    assert set(content) == FIELDS
    assert content["evaluation"]["macro"]["tau"] == 2.0
    assert content["model"] == {"name": "demo", "version": "1", "uri": "models:/demo/1", "aliases": []}
    assert set(content["stages"][0]) == {"name", "status", "seconds", "kind", "key", "why"}
    assert content["resolved_recipe"] == load_recipe("demo").model_dump(mode="json")
    write_record(record, tmp_path)
    assert json.loads((tmp_path / "last-run.json").read_text()) == content
    assert read_record(tmp_path) == read_record(tmp_path, result.run.run_id) == record


def test_several_recipes_stand_side_by_side_in_one_document(tmp_path: Path) -> None:
    result = result_of(tmp_path, *ALL)
    for part in result.parts:
        result.run.algorithm = part.recipe.draft.algorithm
        finish(result, part)
    record = record_of(result).to_json()
    assert set(record) == FIELDS
    assert record["resolved_recipe"] == [load_recipe(name).model_dump(mode="json") for name in ALL]
    assert (record["recipe"], record["status"]) == ("demo", "promoted")
    for name in PARTS:
        assert [item["algorithm"] for item in record[name]] == ["eagle3", "dflash", "dspark"]
    assert [item["name"] for item in record["model"]] == list(ALL)
    assert [stage["algorithm"] for stage in record["stages"]] == ["eagle3", "dflash", "dspark"]
    assert isinstance(record["cost"], dict)


def test_a_record_is_left_even_where_the_store_does_not_answer_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_of(tmp_path, "demo")
    finish(result, result.parts[0])
    silent = TransientError("The object storage does not answer.", where="DEEPSPEC_STORE", remedy="Run again.")

    def unanswered(path: str) -> bytes:
        raise silent

    monkeypatch.setattr(result.run.store.backend, "list", unanswered)
    record = record_of(result).to_json()
    assert set(record) == {*FIELDS, "error", "failure"}
    assert (record["failure"]["error"], record["failure"]["stage"]) == ("TransientError", None)
    assert (record["status"], record["error"], record["model"]) == ("promoted", str(silent), None)
    assert result.error is silent, "the command ends with it"
    assert [stage["name"] for stage in record["stages"]] == ["train"]


def test_what_was_finished_before_an_error_is_told(tmp_path: Path) -> None:
    result = result_of(tmp_path, *ALL)
    finish(result, result.parts[0])
    result.error = RuntimeError("stopped")
    record = record_of(result).to_json()
    assert (record["status"], record["error"]) == ("failed", "stopped")
    assert [item["algorithm"] for item in record["evaluation"]] == ["eagle3"]
    assert [item["algorithm"] for item in record["model"]] == ["eagle3"]


@pytest.mark.parametrize(
    ("error", "status", "ends"),
    [
        (KeyboardInterrupt(), "interrupted", "KILLED"),
        (SystemExit(1), "interrupted", "KILLED"),
        (DataError("No rows.", where="data.source", remedy="Name another."), "failed", "FAILED"),
        (ZeroDivisionError(), "failed", "FAILED"),
    ],
)
def test_the_cause_of_every_early_end_is_recorded(tmp_path: Path, error: BaseException, status: str, ends: str) -> None:
    result = result_of(tmp_path, *ALL[:2])
    finish(result, result.parts[0])
    result.run.making = "states"
    result.end(error)
    record = record_of(result)
    assert record.status == status
    assert record.failure is not None
    assert (record.failure.error, record.failure.stage) == (type(error).__name__, "states")
    assert record.failure.message == record.error != ""
    assert datetime.fromisoformat(record.failure.at).tzinfo is not None
    assert [ENDS.get(part.status, "FINISHED") for part in result.parts] == ["FINISHED", ends]
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [
        (["no_change"], "no_change"),
        (["no_change", "promoted"], "promoted"),
        (["promoted", "refused", "no_change"], "refused"),
        (["promoted", "refused", "failed"], "failed"),
        (["promoted", "interrupted", "interrupted"], "interrupted"),
    ],
)
def test_the_whole_is_what_most_asks_for_attention(tmp_path: Path, statuses: list[Status], whole: str) -> None:
    result = result_of(tmp_path, *ALL[: len(statuses)])
    for part, status in zip(result.parts, statuses, strict=True):
        part.status = status
    assert result.status == whole


def test_an_older_record_is_read_and_a_newer_one_refused(tmp_path: Path) -> None:
    older = reports.record(evaluation=reports.evaluation().to_json(), verdict=reports.verdict().to_json()).to_json()
    assert "format" not in older  # as the first version wrote it: of format 1
    (tmp_path / "last-run.json").write_text(json.dumps(older))
    found = read_record(tmp_path)
    assert found is not None
    assert (found.format, found.resolved_recipe, found.target, found.seeds) == (1, None, None, None)
    assert found.to_json() == older
    (tmp_path / "last-run.json").write_text('{"format": 2, "run_id": "1"}')
    with refused(ArtifactError, "format 2", where="last-run.json"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run_id": "1", "recipe": "tiny", "status": "perhaps"}'])
def test_what_is_no_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "last-run.json").write_text(content)
    assert read_record(tmp_path) is None


def test_figures_are_those_of_the_last_run_that_has_the_same_report(tmp_path: Path) -> None:
    for run_id, report in (("1", "runs/1/report/report.html"), ("2", None), ("3", "runs/3/report/report.html")):
        write_record(reports.record(run_id=run_id, report=report), tmp_path)
        (tmp_path / "runs" / run_id / "report" / "eagle3").mkdir(parents=True)
    runs = tmp_path / "runs"
    assert _earlier(runs / "4" / "report", runs / "4", tmp_path) == runs / "3" / "report"
    assert _earlier(runs / "3" / "report" / "eagle3", runs / "3", tmp_path) == runs / "1" / "report" / "eagle3"
    assert _earlier(runs / "3" / "report" / "dspark", runs / "3", tmp_path) is None
    (runs / "3" / "run.json").write_text('{"format": 9}')  # a newer deepspec's
    assert _earlier(runs / "4" / "report", runs / "4", tmp_path) == runs / "1" / "report"


def test_a_run_with_prices_says_what_it_cost(tmp_path: Path) -> None:
    result = result_of(tmp_path, "demo")
    prices = ["run.price_per_gpu_hour=3.6", "run.price_per_cpu_hour=0.36", "run.currency=EUR"]
    result.parts[0].recipe = load_recipe("demo", prices)
    counts = {"memory_bytes": {"peak": 77}}
    made_of = ingredients("train")
    with result.run.store.write("train", made_of) as writing:
        (writing.directory / "draft").write_bytes(b"1")
        writing.counts, writing.gpu_seconds = counts, 1000.0
        writing.made_by = Payer(run=result.run.run_id, attempt="1")
    artifact = writing.artifact
    result.run.record(StageRecord("train", "ran", 1.0, "train", artifact.key))
    result.cpu_seconds = 2000.0
    cost = record_of(result).to_json()["cost"]
    assert (cost["gpu_seconds"], cost["training_peak_bytes"]) == (1000.0, 77)
    assert (cost["amount"], cost["currency"]) == (1.2, "EUR")
    assert "amount" not in record_of(result_of(tmp_path, "demo")).to_json()["cost"]


def test_what_making_a_draft_cost_is_told_by_the_run_that_ships_it(tmp_path: Path) -> None:
    """Whoever paid: this run found all of it ready. What an earlier draft cost is not this one's."""
    result = result_of(tmp_path, "demo")
    store = result.run.store

    def made(kind: str, seconds: float, earlier: float = 0.0, **parents: Artifact) -> Artifact:
        origin = {name: Parent(kind=item.kind, key=item.key, digest=item.digest) for name, item in parents.items()}
        of = Ingredients(kind, 1, {"seconds": seconds}, {name: item.digest for name, item in parents.items()})
        with store.write(kind, of, origin) as writing:
            (writing.directory / "data").write_bytes(b"1")
            writing.gpu_seconds = seconds
            if earlier:
                used = {"gpu_seconds": earlier, "cpu_seconds": 2 * earlier}
                writing.earlier = (EarlierAttempt(payer=Payer(run="killed", attempt="1"), cost=used),)
        return writing.artifact

    tokens = made("tokens", 1.0)
    champion = made("train", 500.0, tokens=tokens)
    draft = made("train", 10.0, 4.0, tokens=tokens, init=champion)
    result.parts[0].outcome = {"draft": draft, "promotion": made("promote", 100.0, draft=draft, champion=champion)}
    record = record_of(result)
    assert record.cost.gpu_seconds == 0.0
    assert record.making_cost is not None
    assert record.making_cost.gpu_seconds == 115.0
    assert record.making_cost.cpu_seconds == pytest.approx(8.0, abs=0.5)
    assert record.making_cost.bytes_written == 3
    assert record_of(result_of(tmp_path, "demo")).making_cost is None
