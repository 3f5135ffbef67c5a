"""`make stack` as a user has it: real servers on free ports, their passwords, their data, and nothing left behind.

Then the flow on it, as in production: by a deployment and the API, on servers that fail and recover. At the end of the
file the stack is lost, and restored from its backup. Servers and flow runs take minutes: so the tests share them, in
the order in which they stand here.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import psycopg2
import pytest

from infra.stack import lifecycle
from infra.stack.postgres import POSTGRES
from infra.stack.s3 import S3_SERVICES
from infra.stack.services import SERVICES
from infra.stack.settings import PORTS, ROOT, Settings
from infra.stack.variables import write_variables
from tests.fixtures.killed_nights import Trouble, night
from tests.fixtures.nights import webhook
from tests.fixtures.stack import FINAL, STAGES, Deployed, Running, processes, running, wait_for

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

NAMES = [service.name for service in SERVICES]

CANARY = "canary-in-a-coal-mine"
"""A password that is wrong, or unnecessary; it must not turn up anywhere."""

LONGER = ("train.num_steps=100", "train.lr=1e-3", "run.checkpoint_every_steps=10")
"""A training of its own, long enough to be met in the middle."""

SAMPLE = (3, 9, 11, 14)
"""Of the campaign's nights (`make campaign PART=nights`): in one of them or another each server is killed."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One that is up; its worker's home is beside it. The tests of restoring, which come last, lose it."""
    folder = tmp_path_factory.mktemp("stack")
    found = Running(folder / "state")
    found.environment["DEEPSPEC_HOME"] = str(folder / "home")
    try:
        found.up()
        yield found
    finally:
        found.call("down")


def test_all_is_up(stack: Running) -> None:
    states = stack.states()
    assert list(states) == NAMES
    assert {state["state"] for state in states.values()} == {"up"}
    assert all(state["pid"] and state["memory_bytes"] > 1_000_000 for state in states.values())
    assert {name for name in NAMES if states[name]["address"]} == set(PORTS)
    table = stack.call("status")
    assert table.returncode == 0
    assert "radosgw" in table.stdout


def test_mlflow_wants_the_password(stack: Running) -> None:
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert stack.get(path) == 401
    assert stack.get(path, credentials="admin:password1234") == 401
    assert stack.get(path, credentials=stack.admin)["experiments"]


def test_prefect_wants_the_password_and_knows_the_deployment(stack: Running) -> None:
    path = "/deployments/name/retrain/demo"
    assert stack.get(path, server="PREFECT_API_URL") == 401
    credentials = stack.variables["PREFECT_API_AUTH_STRING"]
    deployment = stack.get(path, server="PREFECT_API_URL", credentials=credentials)
    assert deployment["work_pool_name"] == "deepspec"
    assert deployment["parameters"] == {"recipe": "demo", "overrides": [], "timezone": "UTC"}
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]


def test_prefects_page_asks_the_server_it_comes_from(stack: Running) -> None:
    page = stack.variables["PREFECT_API_URL"].removesuffix("/api")
    assert httpx.get(f"{page}/ui-settings", timeout=20).json()["api_url"] == "/api"


def test_postgres_is_what_they_keep_things_in(stack: Running) -> None:
    assert {"experiments", "runs"} <= stack.tables("mlflow", "mlflow")
    assert "users" in stack.tables("mlflow_auth", "mlflow")
    assert {"flow_run", "deployment"} <= stack.tables("prefect", "prefect")
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        stack.tables("mlflow", "prefect")


def test_passwords_are_private(stack: Running) -> None:
    kept = json.loads((stack.folder / "secrets.json").read_text()).values()
    lines = [" ".join(process.cmdline()) for process in processes(stack)]
    assert not [line for line in lines for secret in kept if secret in line]
    assert stack.folder.stat().st_mode & 0o077 == 0
    private = [stack.folder / "env", stack.folder / "secrets.json", stack.folder / "mlflow" / "basic_auth.ini"]
    assert [path.stat().st_mode & 0o777 for path in private] == [0o600] * 3


def test_nothing_listens_on_other_addresses(stack: Running) -> None:
    listening = {
        connection.laddr.ip
        for process in processes(stack)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_killed_service_is_told_and_alone_started_again(stack: Running) -> None:
    before = {name: state["pid"] for name, state in stack.states().items()}
    server = psutil.Process(before["mlflow"])
    children = server.children(recursive=True)
    os.kill(server.pid, signal.SIGKILL)
    wait_for("the server to be gone", lambda: not running([server]))  # on a busy machine the kernel takes its time
    told = stack.call("status", "--json")
    assert told.returncode == 1
    assert [s["service"] for s in json.loads(told.stdout) if s["state"] != "up"] == ["mlflow"]
    assert stack.up().count("was up") == len(NAMES) - 1
    after = {name: state["pid"] for name, state in stack.states().items()}
    assert [name for name in NAMES if after[name] != before[name]] == ["mlflow"]
    assert stack.get("/api/2.0/mlflow/experiments/get?experiment_id=0", credentials=stack.admin)["experiment"]
    assert not running(children), "what the killed one had started is still there"


def test_a_hanging_service_is_told(stack: Running) -> None:
    gateway = stack.states()["radosgw"]["pid"]
    os.kill(gateway, signal.SIGSTOP)
    try:
        state = stack.states()["radosgw"]
    finally:
        os.kill(gateway, signal.SIGCONT)
    assert state["state"] == "failing"
    assert state["reason"]


def schedules(stack: Running) -> dict[str, Any]:
    """Schedules of the deployment, by their cron."""
    path, credentials = "/deployments/name/retrain/demo", stack.variables["PREFECT_API_AUTH_STRING"]
    found = stack.get(path, server="PREFECT_API_URL", credentials=credentials)
    return {
        schedule["schedule"]["cron"]: (f"/deployments/{found['id']}/schedules/{schedule['id']}", schedule["active"])
        for schedule in found["schedules"]
    }


def switch(stack: Running, schedule: str, *, active: bool) -> None:
    user, _, password = stack.variables["PREFECT_API_AUTH_STRING"].partition(":")
    url = stack.variables["PREFECT_API_URL"] + schedule
    httpx.patch(url, json={"active": active}, auth=(user, password), timeout=20).raise_for_status()


def test_data_stay_and_nothing_else(stack: Running) -> None:
    """Objects, runs and users are there after the stack was down, also on other ports; no process is, while it is.

    A schedule is as a person has set it, too, although all is deployed again.
    """
    ((nightly, _),) = schedules(stack).values()
    switch(stack, nightly, active=True)
    added = {"schedule": {"cron": "0 0 29 2 *", "timezone": "UTC"}, "active": True}  # without a slug, as the page does
    credentials = stack.variables["PREFECT_API_AUTH_STRING"]
    stack.get(nightly.rpartition("/")[0], body=[added], server="PREFECT_API_URL", credentials=credentials)
    store = stack.s3()
    store.put_object(Bucket="deepspec", Key="store/kept", Body=b"kept")
    artifact = f"{stack.variables['MLFLOW_TRACKING_URI']}/api/2.0/mlflow-artifacts/artifacts/0/kept.txt"
    user, password = stack.admin.split(":")
    httpx.put(artifact, content=b"through the server", auth=(user, password), timeout=20).raise_for_status()
    keys = {item["Key"] for item in store.list_objects_v2(Bucket="deepspec")["Contents"]}
    assert keys == {"store/kept", "mlflow/0/kept.txt"}

    all_of_it = processes(stack)
    assert len(all_of_it) > len(NAMES)
    assert stack.call("down").returncode == 0
    assert not running(all_of_it)
    told = stack.call("status", "--json")
    assert told.returncode == 1
    assert {state["state"] for state in json.loads(told.stdout)} == {"down"}
    assert stack.call("down").returncode == 0

    stack.up()
    assert stack.admin == f"{user}:{password}"
    assert stack.s3().get_object(Bucket="deepspec", Key="store/kept")["Body"].read() == b"kept"
    kept = stack.get("/api/2.0/mlflow-artifacts/artifacts?path=0", credentials=stack.admin)
    assert [file["path"] for file in kept["files"]] == ["kept.txt"]
    stack.s3().delete_object(Bucket="deepspec", Key="store/kept")  # no deepspec wrote it
    assert {cron: active for cron, (_, active) in schedules(stack).items()} == {"0 2 * * *": True, "0 0 29 2 *": True}
    for schedule, _ in schedules(stack).values():
        switch(stack, schedule, active=False)


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = Running(tmp_path / "state").call("up", DEEPSPEC_STACK_MLFLOW_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.startswith("stack: DEEPSPEC_STACK_MLFLOW_PORT: ")
    assert str(port) in done.stderr
    assert f"(process {os.getpid()} of" in done.stderr
    assert not (tmp_path / "state" / "postgres").exists(), "nothing was started"


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    stack = Running(tmp_path / "state")
    for variable, value in (("DEEPSPEC_STACK_S3", "floppy"), ("DEEPSPEC_STACK_MLFLOW_PORT", "70000")):
        done = stack.call("up", **{variable: value})
        assert done.returncode == 2
        assert done.stderr.startswith(f"stack: {variable}: '{value}' is not")
        assert "Allowed:" in done.stderr


def test_an_interrupted_up_leaves_nothing(tmp_path: Path) -> None:
    stack = Running(tmp_path / "state")
    command = [sys.executable, "-m", "infra.stack", "up"]
    with subprocess.Popen(command, cwd=ROOT, env=stack.environment, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr is not None
        for line in starting.stderr:
            if line.startswith("ceph-mon"):
                break
        time.sleep(0.3)
        starting.send_signal(signal.SIGINT)
        rest = starting.stderr.read()
        assert starting.wait(timeout=60) == 130, rest
    assert "interrupted" in rest
    assert not [process for process in psutil.process_iter() if str(stack.folder) in _environment(process)]
    assert {state["state"] for state in stack.states().values()} == {"down"}


def _environment(process: psutil.Process) -> str:
    try:
        return " ".join(process.environ().values())
    except psutil.Error:
        return ""


# --- the flow, by a deployment and the API ---------------------------------------------------------------------------


NIGHTS = """
nights:
  - {recipe: demo, cron: 0 2 * * *, active: false}
  - {recipe: tiny, model: other, every_hours: 24, active: false}
