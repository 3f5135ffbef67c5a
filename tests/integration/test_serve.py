"""`deepspec serve` with a real vLLM: answers, another champion while it answers, and the end on SIGTERM.

What is served is compared with our own decoding: equal answers whatever the draft, and the rounds of the draft that is
to serve at that moment. The engine takes half a minute to start, which is why this is one test.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save

from deepspec.evaluation.server.asked import Server as ServedBy
from deepspec.gates.verdict import Reason, Verdict
from deepspec.registry.promotions import DraftReference, PromotionLog
from deepspec.serving.served_check import Wanted, evaluation_for
from deepspec.serving.staging import staged
from deepspec.store import Artifact, open_store
from tasks.generators import vocabulary_of
from tests.e2e.conftest import Home
from tests.fixtures.engines import FOLDER, PYTHON, QUIET, artifact
from tests.fixtures.store import ingredients, put
from tests.integration.test_engines import MAX_NEW_TOKENS, STOP_ID, Decoded, decoded

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

NUM_PROMPTS = 6
MOST_SECONDS = 300.0
CHAMPION = "models:/eagle3@champion"
ENGINE = (
    *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "4"),
    *("--max-num-batched-tokens", "1024", "--distributed-executor-backend", "uni"),
)


def other_draft(home: Home) -> Artifact:
    """A worse draft of the same kind: the champion's, with other weights, as `train` would leave it."""
    store = open_store(str(home.path / "store"))
    champion = PromotionLog(store.backend).champion("eagle3")
    assert champion is not None
    known = store.get(champion.kind, champion.key)
    folder = known.directory() / "draft"
    draws, tensors = torch.Generator().manual_seed(0), load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and not name.startswith(("embed_tokens", "lm_head")):
            tensor.add_(0.5 * tensor.std() * torch.randn(tensor.shape, generator=draws))
    files = {"draft/config.json": (folder / "config.json").read_bytes(), "draft/model.safetensors": save(tensors)}
    return put(store, ingredients("train", {"target": known.manifest.parents["target"].digest}, name="other"), files)


def promote(home: Home, draft: Artifact, version: str) -> None:
    log = PromotionLog(open_store(str(home.path / "store")).backend)
    champion = log.champion("eagle3")
    assert champion is not None
    reason = Reason(gate="tau", passed=True, measured=2.0, sentence="It is better.")
    verdict = Verdict(accepted=True, reasons=(reason,), challenger=draft.digest, champion=champion.digest)
    reference = DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest, version=version)
    log.promote("eagle3", reference, verdict, who="tests")


class Server:
    """`deepspec serve` as a process."""

    def __init__(self, home: Home, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "flows.cli.main", "serve", CHAMPION, "--engine", "vllm", "--follow", "--json"]
        command += ["--python", str(PYTHON), "--port", str(port), "--poll-seconds", "0.5", "--", *ENGINE]
        self._err = folder / "stderr.txt"
        with self._err.open("w") as err, (folder / "stdout.txt").open("w") as out:
            self.process = subprocess.Popen(command, env=home.environment(QUIET), stdout=out, stderr=err)
        self._out = folder / "stdout.txt"

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + MOST_SECONDS
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    @property
    def said(self) -> str:
        return self._err.read_text()

    @property
    def result(self) -> Any:
        return json.loads(self._out.read_text())

    def version(self) -> str:
        return str(httpx.get(f"{self.url}/weight_info", timeout=60).json()["weight_version"])

    def answers(self, prompts: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], int]:
        """Answers, and the rounds that they took by their own account."""
        found, rounds = [], 0
        for prompt in prompts:
            body = {"model": "target", "prompt": list(prompt), "temperature": 0, "return_token_ids": True}
            body |= {"max_tokens": MAX_NEW_TOKENS, "stop_token_ids": [STOP_ID]}
            reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120).raise_for_status().json()
            found.append(tuple(reply["choices"][0]["token_ids"]))
            rounds += len(reply["metrics"]["speculative_decoding"]["per_step_accepted"])
        return found, rounds

    @contextmanager
    def asked_meanwhile(self, prompts: list[tuple[int, ...]]) -> Iterator[list[list[tuple[int, ...]]]]:
        """Ask it without a pause for the block, from two sides: a list of answers for each time that all were asked."""
        found: list[list[tuple[int, ...]]] = []
        failed: list[Exception] = []
        over = threading.Event()

        def ask() -> None:
            try:
                while not over.is_set():
                    found.append(self.answers(prompts)[0])
            except Exception as error:  # noqa: BLE001  # whatever it is, an answer was lost
                failed.append(error)

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for asker in askers:
            asker.start()
        try:
            yield found
        finally:
            over.set()
            for asker in askers:
                asker.join()
        assert not failed


def ours(draft: Path, target: Path, prompts: list[tuple[int, ...]]) -> Decoded:
    found = decoded(draft, target, prompts)
    assert all(completion.finish_reason == "stop" for completion in found.completions)
    return found


def ending_prompts(home: Home, draft: Path, target: Path) -> list[tuple[int, ...]]:
    """Prompts whose answers end by a stop: an engine drafts behind a limit of tokens, too."""
    rows = pq.read_table(artifact(home, "eagle3", "evaluate") / "answers.parquet", columns=["turn", "prompt_ids"])
    prompts = [tuple(row["prompt_ids"]) for row in rows.to_pylist() if row["turn"] == 0]
    return decoded(draft, target, prompts).shortest(NUM_PROMPTS).prompts


