"""The flow on all that it runs on in production: by a deployment and the API, on servers that fail and recover."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from infra.stack.settings import ROOT
from tests.fixtures.command import call
from tests.fixtures.stack import Running

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

STAGES = [
    "conversations", "responses", "tokens", "states", "train", "calibrate", "evaluate", "register", "gate", "promote"
]  # fmt: skip
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PATIENCE_SECONDS = 900
CANARY = "canary-in-a-coal-mine"
"""A password that is wrong, or unnecessary; it must not turn up anywhere."""

LONGER = ("train.num_steps=150", "train.lr=1e-3", "run.checkpoint_every_steps=10")
"""A training of its own, long enough to be met in the middle."""


def wait_for(what: str, seen: Callable[[], Any]) -> Any:
    """What `seen` returns once it is something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = seen()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {PATIENCE_SECONDS} s")


@dataclass
class Deployed:
    """The stack, the home of its worker, the deployment in Prefect's API, and all that commands have printed."""

    stack: Running
    home: Path
    printed: list[str] = field(default_factory=list)

    def deepspec(
        self, *arguments: str, once: str = "", act: Callable[[], None] | None = None, **changes: str
    ) -> tuple[int, str, str]:
        """Call `deepspec`, and `act` once it has printed `once`; its exit code and what it printed."""
        environment = self.stack.as_user(self.home, **changes)
        if act is None:
            done = call(arguments, environment, seconds=PATIENCE_SECONDS)
            self.printed += [done.stdout, done.stderr]
            return done.returncode, done.stdout, done.stderr
        command = [sys.executable, "-m", "flows.cli.main", *arguments]
        options: dict[str, Any] = {"cwd": ROOT, "env": environment, "text": True}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if act is not None and line.startswith(once):
                    act()
                    act = None
            out, err = process.stdout.read(), "".join(lines)
            code = process.wait(timeout=PATIENCE_SECONDS)
        self.printed += [out, err]
        return code, out, err

    def refused(self, *arguments: str, once: str = "", act: Callable[[], None] | None = None, **changes: str) -> str:
        """Call `deepspec` in a way that has to fail, with one sentence and nothing else; the sentence."""
        code, _, err = self.deepspec(*arguments, once=once, act=act, **changes)
        sentences = [line for line in err.splitlines() if line.startswith("deepspec: ")]
        assert (code, len(sentences)) == (1, 1), err
        assert "Traceback" not in err
        assert "Error logging to API" not in err
        return sentences[0].removeprefix("deepspec: ")

    def send(self, service: str, number: signal.Signals) -> None:
        """Send a signal to every process of a service."""
        server = psutil.Process(self.stack.states()[service]["pid"])
        for process in [server, *server.children(recursive=True)]:
            process.send_signal(number)

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What Prefect's API answers."""
        variables = self.stack.variables
        user, _, password = variables["PREFECT_API_AUTH_STRING"].partition(":")
        method = "GET" if body is None else "POST"
        url = variables["PREFECT_API_URL"] + path
        return httpx.request(method, url, json=body, auth=(user, password), timeout=60).raise_for_status().json()

    def start(self, *overrides: str, **environment: str) -> str:
        """A flow run of the recipe `tiny` by the deployment; its id."""
        deployment = self.api("/deployments/name/retrain/nightly")["id"]
        body = {
            "parameters": {"recipe": "tiny", "overrides": list(overrides)},
            "job_variables": {"env": environment},
            "state": {"type": "SCHEDULED"},
        }
        return str(self.api(f"/deployments/{deployment}/create_flow_run", body)["id"])

    def ended(self, flow_run: str) -> str:
        """Wait for the end of a flow run; the name of its state."""

        def state() -> Any:
            found = self.api(f"/flow_runs/{flow_run}")["state"]
            return found if found["type"] in FINAL else None

        return str(wait_for(f"flow run {flow_run}", state)["name"])

    def task_runs(self, flow_run: str) -> dict[str, str]:
        """Stage -> the state that its task run ended in; the flow that makes the inputs is left out."""
        body = {"flow_runs": {"id": {"any_": [flow_run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        names = {run["name"].rpartition("-")[0]: run["state"]["name"] for run in self.api("/task_runs/filter", body)}
        return {name: state for name, state in names.items() if name in STAGES}

    def log(self, flow_run: str) -> list[str]:
        body = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.api("/logs/filter", body)]

    def objects(self, prefix: str) -> list[str]:
        pages = self.stack.s3().get_paginator("list_objects_v2").paginate(Bucket="deepspec", Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The stack, after one flow run of `tiny` from nothing."""
    folder = tmp_path_factory.mktemp("deployed")
    stack = Running(folder / "state")
    stack.environment["DEEPSPEC_HOME"] = str(folder / "home")
    try:
        stack.up()
        yield Deployed(stack, folder / "home")
    finally:
        stack.call("down")


@pytest.fixture(scope="module")
def first(deployed: Deployed) -> str:
    """A flow run from nothing."""
    flow_run = deployed.start()
    assert deployed.ended(flow_run) == "Promoted", deployed.log(flow_run)
    return flow_run


def test_a_flow_run_makes_everything(deployed: Deployed, first: str) -> None:
    assert deployed.task_runs(first) == dict.fromkeys(STAGES, "Completed")
    assert {key.split("/")[1] for key in deployed.objects("store/") if "/manifest." in key} >= set(STAGES)
    assert any("+ train" in line for line in deployed.log(first))


def test_what_was_made_is_shown_in_prefect(deployed: Deployed, first: str) -> None:
    body = {"artifacts": {"flow_run_id": {"any_": [first]}}, "limit": 200}
    shown = {artifact["key"]: artifact for artifact in deployed.api("/artifacts/filter", body)}
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
    listed = json.loads(deployed.deepspec("models", "ls", "--json")[1])
    assert [(model["name"], model["version"], model["aliases"]) for model in listed] == [("tiny", "1", ["champion"])]


def test_a_second_flow_run_is_all_cached(deployed: Deployed, first: str) -> None:
    again = deployed.start()
    assert deployed.ended(again) == "NoChange", deployed.log(again)
    assert deployed.task_runs(again) == dict.fromkeys(STAGES, "Cached")


def drafts(deployed: Deployed, store: str) -> dict[str, dict[str, Any]]:
    """Key -> manifest of every draft in a store."""
    s3 = deployed.stack.s3()
    found = [key for key in deployed.objects(f"{store}/train/") if "/manifest." in key]
    return {key.split("/")[2]: json.loads(s3.get_object(Bucket="deepspec", Key=key)["Body"].read()) for key in found}


class Pair(NamedTuple):
    """Two flow runs of one recipe at once.

    Attributes:
        flow_runs: their ids.
        names: of the states they ended in.
        slots: (taken, limit) of the machine's slots, meanwhile.
        drafts: the keys of the drafts that were made.
        num_promotions: how many there were.
    """

    flow_runs: list[str]
    names: list[str]
    slots: list[tuple[int, int]]
    drafts: set[str]
    num_promotions: int


@pytest.fixture(scope="module")
def pair(deployed: Deployed, first: str) -> Pair:
    def num_promotions() -> int:
        return len(json.loads(deployed.deepspec("models", "history", "tiny", "--json")[1]))

    before, promotions = set(drafts(deployed, "store")), num_promotions()
    flow_runs = [deployed.start(*LONGER) for _ in range(2)]
    slots = []

    def ended() -> Any:
        limit = deployed.api("/v2/concurrency_limits/deepspec-cpu")
        slots.append((limit["active_slots"], limit["limit"]))
        states = [deployed.api(f"/flow_runs/{flow_run}")["state"] for flow_run in flow_runs]
        return all(state["type"] in FINAL for state in states) and [state["name"] for state in states]

    names = wait_for("both flow runs", ended)
    made = set(drafts(deployed, "store")) - before
    return Pair(flow_runs, names, slots, made, num_promotions() - promotions)


def test_of_two_at_once_one_trains_and_the_other_reuses(deployed: Deployed, pair: Pair) -> None:
    assert set(pair.names) <= {"Promoted", "NoChange"}, [deployed.log(flow_run) for flow_run in pair.flow_runs]
    states = [deployed.task_runs(flow_run) for flow_run in pair.flow_runs]
    assert [state.keys() for state in states] == [dict.fromkeys(STAGES).keys()] * 2
    assert sorted(state["train"] for state in states) == ["Cached", "Completed"]
    assert len(pair.drafts) == 1
    assert pair.num_promotions == 1


def test_slots_are_never_exceeded(pair: Pair) -> None:
    assert {limit for _, limit in pair.slots} == {1}
    assert {taken for taken, _ in pair.slots} == {0, 1}


def test_a_killed_worker_is_resumed_by_the_next_run(deployed: Deployed, pair: Pair) -> None:
    """The draft is then the very one of a training that nobody disturbed."""
    s3 = deployed.stack.s3()
    for key in deployed.objects("store/"):
        kind = key.split("/")[1]
        if kind in ("conversations", "responses", "tokens", "states") or kind.startswith("demo_"):
            source = {"Bucket": "deepspec", "Key": key}
            s3.copy_object(Bucket="deepspec", Key=key.replace("store/", "killed/", 1), CopySource=source)
    store = {"DEEPSPEC_STORE": "s3://deepspec/killed"}
    (draft,) = pair.drafts
    saved = deployed.home / "work" / draft / "checkpoints"
    assert not saved.exists(), "what the first training left to resume from"
    deployed.start(*LONGER, **store)
    wait_for("a checkpoint", lambda: any(saved.glob("step-*")))
    worker = psutil.Process(deployed.stack.states()["worker"]["pid"])
    killed = [*worker.children(recursive=True), worker]
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_for("the worker's end", lambda: deployed.stack.states()["worker"]["state"] == "down")
    assert not drafts(deployed, "killed")
    deployed.stack.up()

    again = deployed.start(*LONGER, **store)
    assert deployed.ended(again) == "Promoted", deployed.log(again)
    states = deployed.task_runs(again)
    assert (states["states"], states["train"]) == ("Cached", "Completed")
    resumed, undisturbed = (drafts(deployed, name)[draft] for name in ("killed", "store"))
    assert resumed["counts"]["resumed_step"] > 0
    assert undisturbed["counts"]["resumed_step"] == 0
    assert resumed["digest"] == undisturbed["digest"]


RUN = ("run", "tiny", "--set", "train.seed=7")
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
        ({"DEEPSPEC_STORE": "s3://nowhere/store"}, ["DEEPSPEC_STORE s3://nowhere/store", "no bucket 'nowhere'"]),
    ],
    ids=["mlflow", "mlflow-password", "prefect", "prefect-password", "s3", "s3-secret", "bucket"],
)
def test_what_cannot_be_used_is_named(
    deployed: Deployed, first: str, changes: dict[str, str], words: list[str]
) -> None:
    sentence = deployed.refused(*RUN, **{**HASTY, **changes})
    assert all(word in sentence for word in words), sentence
    assert CANARY not in sentence


def test_servers_that_fail_in_the_middle_are_named_and_nothing_is_lost(deployed: Deployed, first: str) -> None:
    """One command, again and again: a server hangs when the training begins; at last none does.

    What the bucket's server may refuse in the middle is asked in test_store_s3.py and test_faulty_runs.py.
    """

    faults: list[tuple[Callable[[], None], Callable[[], None], list[str]]] = [
        (
            lambda: deployed.send("mlflow", signal.SIGSTOP),
            lambda: deployed.send("mlflow", signal.SIGCONT),
            ["MLFLOW_TRACKING_URI http://127", "does not answer (ReadTimeoutError)", "what was finished is kept"],
        ),
        (
            lambda: deployed.send("prefect", signal.SIGSTOP),
            lambda: deployed.send("prefect", signal.SIGCONT),
            ["PREFECT_API_URL http://127", "does not answer", "what was finished is kept"],
        ),
    ]
    for break_it, mend_it, words in faults:
        try:
            sentence = deployed.refused(*RUN, once="= states", act=break_it, **HASTY)
        finally:
            mend_it()
        assert all(word in sentence for word in words), sentence
        record = json.loads((deployed.home / "last-run.json").read_text())
        assert record["status"] == "failed"
        assert record["error"] == sentence
    code, out, err = deployed.deepspec(*RUN, "--json")
    assert code in (0, 3), err  # the gate decides
    statuses = {stage["name"]: stage["status"] for stage in json.loads(out)["stages"]}
    assert [statuses[stage] for stage in STAGES[:4]] == ["hit"] * 4
    assert [statuses[stage] for stage in STAGES[4:-1]] == ["ran"] * 5


def dumps(stack: Running) -> Iterator[tuple[str, bytes]]:
    """Both servers' databases, and MLflow's users, as text."""
    for role, database in (("mlflow", "mlflow"), ("mlflow", "mlflow_auth"), ("prefect", "prefect")):
        yield database, stack.postgres("pg_dump", role, database)


def test_no_password_is_anywhere(deployed: Deployed, pair: Pair) -> None:
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
