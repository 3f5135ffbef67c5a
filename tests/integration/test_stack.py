"""`make stack` as a user has it: real servers on free ports, their passwords, their data, and nothing left behind.

At the end of the file it is lost, and restored from its backup.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
from tests.e2e.conftest import Home
from tests.fixtures.command import call
from tests.fixtures.s3 import S3Server
from tests.fixtures.stack import Running, processes, running
from tests.integration.conftest import capture_before

pytestmark = pytest.mark.full

NAMES = [service.name for service in SERVICES]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One that is up; the tests of restoring, which come last, lose it."""
    found = Running(tmp_path_factory.mktemp("stack") / "state")
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


def test_a_second_up_starts_nothing(stack: Running) -> None:
    before = {name: state["pid"] for name, state in stack.states().items()}
    said = stack.up()
    assert said.count("was up") == len(NAMES)
    assert {name: state["pid"] for name, state in stack.states().items()} == before


def test_mlflow_wants_the_password(stack: Running) -> None:
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert stack.get(path) == 401
    assert stack.get(path, credentials="admin:password1234") == 401
    assert stack.get(path, credentials=stack.admin)["experiments"]


def test_prefect_wants_the_password_and_knows_the_deployment(stack: Running) -> None:
    path = "/deployments/name/retrain/nightly"
    assert stack.get(path, server="PREFECT_API_URL") == 401
    credentials = stack.variables["PREFECT_API_AUTH_STRING"]
    deployment = stack.get(path, server="PREFECT_API_URL", credentials=credentials)
    assert deployment["work_pool_name"] == "deepspec"
    assert deployment["parameters"] == {"recipe": "demo", "overrides": []}
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


def test_a_killed_service_is_told_and_started_again(stack: Running) -> None:
    before = {name: state["pid"] for name, state in stack.states().items()}
    server = psutil.Process(before["mlflow"])
    children = server.children(recursive=True)
    os.kill(server.pid, signal.SIGKILL)
    told = stack.call("status", "--json")
    assert told.returncode == 1
    assert [s["service"] for s in json.loads(told.stdout) if s["state"] != "up"] == ["mlflow"]
    stack.up()
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


def test_data_stay_and_nothing_else(stack: Running) -> None:
    """Objects, runs and users are there after the stack was down, also on other ports; no process is, while it is."""
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
    credentials = stack.variables["PREFECT_API_AUTH_STRING"]
    assert stack.get("/deployments/name/retrain/nightly", server="PREFECT_API_URL", credentials=credentials)["id"]


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = Running(tmp_path / "state").call("up", DEEPSPEC_STACK_MLFLOW_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"stack: DEEPSPEC_STACK_MLFLOW_PORT: Port {port}, where mlflow is to listen, is taken"
    )
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


# --- infra/BACKUP.md, "Services", step by step: all is lost, and comes back on servers that know nothing of it --------

HASTY = ("train.num_steps=2", "train.seed=7")
"""A second version, soon made."""


def deepspec(stack: Running, home: Path, *arguments: str, code: int = 0) -> Any:
    """What a command with `--json` prints."""
    done = call([*arguments, "--json"], stack.as_user(home), seconds=400)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


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
        models: what `models ls` said: two versions, the second of them younger than the dumps.
        history: what `models history` said.
        curve: (step, loss) of the first version's training.
        dumps: database -> what pg_dump wrote.
        files: key -> content of MLflow's own artifacts.
        store: the folder that the artifacts were copied to.
    """

    models: list[dict[str, Any]]
    history: list[dict[str, Any]]
    curve: list[tuple[int, float]]
    dumps: dict[str, bytes]
    files: dict[str, bytes]
    store: Path


@pytest.fixture(scope="module")
def lost(stack: Running, cold: Home, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """Backed up as the page says, with a run between the databases and the store; then the servers are gone."""
    folder = tmp_path_factory.mktemp("lost")
    home = folder / "home"
    variables = stack.variables
    server = S3Server(
        variables["AWS_ENDPOINT_URL"], variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], "deepspec"
    )
    capture_before(server, cold, "s3://deepspec/store")
    try:
        assert deepspec(stack, home, "run", "tiny")["status"] == "promoted"
        dumps = {name: stack.postgres("pg_dump", name, name, "--format=custom") for name in ("mlflow", "prefect")}
        assert deepspec(stack, home, "run", "tiny", *(part for one in HASTY for part in ("--set", one)), code=3)
        store = folder / "copy"
        copied = deepspec(stack, home, "artifacts", "copy", "--from", "s3://deepspec/store", str(store))
        assert copied["complete"]
        files = dict(mlflow_files(stack))
        models, history = deepspec(stack, home, "models", "ls"), deepspec(stack, home, "models", "history", "tiny")
        return Lost(models, history, curve(stack), dumps, files, store)
    finally:
        stack.call("down")


@pytest.fixture(scope="module")
def restored(lost: Lost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """Other servers with other passwords, filled before MLflow and Prefect have ever looked at them; another home."""
    folder = tmp_path_factory.mktemp("restored")
    stack, home = Running(folder / "state"), folder / "home"
    empty = Settings(stack.folder, dict.fromkeys(PORTS, 0), "memstore")
    try:
        lifecycle.up(empty, (POSTGRES, *S3_SERVICES))
        for name, dump in lost.dumps.items():
            stack.postgres("pg_restore", name, name, "--exit-on-error", given=dump)
        stack.up()
        copied = deepspec(stack, home, "artifacts", "copy", "--from", str(lost.store), "s3://deepspec/store")
        assert copied["complete"]
        for key, content in lost.files.items():
            stack.s3().put_object(Bucket="deepspec", Key=key, Body=content)
        yield stack, home
    finally:
        stack.call("down")


def test_the_dumps_are_older_than_the_store(lost: Lost, restored: tuple[Running, Path]) -> None:
    stack, home = restored
    assert [version["version"] for version in lost.models] == ["2", "1"]
    assert deepspec(stack, home, "models", "ls") == [version for version in lost.models if version["version"] == "1"]
    assert curve(stack) == lost.curve
    assert len(lost.curve) > 1


def test_reconciling_registers_what_only_the_store_knows(lost: Lost, restored: tuple[Running, Path]) -> None:
    stack, home = restored
    checked = deepspec(stack, home, "artifacts", "verify")
    assert (checked["checked"] > 10, checked["damaged"]) == (True, {})
    call(["models", "reconcile", "tiny"], stack.as_user(home), seconds=400).check_returncode()
    # The run that had made the second one is gone with what it tracked.
    versions = [{**version, "run_id": ""} if version["version"] == "2" else version for version in lost.models]
    assert deepspec(stack, home, "models", "ls") == versions
    assert deepspec(stack, home, "models", "history", "tiny") == lost.history


def test_the_next_run_finds_everything(restored: tuple[Running, Path], tmp_path: Path) -> None:
    stack, home = restored
    again = deepspec(stack, home, "run", "tiny")
    assert again["status"] == "no_change"
    assert {stage["status"] for stage in again["stages"]} == {"hit"}
