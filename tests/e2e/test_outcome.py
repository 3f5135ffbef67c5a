"""What a run leaves behind: its record, its report, the registry, the promotion log."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import NOISE, Home


def test_record_has_the_fields_of_the_contract(cold: Home) -> None:
    record = cold.record()
    assert record["recipe"] == "tiny"
    assert record["seconds"] > 0
    assert record["peak_rss_bytes"] > 50 << 20
    assert set(record["stages"][0]) == {"name", "status", "seconds", "kind", "key", "why", "cost"}
    for part in record["evaluation"]["benchmarks"].values():
        low, high = part["tau_ci95"]
        assert 1 <= low <= part["tau"] <= min(high, 4)
        assert len(part["conditional_acceptance"]) == len(part["prefix_acceptance"]) == 3
        assert min(part["speedup"], part["tokens_per_second"], part["plain_tokens_per_second"]) > 0
        assert part["rounds"] > 0
        assert part["prompts"] == 3
        assert part["target_entropy_nats"] > 0
    assert set(record["evaluation"]["benchmarks"]) == {"arithmetic", "code", "chat"}
    assert len(record["calibration"]["temperatures"]) == 3
    assert len(record["calibration"]["ece_before"]) == len(record["calibration"]["ece_after"]) == 3
    assert record["model"] == {"name": "tiny", "version": "1", "uri": "models:/tiny/1", "aliases": ["champion"]}
    assert record["cost"]["tokens"] > 0
    assert record["cost"]["bytes_written"] > 0
    written = json.loads((cold.path / "runs" / record["run_id"] / "run.json").read_text())
    assert written == record


def test_terminal_shows_stages_and_table_and_no_library_noise(cold: Home) -> None:
    shown = "".join((cold.path / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    whole = (cold.record()["report"], str(cold.path / "mlflow.db"))
    for expected in (
        *whole,
        "conversations",
        "promote",
        "arithmetic",
        "speedup",
        "entropy",
        "models:/tiny/1",
        "mlflow ui",
    ):
        assert expected in shown
    assert not [line for line in shown.splitlines() if any(word in line for word in NOISE)]


def test_its_tokens_are_shown_with_what_is_supervised(cold: Home) -> None:
    shown = cold.run("data", "preview", "tiny", "--rows", "2", "--split", "gate").out
    assert shown.count("tokens are supervised") == 2
    assert "<|im_start|>assistant\n[[" in shown
    document = json.loads(cold.run("data", "preview", "tiny", "--rows", "1", "--json").out)
    assert document["from"] == "tokens/" + next(s["key"] for s in cold.record()["stages"] if s["name"] == "tokens")
    assert document["rows"][0]["supervised_tokens"] >= 4


def test_prefect_shows_a_table_for_every_stage_and_how_it_ended(cold: Home) -> None:
    import sqlite3

    with sqlite3.connect(cold.path / "prefect" / "prefect.db") as database:
        found = dict(database.execute("select key, type from artifact").fetchall())
        ended = set(database.execute("select name, state_name, state_type from flow_run").fetchall())
    assert (cold.record()["run_id"], "Promoted", "COMPLETED") in ended
    for stage in cold.statuses():
        assert found[f"{stage.replace('_', '-')}-result"] == "table"


def test_report_is_one_page_without_network(cold: Home) -> None:
    page = Path(cold.record()["report"]).read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "arithmetic" in page
    assert "train.lr" in page or "lr:" in page


def test_registry_holds_the_draft_with_its_lineage(cold: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the table of names that a promoted run must have, read back through MLflow's own client."""
    uri = f"sqlite:///{cold.path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    from deepspec.registry import keys

    record = cold.record()
    stages = {stage["name"]: stage["key"] for stage in record["stages"]}
    client = MlflowClient(uri, uri)
    version = client.get_model_version_by_alias("tiny", keys.CHAMPION)
    for stage in ("conversations", "responses", "tokens", "states", "train", "calibrate", "evaluate"):
        key, digest = keys.lineage_in(version.tags)[stage]
        assert (key, len(digest)) == (stages[stage], 64)
    for benchmark in ("arithmetic", "code", "chat"):
        measured = record["evaluation"]["benchmarks"][benchmark]["tau"]
        assert float(version.tags[f"deepspec.tau.{benchmark}"]) == pytest.approx(measured, abs=1e-3)
    assert version.tags["deepspec.recipe"] == "tiny"
    assert keys.undocumented(keys.Entity.VERSION, keys.Sort.TAG, version.tags) == []

    parent = client.get_run(client.search_runs(["1"], "tags.`deepspec.run_id` != ''")[0].info.run_id)
    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    children = {run.data.tags["deepspec.stage"]: run for run in runs}
    assert set(children) == {"train", "evaluate"}
    assert parent.data.params["train.lr"] == "0.002"
    assert parent.data.metrics["cost/training_peak_bytes"] == record["cost"]["training_peak_bytes"] > 0
    assert keys.undocumented(keys.Entity.RUN, keys.Sort.METRIC, parent.data.metrics) == []
    assert {item.dataset.name for item in children["train"].inputs.dataset_inputs} >= {"states", "tokens", "target"}
    assert len(client.get_metric_history(children["train"].info.run_id, "loss")) > 1
    assert "arithmetic/tau" in children["evaluate"].data.metrics
    reported = [item.path for item in client.list_artifacts(parent.info.run_id, "report")]
    assert "report/report.html" in reported

    folder = Path(download_artifacts(record["model"]["uri"]))
    from deepspec.drafts import algorithm_of
    from deepspec.targets.directory import read_spec

    draft = algorithm_of(folder).load(folder, read_spec(cold.path / "tiny" / "target"))
    assert all(bool(tensor.isfinite().all()) for tensor in draft.state_dict().values())


