"""The flow with answers from servers: the same data as in process, through faults and a kill."""

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Home
from tests.fixtures.command import start
from tests.fixtures.openai_server import openai_server

pytestmark = pytest.mark.full


def test_a_served_target_answers_as_it_does_in_process(warm: Home, tmp_path: Path) -> None:
    (in_process,) = (warm.path / "store" / "responses").glob("*/*/train.parquet")
    target = warm.path / "tiny" / "target"
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                openai_server(
                    target, tmp_path / f"log{n}", model=f"org/{target.name}", target=str(target), faults=0.3, seed=n
                )
            )
            for n in range(2)
        ]
        settings = (
            "data.responses.engine=endpoint",
            f"run.endpoints=[{servers[0].url}/v1, {servers[1].url}]",
            "run.endpoint_concurrency=4",
        )
        options = [word for setting in settings for word in ("--set", setting)]
        log = tmp_path / "killed.txt"
        environment = warm.environment({"DEEPSPEC_ENDPOINT_API_KEY": "sk-canary-1b2c3d"})
        killed = start(["run", "tiny", *options], environment, out=log, err=log, leads=True)
        while killed.poll() is None and sum(len(server.answered()) for server in servers) < 40:
            time.sleep(0.05)
        assert killed.poll() is None, log.read_text()
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait(timeout=30)
        warm.run("run", "tiny", *options, code=None, environment={"DEEPSPEC_ENDPOINT_API_KEY": "sk-canary-1b2c3d"})
        asked = sum((server.answered() for server in servers), start=type(servers[0].answered())())
    (key,) = (stage["key"] for stage in warm.record()["stages"] if stage["name"] == "responses")
    manifest = json.loads(next((warm.path / "store" / "responses" / key).glob("manifest.*.json")).read_text())
    made = warm.path / "store" / "responses" / key / manifest["attempt"] / "train.parquet"
    columns = ["id", "messages", "prompt_ids", "output_ids", "finish_reason", "sampling"]
    assert pq.read_table(made, columns=columns) == pq.read_table(in_process, columns=columns)
    summary = json.loads((made.parent / "summary.json").read_text())
    assert summary["engines"] == {"vllm 0.10.2": summary["answers"]}
    # Asked again is at most what was under way when the run was killed.
    assert sum(asked.values()) <= summary["answers"] + 8
    assert not list((warm.path / "work").glob("*/answers.sqlite*"))
    for path in warm.path.rglob("*"):
        assert not path.is_file() or b"sk-canary" not in path.read_bytes(), path
    assert "sk-canary" not in log.read_text()
