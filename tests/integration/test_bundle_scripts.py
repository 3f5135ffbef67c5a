"""The start scripts of a bundle, each on a real vLLM: what serves as measured, and a capacity test without a draft.

Served answers and rounds are compared with our own decoding, as in test_engines.py. In a capacity test the draft's
folder has no weights, and what is accepted is the table's: the engine draws by the seed and the position of a token, so
the same numbers come out every time.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from deepspec.bundle.commands import TARGET, engine_commands, scripts
from deepspec.bundle.index import read_index
from deepspec.export.engine_files import ACCEPTANCE, DRAFT_LENGTHS
from tests.e2e.conftest import Home
from tests.fixtures.engines import INTERPRETED, PYTHON, QUIET, artifact
from tests.fixtures.engines.measured import MAX_NEW_TOKENS, STOP_ID, Decoded, decoded

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

NUM_PROMPTS = 8
MOST_SECONDS = 300.0
SCHEDULE = [[1, 1, 5], [2, 64, 2]]
NUM_CAPACITY_ANSWERS, CAPACITY_TOKENS = 24, 32
STANDARD_ERRORS = 4.0
"""How far an acceptance may be from the table's: with five positions one in 3,000 tables is further by chance."""
ARGUMENTS = (
    *("--served-model-name", "target", "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "512"),
    *("--enforce-eager", "--max-num-seqs", "64", "--max-num-batched-tokens", "1024"),
    *("--distributed-executor-backend", "uni", "--per-request-spec-decode-metrics", "detailed"),
)
"""Of a small target on a CPU: a user's own arguments follow the script's."""


class Server:
    """A script of a bundle as a process."""

    def __init__(self, bundle: Path, script: str, *arguments: str, target: Path, log: Path, **more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{port}", log
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "PYTHON"))}
        given = {"PYTHON": str(PYTHON), "TARGET": str(target)}
        command = ["sh", str(bundle / "serving" / script), *arguments, *ARGUMENTS, "--port", str(port)]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, env={**clean, **QUIET, **given, **more}, stdout=out, stderr=subprocess.STDOUT
            )

    def ready(self) -> "Server":
        deadline = time.monotonic() + MOST_SECONDS
        while True:
            assert self.process.poll() is None, self._log.read_text()[-5000:]
            assert time.monotonic() < deadline, self._log.read_text()[-5000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=10).status_code == 200:
                    return self
            except httpx.HTTPError:
                time.sleep(0.1)

    def answer(self, prompt: Sequence[int], **fields: Any) -> tuple[tuple[int, ...], list[int]]:
        """An answer, and how many tokens were drafted in each of its rounds."""
        body = {"model": "target", "prompt": list(prompt), "temperature": 0, "return_token_ids": True}
        body |= {"max_tokens": MAX_NEW_TOKENS, "stop_token_ids": [STOP_ID], **fields}
        reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=300).raise_for_status().json()
        (choice,), drafted = reply["choices"], reply["metrics"]["speculative_decoding"]["per_step_drafted"]
        return tuple(choice["token_ids"]), list(drafted or [])

    def at_once(self, prompts: Sequence[Sequence[int]], **fields: Any) -> list[tuple[tuple[int, ...], list[int]]]:
        """The same for several prompts, each with a seed of its own."""
        with ThreadPoolExecutor(len(prompts)) as threads:
            given = [threads.submit(self.answer, one, seed=seed, **fields) for seed, one in enumerate(prompts)]
            return [one.result() for one in given]

    def acceptance(self) -> tuple[int, list[float]]:
        """Rounds, and the share of them in which the first k drafted tokens were all accepted."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        (rounds,) = re.findall(r"^vllm:spec_decode_num_drafts_total\{.*\} (\S+)$", text, re.MULTILINE)
        pattern = r'^vllm:spec_decode_num_accepted_tokens_per_pos_total\{.*position="(\d+)".*\} (\S+)$'
        accepted = {int(place): float(count) for place, count in re.findall(pattern, text, re.MULTILINE)}
        return int(float(rounds)), [accepted[place] / float(rounds) for place in sorted(accepted)]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


@contextmanager
def ended(server: Server) -> Iterator[Server]:
    """For a block, once it answers; it ends by itself on SIGTERM."""
    try:
        yield server.ready()
    finally:
        code = server.end()
    assert code == 0


@pytest.fixture(scope="module")
def home(served_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A copy of the home with drafts for an engine."""
    copy = Home(tmp_path_factory.mktemp("bundles") / "home")
    shutil.copytree(served_home.path, copy.path, copy_function=shutil.copy2)
    return copy