def test_gate_refuses_accepts_and_rolls_back(warm: Home) -> None:
    first = warm.record()
    # Refused: nothing can be 50 tokens per round better. Exit code 3, the champion stays.
    warm.run("run", "tiny", "--set", "train.seed=1", "--set", "gates.min_tau_gain=50", code=3)
    refused = warm.record()
    assert refused["status"] == "refused"
    assert refused["verdict"]["accepted"] is False
    assert refused["model"]["aliases"] == ["challenger"]
    versions = json.loads(warm.run("models", "ls", "tiny", "--json").out)
    assert {row["version"]: row["aliases"] for row in versions} == {"2": ["challenger"], "1": ["champion"]}

    # A challenger that is its champion's equal is a tie, and a tie refuses.
    warm.run("run", "tiny", "--set", "name=other")
    warm.run("promote", "models:/tiny/2", code=3)

    # Accepted: with no champion there is nothing to beat; rolling back needs somebody to go back to.
    assert warm.record()["status"] == "promoted"
    assert warm.record()["model"]["name"] == "other"
    warm.run("rollback", "tiny", code=2)
    history = json.loads(warm.run("models", "history", "tiny", "--json").out)
    assert [entry["kind"] for entry in history] == ["promote"]
    assert history[0]["champion"]["version"] == first["model"]["version"]


def test_thresholds_and_load_are_measured_where_the_recipe_asks_for_them(warm: Home) -> None:
    load = "evaluate.load={concurrency: [1, 2], num_repeats: 1, max_new_tokens: 8}"
    asked = ("--set", load, "--set", "evaluate.thresholds=[0.0, 0.5]", "--set", "evaluate.num_sweep_prompts=2")
    warm.run("run", "tiny", *asked, code=None, draws=True)
    assert warm.statuses()["train"] == "hit"
    evaluation = warm.record()["evaluation"]
    assert [point["threshold"] for point in evaluation["threshold_sweep"]["points"]] == [0.0, 0.5]
    assert [point["concurrency"] for point in evaluation["load"]["points"]] == [1, 2]
    for point in evaluation["load"]["points"]:
        assert min(point[mode]["tokens_per_second"] for mode in ("plain", "fixed", "scheduled")) > 0
    plots = Path(warm.record()["report"]).parent / "plots"
    drawn = {"threshold-rates", "threshold-lengths", "load-throughput", "load-trade-off"}
    assert drawn <= {path.stem for path in plots.glob("*.png")}