"""


@pytest.fixture(scope="module")
def deployed(stack: Running) -> Deployed:
    """With a second night: each has one run at a time."""
    found = Deployed(stack, stack.folder.parent / "home")
    file = stack.folder.parent / "nights.yaml"
    file.write_text(NIGHTS)
    changes = found.json("nights", "apply", str(file))
    assert [(change["model"], change["done"]) for change in changes] == [("demo", "unchanged"), ("other", "created")]
    return found


def drafts(deployed: Deployed, store: str) -> dict[str, dict[str, Any]]:
    """Key -> manifest of every draft in a store."""
    s3 = deployed.stack.s3()
    found = [key for key in deployed.objects(f"{store}/train/") if "/manifest." in key]
    return {key.split("/")[2]: json.loads(s3.get_object(Bucket="deepspec", Key=key)["Body"].read()) for key in found}


class TwoFlowRuns(NamedTuple):
    """Two flow runs of one recipe at once, from nothing.

    Attributes:
        flow_runs: their ids.
        concurrency_slots: (taken, limit), meanwhile.
        stages: stage -> the states of both task runs, sorted.
        first: the flow run that promoted.
    """

    flow_runs: list[str]
    concurrency_slots: list[tuple[int, int]]
    stages: dict[str, tuple[str, ...]]
    first: str


@pytest.fixture(scope="module")
def pair(deployed: Deployed) -> TwoFlowRuns:
    flow_runs = [deployed.flow_run(*LONGER, night=night) for night in ("demo", "other")]
    concurrency_slots = []

    def ended() -> Any:
        limits = deployed.api("/v2/concurrency_limits/filter", {})  # the first flow run makes it
        concurrency_slots.extend((x["active_slots"], x["limit"]) for x in limits if x["name"] == "deepspec-cpu")
        states = [deployed.api(f"/flow_runs/{flow_run}")["state"] for flow_run in flow_runs]
        return all(state["type"] in FINAL for state in states) and [state["name"] for state in states]

    names = wait_for("both flow runs", ended, pause=0.5)
    assert set(names) <= {"Promoted", "NoChange"}, [deployed.log(flow_run) for flow_run in flow_runs]
    states = [deployed.task_runs(flow_run) for flow_run in flow_runs]
    stages = {stage: tuple(sorted(state.get(stage, "missing") for state in states)) for stage in STAGES}
    first = flow_runs[states[1].get("promote") == "Completed"]
    return TwoFlowRuns(flow_runs, concurrency_slots, stages, first)


@pytest.fixture(scope="module")
def first(pair: TwoFlowRuns) -> str:
    """The flow run that promoted."""
    return pair.first


def test_a_flow_run_is_called_by_model_day_and_outcome(deployed: Deployed, pair: TwoFlowRuns) -> None:
    names = [deployed.api(f"/flow_runs/{flow_run}")["name"] for flow_run in pair.flow_runs]
    day = datetime.now(UTC).date()
    due = [f"tiny · {day - timedelta(days=late)} · " for late in (0, 1)]  # midnight may have passed
    assert all(name.startswith(tuple(due)) for name in names)
    assert {name.rpartition(" · ")[2] for name in names} <= {"promoted v1", "no change"}
    assert deployed.api(f"/flow_runs/{pair.first}")["name"].endswith(" · promoted v1")


def test_of_two_at_once_one_makes_each_thing_and_the_other_reuses_it(deployed: Deployed, pair: TwoFlowRuns) -> None:
    assert pair.stages == dict.fromkeys(STAGES, ("Cached", "Completed"))
    assert {key.split("/")[1] for key in deployed.objects("store/") if "/manifest." in key} >= set(STAGES)
    assert len(drafts(deployed, "store")) == 1
    assert len(deployed.json("models", "history", "tiny")) == 1
    assert any("+ promote" in line for line in deployed.log(pair.first))
    assert not deployed.tracked("attributes.status = 'RUNNING'"), "the other has begun there in vain"


def test_concurrency_slots_are_never_exceeded(pair: TwoFlowRuns) -> None:
    assert {limit for _, limit in pair.concurrency_slots} == {1}
    assert {taken for taken, _ in pair.concurrency_slots} == {0, 1}


def test_what_was_made_is_shown_in_prefect(deployed: Deployed, pair: TwoFlowRuns) -> None:
    """Each stage's table is on the page of the flow run that made it: of two at once that may be either."""
    body = {"artifacts": {"flow_run_id": {"any_": pair.flow_runs}}, "limit": 200}
    found = deployed.api("/artifacts/filter", body)
    shown = {artifact["key"]: artifact for artifact in found if artifact["key"] != "retrain-summary"}
    shown |= {artifact["key"]: artifact for artifact in found if artifact["flow_run_id"] == pair.first}
    assert {f"{stage}-result" for stage in STAGES} <= shown.keys()
    assert {shown[f"{stage}-result"]["type"] for stage in STAGES} == {"table"}
    assert shown["retrain-summary"]["type"] == "markdown"
    assert "tiny version 1: promoted" in shown["retrain-summary"]["data"]
    assert "| arithmetic |" in shown["retrain-summary"]["data"]


