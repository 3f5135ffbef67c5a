"""What a run leaves that died without a word, and who ends it: the next run in its home, and no other run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepspec.record import Cost, RunRecord
from deepspec.registry import keys
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.store import open_store
from deepspec.store.lease import leased
from tasks.runtime.record import alive
from tasks.runtime.record.run_record import read_record, write_record
from tasks.runtime.records import StageRecord
from tasks.runtime.run import Run

DIES = """
import sys, time
from pathlib import Path
from deepspec.store import open_store
from tasks.runtime.record.alive import Alive
from tasks.runtime.records import StageRecord
from tasks.runtime.run import Run

home = Path(sys.argv[1])
run = Run(None, open_store(str(home / "store")), home, run_id="dies", name="tiny")
run.alive = Alive(run)
run.alive.flow_runs.append("f")
run.record(StageRecord("tokens", "ran", 3.0, "tokens", "k", "never built before"))
print("lives", flush=True)
time.sleep(600)
"""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], set[str]]]:
    """What was ended on Prefect's server: (flow runs, those that live meanwhile)."""
    found: list[tuple[list[str], set[str]]] = []

    def end(flow_runs: list[str], living: set[str]) -> bool:
        found.append((flow_runs, set(living)))
        return True

    monkeypatch.setattr(alive, "end_flow_runs", end)
    return found


def run_of(home: Path, run_id: str = "next", name: str = "tiny") -> Run[Any]:
    return Run(None, open_store(str(home / "store")), home, run_id=run_id, name=name)  # type: ignore[type-var]


def died(home: Path, run_id: str = "dead", **changes: Any) -> Path:
    """What a dead run has left: its note; `changes` of it."""
    run = run_of(home, run_id)
    run.alive = alive.Alive(run)
    run.alive.flow_runs.append(f"flow run of {run_id}")
    run.record(StageRecord("tokens", "ran"))
    run.alive._lock.release()
    note = home / "running" / f"{run_id}.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **changes}))
    return note


def test_a_killed_run_is_ended_by_the_next_one_and_a_live_one_is_not(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]]
) -> None:
    """A process of its own (3 s): the kernel takes the lock of one that is killed."""
    following = run_of(tmp_path)
    with subprocess.Popen([sys.executable, "-c", DIES, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"lives\n"
        following.alive = alive.Alive(following)
        alive.end_dead(following)
        assert read_record(tmp_path, "dies") is None
        assert not ended
        process.kill()
    unfinished = {"seconds": 70.0, "cpu_seconds": 60.0, "gpu_seconds": 0.0}
    following.store.backend.put("leases/paid/key/dies-1.json", json.dumps(unfinished).encode())
    alive.end_dead(following)
    record = read_record(tmp_path, "dies")
    assert record is not None
    assert (record.status, record.recipe, record.stages[0].name) == ("interrupted", "tiny", "tokens")
    assert record.error
    assert record.cost.cpu_seconds == 60.0
    assert [flow_runs for flow_runs, _ in ended] == [["f"]]
    assert not (tmp_path / "last-run.json").exists(), "it is not the last that ended"
    following.alive.end()
    assert not list((tmp_path / "running").iterdir())


def test_its_runs_in_mlflow_are_ended_as_its_record_says(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]]
) -> None:
    tracking = Tracking.embedded(tmp_path)
    runs = {name: tracking.start_pipeline_run(name, {}) for name in ("dead", "recorded")}
    for name, run_id in runs.items():
        tracking._create_run("train", {"mlflow.parentRunId": run_id, keys.STAGE: "train"})
        died(tmp_path, name, tracking_runs=[run_id], mlflow=tracking.shown_uri)
    cost = Cost(cpu_seconds=1.0)
    stages: tuple[Any, ...] = ()
    written = RunRecord(
        run_id="recorded",
        recipe="tiny",
        status="promoted",
        seconds=1,
        peak_rss_bytes=1,
        stages=stages,
        cost=cost,
        report=None,
    )
    write_record(written, tmp_path)
    following = run_of(tmp_path)
    following.tracking = tracking
    alive.end_dead(following)
    client = tracking._server.client
    found = {name: client.get_run(run_id) for name, run_id in runs.items()}
    assert {name: run.info.status for name, run in found.items()} == {"dead": "KILLED", "recorded": "FINISHED"}
    assert found["dead"].data.tags[keys.STATUS] == "interrupted"
    assert {run.info.status for run in client.search_runs([tracking._server.experiment_id])} == {"KILLED", "FINISHED"}
    assert read_record(tmp_path, "recorded") == written
    assert len(ended) == 2