def test_lineage_leads_from_the_version_to_the_data(cold: Home) -> None:
    key = next(stage["key"] for stage in cold.record()["stages"] if stage["name"] == "register")
    found = json.loads(cold.run("artifacts", "lineage", f"register/{key}", "--json").out)
    kinds = [item["kind"] for item in found]
    assert {"register", "train", "states", "tokens", "responses", "conversations"} <= set(kinds)


@pytest.mark.full
def test_collector_keeps_everything_a_version_reaches(warm: Home) -> None:
    before = warm.record()
    removed = json.loads(warm.run("artifacts", "gc", "--grace-seconds", "0", "--json").out)
    assert not {item["name"].split("/")[0] for item in removed} & {"train", "states", "tokens", "conversations"}
    warm.run("run", "tiny")
    assert warm.record()["evaluation"] == before["evaluation"]


def test_verify_finds_a_flipped_bit(warm: Home) -> None:
    assert json.loads(warm.run("artifacts", "verify", "--json").out)["damaged"] == {}
    path = warm.artifact_file("responses", "train.parquet")
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    damaged = json.loads(warm.run("artifacts", "verify", "--json", code=1).out)["damaged"]
    (name,) = damaged
    assert name.startswith("responses/")
    warm.run("run", "tiny")
    assert warm.ran() == ["responses"]