def test_the_model_is_in_mlflow_and_its_files_in_s3(deployed: Deployed, first: str) -> None:
    path = "/api/2.0/mlflow/registered-models/alias?name=tiny&alias=champion"
    version = deployed.stack.get(path, credentials=deployed.stack.admin)["model_version"]
    assert version["version"] == "1"
    model = version["source"].removeprefix("models:/")
    files = {key.rpartition("/")[2] for key in deployed.objects("mlflow/") if f"/{model}/" in key}
    assert {"config.json", "model.safetensors"} <= files
    listed = deployed.json("models", "ls")
    assert [(model["name"], model["version"], model["aliases"]) for model in listed] == [("tiny", "1", ["champion"])]


def test_another_flow_run_is_all_cached(deployed: Deployed, first: str) -> None:
    """And nothing in MLflow: there is no news."""
    begun = len(deployed.tracked("tags.`deepspec.run_id` != ''"))
    again = deployed.flow_run(*LONGER)
    assert deployed.ended(again) == "NoChange", deployed.log(again)
    assert deployed.task_runs(again) == dict.fromkeys(STAGES, "Cached")
    assert len(deployed.tracked("tags.`deepspec.run_id` != ''")) == begun


def test_a_night_whose_budget_is_used_up_says_how_far_it_came(deployed: Deployed, first: str) -> None:
    """A completed flow run, as its task run is; nothing is registered."""
    night = deployed.flow_run("train.num_steps=100000", "train.validate_every_steps=null", "budget.max_hours=5e-4")
    assert deployed.ended(night) == "BudgetExhausted", deployed.log(night)
    assert "saved at step" in deployed.api(f"/flow_runs/{night}")["state"]["message"]
    assert deployed.task_runs(night)["train"] == "BudgetExhausted"
    assert "register" not in deployed.task_runs(night)