def is_measured_as_here(home: Home, server: Server, draft: Path, target: Path) -> None:
    """`measure` finds, by replies, the rounds and τ that our own decoding of the benchmarks takes."""
    recipe = (str(FOLDER / "served.yaml"), "--set", f"inputs={FOLDER / 'served-inputs.yaml'}", "--set", "name=eagle3")
    greedy = ("--set", "evaluate.sampling.temperature=0")
    document = json.loads(
        home.run("measure", *recipe, *greedy, "--concurrency", "4", "--endpoint", server.url, "--json").out
    )
    assert document["problems"] == []
    rows = pq.read_table(artifact(home, "eagle3", "evaluate") / "answers.parquet").to_pylist()
    for name, part in document["benchmarks"].items():
        found = ours(draft, target, [tuple(row["prompt_ids"]) for row in rows if row["benchmark"] == name])
        assert part["counted_by"] == "round"
        assert (part["rounds"], part["tau_from_tokens"]) == (found.rounds, found.tau_from_tokens)
        assert part["tau"] == found.tau_from_tokens
        low, high = part["tau_from_tokens_ci95"]
        assert low < part["tau_from_tokens"] < high


def is_checked(home: Home, server: Server, draft: Path, folder: Path) -> None:
    """`serve-check` passes with the draft that is served, and finds out a layer that is counted otherwise."""
    asked = ("serve-check", server.url, "--prompts", "12", "--json", "--draft")
    found = json.loads(home.run(*asked, CHAMPION).out)
    assert (found["passed"], found["rule"], found["counted_by"], found["equal"]) == (True, "equal", "round", 12)
    assert found["served"] == found["expected"]
    shifted = folder / "shifted"
    shutil.copytree(draft, shifted)
    config = json.loads((draft / "config.json").read_text())
    ids = [number - 1 for number in config["target_layer_ids"]]
    (shifted / "config.json").write_text(json.dumps({**config, "target_layer_ids": ids}))
    refused = json.loads(home.run(*asked, str(shifted), code=3).out)
    assert (refused["passed"], refused["equal"]) == (False, 12)
    assert refused["served"]["rounds"] != refused["expected"]["rounds"]
    (cause,) = refused["causes"]
    assert "layers one too high" in cause


def is_staged(home: Home, server: Server, draft: Artifact, target: Path, out: Path) -> None:
    """The gate's server is given a candidate, and serves it as it was measured."""
    store = open_store(str(home.path / "store"))
    evaluation = evaluation_for(draft.digest, store)
    wanted = Wanted(f"train/{draft.key[:12]}", draft.digest, draft.directory() / "draft", target, evaluation)
    asked = ServedBy(server.url, target.name, patience_seconds=60.0, concurrency=4)
    found = staged(wanted, asked, vocabulary_of(target), out)
    assert found.passed, found.sentence
    assert found.rounds == found.expected
    assert server.version() == f"train/{draft.key[:12]} {draft.digest[:12]}"


def test_a_champion_is_served_and_changed_while_it_answers(served_home: Home, tmp_path: Path) -> None:
    """Over ten seconds: a real engine is started."""
    home = Home(tmp_path / "home")
    shutil.copytree(served_home.path, home.path, copy_function=shutil.copy2)
    target = served_home.path / "served" / "target"
    first_draft = artifact(home, "eagle3", "train") / "draft"
    prompts = ending_prompts(home, first_draft, target)
    other = other_draft(home)
    first = ours(first_draft, target, prompts)
    second = ours(other.directory() / "draft", target, prompts)
    texts = [tuple(completion.output_ids) for completion in first.completions]
    assert texts == [tuple(completion.output_ids) for completion in second.completions]
    assert first.rounds < second.rounds

    server = Server(home, tmp_path)
    try:
        server.wait_for(lambda: "Following" in server.said)
        assert server.version().startswith("eagle3/1 ")
        assert server.answers(prompts) == (texts, first.rounds)

        with server.asked_meanwhile(prompts) as meanwhile:
            server.wait_for(lambda: len(meanwhile) > 1)
            promote(home, other, "2")
            server.wait_for(lambda: server.version() == f"eagle3/2 {other.digest[:12]}")
            before = len(meanwhile)
            server.wait_for(lambda: len(meanwhile) > before + 3)
        assert meanwhile == [texts] * len(meanwhile)
        assert server.answers(prompts) == (texts, second.rounds)
        listed = json.loads(home.run("models", "followers", "eagle3", "--json").out)
        assert [(row["version"], row["state"]) for row in listed] == [("2", "healthy")]

        home.run("rollback", "eagle3", "--reason", "slower")
        server.wait_for(lambda: server.version().startswith("eagle3/1 "))
        assert server.answers(prompts) == (texts, first.rounds)

        with server.asked_meanwhile(prompts):
            is_measured_as_here(home, server, first_draft, target)
            is_checked(home, server, first_draft, tmp_path)

        here = ("--engine", "vllm", "--endpoint", server.url)
        home.run("pull", f"train/{other.key}", str(tmp_path / "pulled"), *here)
        assert server.answers(prompts) == (texts, second.rounds)
        refusal = home.run("pull", "models:/dspark@champion", str(tmp_path / "pulled"), *here, code=1)
        assert "architectures" in refusal.err
        assert server.answers(prompts) == (texts, second.rounds)

        champion = open_store(str(home.path / "store")).resolve(
            f"train/{artifact(home, 'eagle3', 'train').parent.name}"
        )
        is_staged(home, server, champion, target, tmp_path / "staged")
        assert server.answers(prompts) == (texts, first.rounds)
    finally:
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(120)
    assert code == 0, server.said
    assert server.result["exit_code"] == 0
    with pytest.raises(httpx.ConnectError):
        server.version()