def test_a_run_in_mlflow_of_which_it_never_heard_is_ended(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]]
) -> None:
    """MLflow and the run were killed while the one made the other's run."""
    tracking = Tracking.embedded(tmp_path)
    unheard = tracking.start_pipeline_run("tiny", {}, {keys.RUN_ID: "dead"})
    died(tmp_path, "dead", mlflow=tracking.shown_uri)
    following = run_of(tmp_path)
    following.tracking = tracking
    alive.end_dead(following)
    assert tracking._server.client.get_run(unheard).info.status == "KILLED"
    assert not (tmp_path / "running" / "dead.json").exists()


@pytest.mark.parametrize("where", ["its store", "another store"])
def test_a_run_of_another_machine_is_dead_only_if_its_lease_is_over(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]], where: str
) -> None:
    note = died(tmp_path, host="elsewhere")
    following = run_of(tmp_path)
    if where == "another store":
        following.store = open_store(str(tmp_path / "other"))
        alive.end_dead(following)
    else:
        with leased(following.store.backend, "runs/dead", keys=[]):
            alive.end_dead(following)
    assert note.exists()
    assert not ended
    alive.end_dead(run_of(tmp_path))
    assert not note.exists()
    assert len(ended) == 1


def test_what_another_server_knows_is_left_to_a_run_that_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = died(tmp_path, prefect="http://elsewhere:4200", tracking_runs=["r"], mlflow="http://elsewhere:5000")
    monkeypatch.setattr(alive, "end_flow_runs", lambda *_: False)  # it knows none of them
    here = run_of(tmp_path)
    here.tracking = Tracking.embedded(tmp_path)
    alive.end_dead(here)
    assert read_record(tmp_path, "dead") is not None
    left = json.loads(note.read_text())
    assert (left["flow_runs"], left["tracking_runs"]) == (["flow run of dead"], ["r"])
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere:4200")
    there = run_of(tmp_path)
    there.on_shared_server = True
    alive.end_dead(there)
    assert json.loads(note.read_text())["flow_runs"] == []


def test_a_server_that_answers_at_another_address_now_ends_what_it_knows(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]]
) -> None:
    tracking = Tracking.embedded(tmp_path)
    known = tracking.start_pipeline_run("dead", {})
    note = died(tmp_path, prefect="http://before:4200", tracking_runs=[known], mlflow="http://before:5000")
    following = run_of(tmp_path)
    following.tracking = tracking
    alive.end_dead(following)
    assert tracking._server.client.get_run(known).info.status == "KILLED"
    assert len(ended) == 1
    assert not note.exists()


def test_a_flow_run_that_a_live_run_has_gone_on_with_is_left_alone(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]]
) -> None:
    died(tmp_path)
    living = run_of(tmp_path, "living")
    living.alive = alive.Alive(living)
    living.alive.flow_runs.append("flow run of dead")
    living.alive.write()
    alive.end_dead(run_of(tmp_path))
    assert ended == [(["flow run of dead"], {"flow run of dead"})]
    living.alive.end()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"record": {}, "flow_runs": [], "host": "here"}'])
def test_a_note_that_cannot_be_read_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    died(tmp_path).write_text(content)
    alive.end_dead(run_of(tmp_path))
    assert read_record(tmp_path, "dead") is None


def test_a_record_that_cannot_be_written_fails_no_other_run(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]], caplog: pytest.LogCaptureFixture
) -> None:
    note = died(tmp_path)
    (tmp_path / "runs").write_text("a file, where a folder should be")
    alive.end_dead(run_of(tmp_path))
    assert note.exists()
    assert not ended
    assert len(caplog.records) == 1


@pytest.mark.parametrize("failed", [False, True])
def test_a_run_that_failed_is_looked_at_by_the_next_one(
    tmp_path: Path, ended: list[tuple[list[str], set[str]]], failed: bool
) -> None:
    """A server that did not answer may show a part of it as going on; its record stays as it was written."""
    run = run_of(tmp_path, "20261201-020000-aaaaaa")
    run.alive = alive.Alive(run)
    run.alive.flow_runs.append("f")
    with alive.ended_after(run, failed=lambda: failed):
        written = RunRecord(
            run_id=run.run_id,
            recipe="tiny",
            status="failed" if failed else "refused",
            seconds=1,
            peak_rss_bytes=1,
            stages=(),
            cost=Cost(cpu_seconds=1.0),
            report=None,
        )
        write_record(written, tmp_path)
    alive.end_dead(run_of(tmp_path))
    assert [flow_runs for flow_runs, _ in ended] == [["f"]] * failed
    assert read_record(tmp_path, run.run_id) == written
    assert not list((tmp_path / "running").iterdir())