# --- approval by a person --------------------------------------------------------------------------------------------

REVIEWED = (*LONGER, "registry.model=reviewed", "gates.approval=manual")


def suspended(deployed: Deployed, flow_run: str) -> dict[str, Any]:
    """Wait until a flow run is suspended; its state."""

    def state() -> Any:
        found = deployed.api(f"/flow_runs/{flow_run}")["state"]
        assert found["type"] not in FINAL, deployed.log(flow_run)
        return found if found["name"] == "Suspended" else None

    return dict(wait_for(f"flow run {flow_run} to be suspended", state, pause=0.5))


def test_a_person_approves_on_prefects_page(deployed: Deployed, first: str) -> None:
    """The first night is superseded by the second, which waits with its verdict; a reason is needed to resume it."""
    older = deployed.flow_run(*REVIEWED)
    suspended(deployed, older)
    newer = deployed.flow_run(*REVIEWED, "gates.approval_hours=48")
    state = suspended(deployed, newer)
    assert deployed.ended(older) == "Superseded"
    waits = datetime.fromisoformat(state["state_details"]["pause_timeout"]) - datetime.fromisoformat(state["timestamp"])
    assert waits.total_seconds() == pytest.approx(48 * 3600, abs=60)
    assert {"awaiting:reviewed", "model:reviewed", "verdict:accepted"} <= {*deployed.api(f"/flow_runs/{newer}")["tags"]}
    form = deployed.api(f"/flow_runs/{newer}/input/suspended-approval-0-description")
    assert "reviewed version 1: awaiting approval" in form
    assert "## Accepted" in form
    assert "| arithmetic |" in form
    assert deployed.deepspec("models", "history", "reviewed")[0] == 2  # nothing was ever promoted
    assert deployed.api(f"/flow_runs/{newer}/resume", {"run_input": {}})["status"] == "REJECT"
    given = {"reason": "the canary was fine", "name": "Ada"}
    assert deployed.api(f"/flow_runs/{newer}/resume", {"run_input": given})["status"] == "ACCEPT"
    assert deployed.ended(newer) == "Promoted", deployed.log(newer)
    assert deployed.api(f"/flow_runs/{newer}")["name"].endswith(" · promoted v1")
    tracked = deployed.tracked("tags.`deepspec.status` = 'awaiting_approval' and attributes.run_name LIKE 'reviewed%'")
    assert {run["info"]["run_name"].rpartition(" · ")[2] for run in tracked} == {"promoted v1"}
    tags = {*deployed.api(f"/flow_runs/{newer}")["tags"]}
    assert "status:promoted" in tags
    assert not any(tag.startswith("awaiting:") for tag in tags)
    (entry,) = deployed.json("models", "history", "reviewed")
    assert (entry["reason"], entry["actor"]["claimed"]) == ("the canary was fine", "Ada")
    assert entry["actor"]["known_by"] == "MLflow user"