@pytest.fixture(scope="module")
def bundles(home: Home) -> dict[str, Path]:
    """Script -> a bundle's folder, as `export --bundle` wrote it or with less in it."""
    found = {}
    for name in ("dspark", "eagle3"):
        found[name] = home.path / f"{name} bundle"
        home.run("export", f"models:/{name}@champion", "--format", "vllm", "--bundle", "--out", str(found[name]))
    found["lengths"] = shutil.copytree(found["eagle3"], home.path / "with lengths")
    commands = engine_commands("vllm", "eagle3", TARGET, 5, {DRAFT_LENGTHS: SCHEDULE})
    (found["lengths"] / "serving" / "vllm.sh").write_text(scripts(commands, TARGET)["vllm.sh"])
    found["capacity"] = home.path / "without weights"
    shutil.copytree(found["eagle3"] / "serving", found["capacity"] / "serving")
    shutil.copy(found["eagle3"] / "config.json", found["capacity"])
    return found


@pytest.fixture(scope="module")
def servers(
    served_home: Home, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """All started at once: each takes its time to import vLLM."""
    folder, target = tmp_path_factory.mktemp("logs"), served_home.path / "served" / "target"
    found = {
        "lengths": Server(bundles["lengths"], "vllm.sh", target=target, log=folder / "lengths"),
        "dspark": Server(bundles["dspark"], "vllm.sh", target=target, log=folder / "dspark", **INTERPRETED),
        "capacity": Server(
            bundles["capacity"], "vllm-capacity.sh", "arithmetic", target=target, log=folder / "capacity", **INTERPRETED
        ),
    }
    yield found
    for server in found.values():
        if server.process.poll() is None:
            server.end()


def ours(home: Home, name: str) -> Decoded:
    """What we decode of prompts whose answers end by a stop: an engine drafts behind a limit of tokens, too."""
    rows = pq.read_table(artifact(home, name, "evaluate") / "answers.parquet", columns=["turn", "prompt_ids"])
    prompts = [tuple(row["prompt_ids"]) for row in rows.to_pylist() if row["turn"] == 0]
    draft, target = artifact(home, name, "train") / "draft", home.path / "served" / "target"
    return decoded(draft, target, prompts).shortest(NUM_PROMPTS)


def test_a_bundles_script_serves_as_measured(home: Home, servers: dict[str, Server]) -> None:
    """DSpark, as the bundle was written. Over ten seconds: three engines are started, and one is interpreted."""
    expected = ours(home, "dspark")
    with ended(servers["dspark"]) as server:
        found = server.at_once(expected.prompts)
    assert [tokens for tokens, _ in found] == [tuple(one.output_ids) for one in expected.completions]
    assert sum(len(drafted) for _, drafted in found) == expected.rounds
    assert expected.tau_from_tokens > 1.3


def test_draft_lengths_by_batch_size_are_kept(home: Home, servers: dict[str, Server]) -> None:
    """One after the other all five tokens are drafted, in as many rounds as ours; together two, with equal answers."""
    expected = ours(home, "eagle3")
    answers = [tuple(one.output_ids) for one in expected.completions]
    with ended(servers["lengths"]) as server:
        alone = [server.answer(prompt) for prompt in expected.prompts]
        together = server.at_once(expected.prompts)
    assert [tokens for tokens, _ in alone] == answers
    assert {length for _, drafted in alone for length in drafted} == {5}
    assert sum(len(drafted) for _, drafted in alone) == expected.rounds
    assert [tokens for tokens, _ in together] == answers
    assert {length for _, drafted in together for length in drafted} >= {2}


def test_a_capacity_test_has_the_tables_acceptance_without_a_draft(
    servers: dict[str, Server], bundles: dict[str, Path]
) -> None:
    """Within four standard errors at every position; another domain's table is further away."""
    folder = bundles["capacity"]
    assert not list(folder.rglob("*.safetensors"))
    tables: dict[str, list[float]] = json.loads((folder / "serving" / ACCEPTANCE).read_text())
    assert read_index(bundles["eagle3"]).commands.keys() == {"vllm", *(f"vllm-capacity {name}" for name in tables)}
    prompts = [[5 + number, 6, 7, 8] for number in range(NUM_CAPACITY_ANSWERS)]
    with ended(servers["capacity"]) as server:
        found = server.at_once(prompts, ignore_eos=True, stop_token_ids=[], max_tokens=CAPACITY_TOKENS)
        rounds, acceptance = server.acceptance()
    assert {len(tokens) for tokens, _ in found} == {CAPACITY_TOKENS}
    assert rounds > 300
    distances = {name: _distance(acceptance, table, rounds) for name, table in tables.items()}
    assert distances["arithmetic"] < STANDARD_ERRORS, (acceptance, tables["arithmetic"])
    assert distances["chat"] > 2 * STANDARD_ERRORS


def _distance(found: Sequence[float], table: Sequence[float], rounds: int) -> float:
    """The largest difference, in standard errors of a share of so many rounds."""
    both = zip(found, table, strict=True)
    return max(abs(share - rate) / sqrt(max(rate * (1 - rate), 1 / rounds) / rounds) for share, rate in both)
