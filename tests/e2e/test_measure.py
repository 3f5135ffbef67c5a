"""The command `measure`: what a server's counters say beside what the run's own evaluation found."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Home
from tests.fixtures.openai_server import openai_server

pytestmark = pytest.mark.full

GREEDY = ("--set", "evaluate.sampling.temperature=0")


def test_served_and_in_process_acceptance_stand_side_by_side(warm: Home, tmp_path: Path) -> None:
    warm.run("run", "tiny", *GREEDY, code=None)
    record = warm.record()
    keys = {stage["name"]: stage["key"] for stage in record["stages"]}
    [rounds_file] = (warm.path / "store" / "evaluate" / keys["evaluate"]).glob("*/rounds.parquet")
    [draft] = (warm.path / "store" / "train" / keys["train"]).glob("*/draft")
    target = warm.path / "tiny" / "target"
    in_process = record["evaluation"]["benchmarks"]
    out = tmp_path / "served.json"
    with openai_server(target, tmp_path / "log", model="org/target", target=str(target), draft=str(draft)) as plain:
        arguments = ("measure", "tiny", *GREEDY, "--concurrency", "2", "--endpoint")
        unmeasured = json.loads(warm.run(*arguments, f"{plain.url}/v1", "--json", "--out", str(out)).out)
    assert json.loads(out.read_text()) == unmeasured
    assert unmeasured["macro"]["tau"] is None
    with openai_server(
        target, tmp_path / "log", model="org/target", target=str(target), draft=str(draft), metrics="vllm", key="sk-e2e"
    ) as server:
        key = {"DEEPSPEC_ENDPOINT_API_KEY": "sk-e2e"}
        table = warm.run(*arguments, server.url, "--out", str(out), environment=key).out
        refused = warm.run(*arguments, server.url, code=2).err
    document = json.loads(out.read_text())
    assert document["problems"] == []
    assert (document["engine"], document["engine_version"], document["concurrency"]) == ("vllm", "0.10.2", 2)
    assert document["in_process"]["run_id"] == record["run_id"]
    rounds = [row for row in pq.read_table(rounds_file).to_pylist() if row["benchmark"] != "gate"]
    for name, part in document["benchmarks"].items():
        own = [row for row in rounds if row["benchmark"] == name]
        # Where the draft proposed an answer's end, an engine counts a bonus token that no answer has.
        assert part["tau"] == 1 + sum(row["accepted"] for row in own) / len(own)
        assert (part["rounds"], part["tokens"]) == (len(own), in_process[name]["tokens"])
        assert part["tau_from_tokens"] <= in_process[name]["tau"] <= part["tau"]
        assert document["in_process"]["benchmarks"][name] == in_process[name]
        [line] = [line for line in table.splitlines() if line.startswith(name)]
        if part["stopped"] == part["requests"]:
            assert f"{document['in_process']['tau_from_tokens'][name]:.3f}" in line
        assert f"{part['tau_from_tokens']:.3f}" in line
    assert f"vllm 0.10.2 at {server.url.removeprefix('http://')}" in table
    assert "DEEPSPEC_ENDPOINT_API_KEY" in refused
    with openai_server(
        target,
        tmp_path / "log",
        model="org/target",
        target=str(target),
        draft=str(draft),
        metrics="vllm",
        is_busy=True,
        says_rounds="detailed",
    ) as server:
        used = json.loads(warm.run(*arguments, server.url, "--json").out)
    for name, part in used["benchmarks"].items():
        assert part["counted_by"] == "round"
        assert part["tau_from_tokens"] == used["in_process"]["tau_from_tokens"][name]
        assert part["tau"] == in_process[name]["tau"]
    assert used["macro"]["tau_from_tokens"] == used["in_process"]["tau_from_tokens"]["macro"]
    for path in (*warm.path.rglob("*"), out):
        assert not path.is_file() or b"sk-e2e" not in path.read_bytes(), path


def test_what_cannot_be_relied_on_ends_with_1(warm: Home, tmp_path: Path) -> None:
    target = warm.path / "tiny" / "target"
    words = {"bad_words": {"assistant": "refused"}}  # which every prompt ends with
    with openai_server(target, tmp_path / "log", model="target", metrics="vllm", **words) as server:
        done = warm.run("measure", "tiny", "--endpoint", server.url, "--json", code=1)
        nowhere = warm.run("measure", "tiny", "--endpoint", server.url, "--out", str(tmp_path / "no" / "file"), code=2)
    document = json.loads(done.out)
    assert len(document["problems"]) == 3
    for name, part in document["benchmarks"].items():
        assert (part["prompts"], part["tokens"], part["tau"]) == (0, 0, None)
        assert f"benchmark {name}: {len(part['failed'])} of {len(part['failed'])} prompts" in done.err
    assert f"--out {tmp_path}/no/file: " in nowhere.err