# --- people are told, runs that never start are ended ----------------------------------------------------------------

TOLD = (
    NIGHTS
    + """
  - recipe: tiny
    model: told
    every_hours: 24
    missed_after_hours: 0.001
    notification: {webhook_from: NIGHTS_TEST_WEBHOOK}
pending_minutes: 0.2
"""
)
"""A night of which people are told; missed after seconds."""

ENDS = {
    "promoted": ("COMPLETED", "Promoted"),
    "refused": ("COMPLETED", "Refused"),
    "budget_exhausted": ("COMPLETED", "BudgetExhausted"),
    "failed": ("FAILED", "Failed"),
    "awaiting_approval": ("PAUSED", "Suspended"),
}
"""Occasion -> type and name of the state of a flow run that is its reason."""


NEVER = "2099-01-01T00:00:00Z"


def set_state(
    deployed: Deployed, flow_run: str, kind: str, name: str = "", message: str = "", until: str = NEVER
) -> dict[str, Any]:
    """Set the state of a flow run as its process does; what is scheduled or paused is so `until` then."""
    details = {"pause_reschedule": True, "pause_timeout": until, "pause_key": "k"} if kind == "PAUSED" else {}
    details |= {"scheduled_time": until} if kind == "SCHEDULED" else {}
    state = {"type": kind, "name": name or kind.title(), "message": message, "state_details": details}
    return dict(deployed.api(f"/flow_runs/{flow_run}/set_state", {"state": state}))