@pytest.mark.full  # evaluates twice
def test_an_equal_draft_is_no_promotion_and_tags_follow_the_evaluation(warm: Home, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from deepspec.registry import keys

    rows = (warm.path / "tiny" / "corpus" / "conversations.jsonl").read_text().splitlines()
    source = tmp_path / "others.jsonl"
    source.write_text("\n".join(reversed(rows)) + "\n")
    warm.run("run", "tiny", "--set", f"data.source={source}")
    # Only where rows lie has changed: what is said in them has not, and nothing behind the conversations runs.
    assert warm.ran() == ["conversations"]
    assert warm.record()["status"] == "no_change"
    warm.run("run", "tiny", "--set", "evaluate.max_new_tokens=16")
    record = warm.record()
    assert record["status"] == "no_change"
    assert record["model"]["version"] == "1"
    assert record["model"]["aliases"] == ["champion"]
    tags = MlflowClient(f"sqlite:///{warm.path / 'mlflow.db'}").get_model_version("tiny", "1").tags
    evaluated = next(stage for stage in record["stages"] if stage["name"] == "evaluate")
    assert keys.lineage_in(tags)["evaluate"][0] == evaluated["key"]
    tau = record["evaluation"]["benchmarks"]["code"]["tau"]
    assert float(tags["deepspec.tau.code"]) == pytest.approx(tau, abs=1e-3)


def test_a_champion_that_the_gates_would_refuse_now_stays_and_that_is_said(warm: Home) -> None:
    said = warm.run("run", "tiny", "--set", "gates.min_tau=50").out
    record = warm.record()
    assert record["status"] == "no_change"
    assert record["verdict"]["accepted"] is False
    assert record["model"]["aliases"] == ["champion"]
    assert record["notes"][0] in said


def test_what_is_said_of_a_version_is_what_this_mlflow_has(
    warm: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another, empty MLflow with the same store: nothing calls a draft registered that is not.

    Over ten seconds: twelve commands, each of which opens MLflow's database.
    """
    monkeypatch.chdir(tmp_path)  # where MLflow puts files that it is told no place for
    other = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'other.db'}"}
    log = warm.run("models", "history", "tiny", "--json").out
    for command in (
        "run tiny",
        "models ls tiny",
        "export models:/tiny/1 --out out",
        "export models:/tiny@champion --out out",
        "artifacts lineage models:/tiny/1",
        "promote models:/tiny/1",
        "rollback models:/tiny/1",
    ):
        done = warm.run(*command.split(), environment=other, code=1)
        assert str(tmp_path / "other.db") in done.err, command
        assert "models reconcile tiny" in done.err
        assert "models:/tiny/1" not in done.out
    assert warm.record()["status"] == "failed"
    assert warm.record()["model"] is None
    said = warm.run("models", "history", "tiny", "--json", environment=other)
    assert said.out == log  # the store's own word, and a note that this MLflow differs
    assert "models reconcile tiny" in said.err
    warm.run("models", "reconcile", "tiny", environment=other)
    warm.run("run", "tiny", environment=other)
    assert warm.record()["model"]["aliases"] == ["champion"]
    assert warm.run("models", "ls", "tiny", environment=other).err == ""


@pytest.mark.full  # twenty commands
def test_a_model_has_one_way_to_be_named(warm: Home, tmp_path: Path) -> None:
    key = next(stage["key"] for stage in warm.record()["stages"] if stage["name"] == "train")
    names = ("models:/tiny/1", "models:/tiny@champion", f"train/{key[:12]}")
    log = warm.run("models", "history", "tiny", "--json").out
    for place, name in enumerate(names):
        warm.run("promote", name, "--reason", "again")  # of the champion
        warm.run("export", name, "--out", str(tmp_path / str(place)))
        lineage = json.loads(warm.run("artifacts", "lineage", name, "--json").out)
        assert (lineage[0]["kind"], lineage[0]["key"]) == ("train", key)
    warm.run("export", str(tmp_path / "0"), "--out", str(tmp_path / "directory"))
    assert warm.run("models", "history", "tiny", "--json").out == log
    for name in ("models:/tiny", "models:/tiny/9", "models:/none@champion", "train/none", str(tmp_path / "0")):
        warm.run("promote", name, code=2)
    for name in ("models:/tiny/9", "models:/none/1"):
        warm.run("rollback", name, code=2)


def test_changed_inputs_of_the_demo_are_restored_with_a_warning(warm: Home) -> None:
    file = warm.path / "tiny" / "corpus" / "conversations.jsonl"
    before = file.read_bytes()
    file.write_bytes(before[:-40])
    warm.run("run", "tiny", "--dry-run")
    assert file.read_bytes() == before[:-40]
    finished = warm.run("run", "tiny")
    assert str(file) in finished.err
    assert "restored" in finished.err
    assert file.read_bytes() == before


@pytest.mark.full
def test_a_warm_start_is_keyed_by_content_not_by_name(warm: Home) -> None:
    steps = ("--set", "train.num_steps=2")  # with the champion's own there would be nothing to learn
    warm.run("run", "tiny", "--set", "train.init_from=champion", *steps, "--set", "gates.min_tau_gain=50", code=3)
    started = next(stage for stage in warm.record()["stages"] if stage["name"] == "train")
    assert started["status"] == "ran"
    assert "parent init added" in started["why"]
    version = warm.record()["model"]["version"]
    manifest = json.loads(warm.run("artifacts", "show", f"train/{started['key']}").out)
    for name in ("models:/tiny/1", f"train/{manifest['parents']['init']['key'][:16]}"):
        start = ("--set", f"train.init_from={name}", *steps)
        warm.run("run", "tiny", *start, "--set", "gates.min_tau_gain=50", code=3)
        assert warm.statuses()["train"] == "hit"
    assert version == "2"
    for name, words in (("models:/tiny/9", "models:/tiny/9"), ("nowhere", "'nowhere' is no directory")):
        finished = warm.run("run", "tiny", "--set", f"train.init_from={name}", code=2)
        assert words in finished.err