def test_people_are_told_and_a_run_that_never_starts_is_ended(deployed: Deployed, tmp_path: Path) -> None:
    """Every automation is seen firing; no worker takes these runs, whose states are set as a run's process sets them.

    Among them is an approval that nobody gives: its run fails, and people are told.

    A minute: Prefect waits ten seconds for what does not happen, and looks every five.
    """
    file = tmp_path / "nights.yaml"
    with webhook() as (address, told):
        file.write_text(TOLD)
        words = ("nights", "apply", str(file))
        changes = deployed.json(*words, NIGHTS_TEST_WEBHOOK=address)
        assert [change["done"] for change in changes] == ["changed", "changed", "created"]
        changes = deployed.json(*words, NIGHTS_TEST_WEBHOOK=address)
        assert [change["done"] for change in changes] == ["unchanged"] * 3
        night = deployed.api("/deployments/name/retrain/told")["id"]

        def flow_run(state: dict[str, Any]) -> str:
            return str(deployed.api(f"/deployments/{night}/create_flow_run", {"state": state})["id"])

        for occasion, (kind, name) in ENDS.items():
            run = flow_run({"type": "PENDING"})
            steps = (("RUNNING",), (kind, name, f'told of "{occasion}"'))
            assert [set_state(deployed, run, *step)["status"] for step in steps] == ["ACCEPT"] * 2
        for key, percent in (("run-progress", 40.0), ("train-progress", 90.0)):
            shown = {"key": key, "type": "progress", "data": percent, "description": key, "flow_run_id": run}
            deployed.api("/artifacts/", shown)
        unanswered = flow_run({"type": "PENDING"})
        set_state(deployed, unanswered, "RUNNING")
        set_state(deployed, unanswered, "PAUSED", "Suspended", until="2026-01-01T00:00:00Z")
        never = {"type": "SCHEDULED", "state_details": {"scheduled_time": NEVER}}
        dead, waiting = flow_run(never), flow_run(never)
        assert set_state(deployed, dead, "PENDING")["status"] == "ACCEPT"
        answer = set_state(deployed, waiting, "PENDING")
        assert (answer["status"], answer["state"]["name"]) == ("REJECT", "AwaitingConcurrencySlot")
        set_state(deployed, waiting, "SCHEDULED", "AwaitingConcurrencySlot")  # and no worker tries again

        wait_for("all to be told", lambda: {note["occasion"] for note in told} >= {*ENDS, "missed"}, pause=0.5)
        assert {note["night"] for note in told} == {"told"}
        for occasion in ENDS:
            assert any(f'told of "{occasion}"' in note["text"] for note in told if note["occasion"] == occasion)
        assert deployed.ended(unanswered) == "Failed"  # a person had not approved in time
        wait_for("that to be told", lambda: [note for note in told if "never resumed" in note["text"]], pause=0.5)
        assert deployed.ended(dead) == "Crashed"
        assert "not heard of" in deployed.api(f"/flow_runs/{dead}")["state"]["message"]
        listed = {each["model"]: each for each in deployed.json("nights", "ls")}
        assert listed["told"]["active"]
        assert listed["told"]["next"]
        assert listed["told"]["last"]["flow_run"] in (unanswered, dead)
        now = [(each["flow_run"], each["state"], each["percent"]) for each in listed["told"]["now"]]
        assert now == [(run, "Suspended", 40.0), (waiting, "AwaitingConcurrencySlot", None)]

    file.write_text(NIGHTS)
    changes = deployed.json("nights", "apply", str(file))
    assert (changes[-1]["model"], changes[-1]["done"]) == ("told", "not in the file")
    changes = deployed.json("nights", "apply", str(file), "--prune")
    assert changes[-1]["done"] == "paused"  # a run of it waits for a person
    set_state(deployed, run, "CANCELLED")
    assert deployed.json("nights", "apply", str(file), "--prune")[-1]["done"] == "removed"
    names = {automation["name"] for automation in deployed.api("/automations/filter", {})}
    assert names == {"nights: a run that never starts", "demo: missed", "other: missed"}


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_resumed_by_the_next_run(deployed: Deployed, pair: TwoFlowRuns) -> None:
    """The draft is then the very one of a training that nobody disturbed.

    Prefect's server is killed with it, and yet knows whose concurrency slot is to be free.
    """
    s3 = deployed.stack.s3()
    for key in deployed.objects("store/"):
        kind = key.split("/")[1]
        if kind in ("conversations", "responses", "tokens", "states") or kind.startswith("demo_"):
            source = {"Bucket": "deepspec", "Key": key}
            s3.copy_object(Bucket="deepspec", Key=key.replace("store/", "killed/", 1), CopySource=source)
    store = {"DEEPSPEC_STORE": "s3://deepspec/killed"}
    (draft,) = drafts(deployed, "store")
    saved = deployed.home / "work" / draft / "checkpoints"
    assert not saved.exists(), "what the first training left to resume from"
    worker = psutil.Process(deployed.stack.states()["worker"]["pid"])
    before = set((deployed.home / "runs").iterdir())
    lost = deployed.flow_run(*LONGER, **store)
    wait_for("a checkpoint", lambda: any(saved.glob("step-*")))
    killed = [*worker.children(recursive=True), worker]
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deployed.send("prefect", signal.SIGKILL)
    wait_for("the worker's end", lambda: deployed.stack.states()["worker"]["state"] == "down", pause=0.5)
    assert not drafts(deployed, "killed")
    deployed.stack.up()

    # Prefect frees the slot of the night whose run died minutes later, when its lease has run out.
    again = deployed.flow_run(*LONGER, night="other", **store)
    assert deployed.ended(again) == "Promoted", deployed.log(again)
    states = deployed.task_runs(again)
    assert (states["states"], states["train"]) == ("Cached", "Completed")
    limits = {limit["name"]: limit["active_slots"] for limit in deployed.api("/v2/concurrency_limits/filter", {})}
    assert limits["deepspec-cpu"] == 0  # the others are the nights' own
    # The dead holder's note stays for some minutes, and is then looked at by whoever takes a concurrency slot.
    assert {note["value"]["flow_run"] for note in deployed.api("/variables/filter", {})} <= {lost}
    # The run that died is ended everywhere.
    assert deployed.api(f"/flow_runs/{lost}")["state"]["type"] == "CRASHED"
    assert not {"Running", "Pending"} & set(deployed.task_runs(lost).values())
    records = [json.loads((run / "run.json").read_text()) for run in set((deployed.home / "runs").iterdir()) - before]
    ends = {record["status"]: record["run_id"] for record in records}
    assert ends.keys() == {"interrupted", "promoted"}
    for status, end in (("interrupted", "KILLED"), ("promoted", "FINISHED")):
        (tracked,) = deployed.tracked(f"tags.`deepspec.run_id` = '{ends[status]}'")
        parts = deployed.tracked(f"tags.`mlflow.parentRunId` = '{tracked['info']['run_id']}'")
        assert {run["info"]["status"] for run in (tracked, *parts)} == {end}
    resumed, undisturbed = (drafts(deployed, name)[draft] for name in ("killed", "store"))
    assert resumed["counts"]["resumed_step"] > 0
    assert undisturbed["counts"]["resumed_step"] == 0
    assert resumed["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("number", SAMPLE, ids=lambda number: "+".join(Trouble.of(number).killed))
def test_a_night_ends_right_by_itself_or_by_the_next_one(deployed: Deployed, pair: TwoFlowRuns, number: int) -> None:
    """Four of the campaign's sixty: a minute each, for servers come back and two flow runs start."""
    assert not night(deployed, Trouble.of(number)).wrong


RUN = ("run", "tiny", "--set", "train.seed=7", "--set", "gates.min_tau_gain=50")
"""A further version, which the gate refuses."""

HASTY = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "PREFECT_CLIENT_MAX_RETRIES": "0",
    "PREFECT_API_REQUEST_TIMEOUT": "8",
    "AWS_MAX_ATTEMPTS": "2",
}
"""What a user sets who does not want to wait long for servers."""

NOWHERE = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"MLFLOW_TRACKING_URI": f"http://me:{CANARY}@{NOWHERE}"},
            [f"MLFLOW_TRACKING_URI http://{NOWHERE}:", "does not answer", "Start it, and run again"],
        ),
        (
            {"MLFLOW_TRACKING_PASSWORD": CANARY},
            ["MLFLOW_TRACKING_URI http://127", "does not accept", "MLFLOW_TRACKING_PASSWORD"],
        ),
        (
            {"PREFECT_API_URL": f"http://me:{CANARY}@{NOWHERE}/api"},
            [f"PREFECT_API_URL http://{NOWHERE}:", "does not answer", "Start it"],
        ),
        (
            {"PREFECT_API_AUTH_STRING": f"admin:{CANARY}"},
            ["PREFECT_API_URL http://127", "does not accept", "PREFECT_API_AUTH_STRING"],
        ),
        (
            {"AWS_ENDPOINT_URL": f"http://me:{CANARY}@{NOWHERE}"},
            ["DEEPSPEC_STORE s3://deepspec/store", f"at http://{NOWHERE} does not answer", "AWS_ENDPOINT_URL"],
        ),
        (
            {"AWS_SECRET_ACCESS_KEY": CANARY},
            ["DEEPSPEC_STORE s3://deepspec/store", "does not accept the credentials", "AWS_SECRET_ACCESS_KEY"],
        ),
    ],
    ids=["mlflow", "mlflow-password", "prefect", "prefect-password", "s3", "s3-secret"],
)
def test_what_cannot_be_used_is_named(
    deployed: Deployed, first: str, changes: dict[str, str], words: list[str]
) -> None:
    sentence = deployed.refused(*RUN, **{**HASTY, **changes})
    assert all(word in sentence for word in words), sentence
    assert CANARY not in sentence


@pytest.fixture(scope="module")
def dumped(deployed: Deployed, pair: TwoFlowRuns) -> dict[str, bytes]:
    """What pg_dump wrote of two databases, before the last version was made."""
    return {name: deployed.stack.postgres("pg_dump", name, name, "--format=custom") for name in ("mlflow", "prefect")}


@pytest.mark.usefixtures("dumped")
def test_servers_that_fail_in_the_middle_lose_nothing(deployed: Deployed) -> None:
    """One command, twice: when the training begins Prefect's server hangs for good, then MLflow's for 25 s.

    What the bucket's server may refuse in the middle is asked in test_store_s3.py and test_faulty_runs.py.
    """
    try:
        stop = functools.partial(deployed.send, "prefect", signal.SIGSTOP)
        sentence = deployed.refused(*RUN, once="= states", act=stop, **HASTY)
    finally:
        deployed.send("prefect", signal.SIGCONT)
    words = ["PREFECT_API_URL http://127", "does not answer", "what was finished is kept"]
    assert all(word in sentence for word in words), sentence
    record = json.loads((deployed.home / "last-run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] == sentence

    back = threading.Timer(25, deployed.send, ("mlflow", signal.SIGCONT))

    def hang() -> None:
        deployed.send("mlflow", signal.SIGSTOP)
        back.start()

    try:
        record = deployed.json(*RUN, code=3, once="= states", act=hang, **HASTY)
    finally:
        back.join()
    wanted = {"flow_runs": {"name": {"any_": [record["run_id"]]}}, "sort": "START_TIME_ASC"}
    # The inputs' flow is one, too.
    *before, flow_run = deployed.api("/flow_runs/filter", wanted)
    assert flow_run["state_name"] == "Refused"
    assert {run["state_type"] for run in before} <= {"COMPLETED"}
    statuses = {stage["name"]: stage["status"] for stage in record["stages"]}
    assert [statuses[stage] for stage in STAGES[:4]] == ["hit"] * 4
    # A training may have ended before its run heard that a server does not answer.
    after = [statuses[stage] for stage in STAGES[4:-1]]
    assert after in (["ran"] * 5, ["hit"] + ["ran"] * 4)
    tracked = deployed.tracked(f"tags.`deepspec.run_id` = '{record['run_id']}'")
    assert [run["info"]["status"] for run in tracked] == ["FINISHED"]
    parts = deployed.tracked(f"tags.`mlflow.parentRunId` = '{tracked[0]['info']['run_id']}'")
    assert {run["info"]["status"] for run in parts} == {"FINISHED"}
    assert len(parts) == after.count("ran") - 3


def dumps(stack: Running) -> Iterator[tuple[str, bytes]]:
    """Both servers' databases, and MLflow's users, as text."""
    for role, database in (("mlflow", "mlflow"), ("mlflow", "mlflow_auth"), ("prefect", "prefect")):
        yield database, stack.postgres("pg_dump", role, database)


def test_no_password_is_anywhere(deployed: Deployed, pair: TwoFlowRuns) -> None:
    """Not in what the runs above have left, those that failed included; the stack's own private files aside."""
    kept = json.loads((deployed.stack.folder / "secrets.json").read_text())
    secrets = {**{name: value.encode() for name, value in kept.items()}, "the wrong one": CANARY.encode()}
    s3 = deployed.stack.s3()

    def everything() -> Iterator[tuple[str, bytes]]:
        for path in deployed.home.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()
        for key in deployed.objects(""):
            yield key, s3.get_object(Bucket="deepspec", Key=key)["Body"].read()
        yield from dumps(deployed.stack)
        for service in ("worker", "mlflow", "prefect", "deploy"):
            yield f"log of {service}", (deployed.stack.folder / "logs" / f"{service}.log").read_bytes()
        yield "printed", "".join(deployed.printed).encode()

    seen = dict(everything())
    assert b"tiny" in seen["prefect"]
    assert len(seen) > 100
    found = [(where, name) for where, content in seen.items() for name, value in secrets.items() if value in content]
    assert not found


# --- infra/BACKUP.md, "Services", step by step: all is lost, and comes back on servers that know nothing of it --------


def mlflow_files(stack: Running) -> Iterator[tuple[str, bytes]]:
    """The objects that MLflow's server keeps, by key."""
    s3 = stack.s3()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="deepspec", Prefix="mlflow/"):
        for item in page.get("Contents", []):
            yield item["Key"], s3.get_object(Bucket="deepspec", Key=item["Key"])["Body"].read()


def curve(stack: Running) -> list[tuple[int, float]]:
    """(step, loss) of the first training that MLflow knows."""
    wanted = {"experiment_ids": ["1"], "filter": "tags.`deepspec.stage` = 'train'", "order_by": ["start_time ASC"]}
    runs = stack.get("/api/2.0/mlflow/runs/search", body=wanted, credentials=stack.admin)["runs"]
    path = f"/api/2.0/mlflow/metrics/get-history?run_id={runs[0]['info']['run_id']}&metric_key=loss"
    metrics = stack.get(path, credentials=stack.admin)["metrics"]
    return [(int(metric.get("step", 0)), metric["value"]) for metric in metrics]


class Lost(NamedTuple):
    """What was there, and what was saved of it.

    Attributes:
        models: what `models ls` said; the newest version is younger than the dumps.
        history: what `models history` said.
        curve: (step, loss) of the first version's training.
        files: key -> content of MLflow's own artifacts.
        store: the folder that the artifacts were copied to.
    """

    models: list[dict[str, Any]]
    history: list[dict[str, Any]]
    curve: list[tuple[int, float]]
    files: dict[str, bytes]
    store: Path


@pytest.fixture(scope="module")
def lost(deployed: Deployed, dumped: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """Backed up as the page says, with a run between the databases and the store; then the servers are gone."""
    store = tmp_path_factory.mktemp("lost") / "copy"
    try:
        assert deployed.json("artifacts", "copy", "--from", "s3://deepspec/store", str(store))["complete"]
        models, history = deployed.json("models", "ls"), deployed.json("models", "history", "tiny")
        return Lost(models, history, curve(deployed.stack), dict(mlflow_files(deployed.stack)), store)
    finally:
        deployed.stack.call("down")


@pytest.fixture(scope="module")
def restored(lost: Lost, dumped: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Other servers with other passwords, filled before MLflow and Prefect have ever looked at them; another home."""
    folder = tmp_path_factory.mktemp("restored")
    again = Deployed(Running(folder / "state"), folder / "home")
    empty = Settings(again.stack.folder, dict.fromkeys(PORTS, 0), "memstore")
    try:
        lifecycle.up(empty, (POSTGRES, *S3_SERVICES))
        for name, dump in dumped.items():
            again.stack.postgres("pg_restore", name, name, "--exit-on-error", given=dump)
        # A worker would have nothing to do.
        write_variables(lifecycle.up(empty, [service for service in SERVICES if service.name != "worker"]))
        assert again.json("artifacts", "copy", "--from", str(lost.store), "s3://deepspec/store")["complete"]
        for key, content in lost.files.items():
            again.stack.s3().put_object(Bucket="deepspec", Key=key, Body=content)
        yield again
    finally:
        again.stack.call("down")


def test_the_dumps_are_older_than_the_store(lost: Lost, restored: Deployed) -> None:
    assert [version["version"] for version in lost.models if version["name"] == "tiny"] == ["2", "1"]
    left = [version for version in lost.models if (version["name"], version["version"]) != ("tiny", "2")]
    assert restored.json("models", "ls") == left
    assert curve(restored.stack) == lost.curve
    assert len(lost.curve) > 1


def test_reconciling_registers_what_only_the_store_knows(lost: Lost, restored: Deployed) -> None:
    checked = restored.json("artifacts", "verify")
    assert (checked["checked"] > 10, checked["damaged"]) == (True, {})
    assert restored.deepspec("models", "reconcile", "tiny")[0] == 0
    # The run that had made the second one is gone with what it tracked.
    versions = [{**version, "run_id": ""} if version["version"] == "2" else version for version in lost.models]
    assert restored.json("models", "ls") == versions
    assert restored.json("models", "history", "tiny") == lost.history


def test_the_next_run_finds_everything(restored: Deployed) -> None:
    """The champion's; another's draft would be judged against it."""
    again = restored.json("run", "tiny", *(word for setting in LONGER for word in ("--set", setting)))
    assert again["status"] == "no_change"
    assert {stage["status"] for stage in again["stages"]} == {"hit"}
