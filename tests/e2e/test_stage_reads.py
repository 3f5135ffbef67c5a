"""A stage reads what it declares, and how a run is executed changes no byte of what it makes."""

import inspect
import json
from typing import Any, NamedTuple

import pytest

from deepspec.store import open_store
from flows import demo_inputs, retrain
from tasks.runtime.stage import Stage
from tests.e2e.conftest import Home
from tests.fixtures.command import call

pytestmark = pytest.mark.full  # a run from nothing

STAGES = {item.name: item for flow in (demo_inputs, retrain) for item in vars(flow).values() if isinstance(item, Stage)}
BY_INPUT = {"benchmarks": ("evaluate.benchmarks", "evaluate.seed")}
"""Input -> fields that its fingerprint stands for (`tasks/resolve.py`: benchmarks_of)."""

OTHERWISE: dict[str, Any] = {
    "num_threads": 2,
    "recompute_activations": True,
    "checkpoint_every_steps": 3,
    "keep_checkpoints": 1,
    "lease_wait_seconds": 61.0,
    "generation_rows": 5,
    "evaluation_rows": 3,
    "decoding_threads": 1,
    "shard_workers": 2,
}
"""Other values of fields of `run:`, for the whole run from nothing.

Two are missing, which change rounding as long as what is computed together has no fixed shape: `capture_batch_tokens`
and `micro_batch_tokens`.
"""


class Otherwise(NamedTuple):
    """A run from nothing that was executed in another way: its home, and what each stage read."""

    home: Home
    reads: dict[str, list[str]]


@pytest.fixture(scope="module")
def otherwise(tmp_path_factory: pytest.TempPathFactory) -> Otherwise:
    folder = tmp_path_factory.mktemp("otherwise")
    home = Home(folder / "home")
    settings = [word for name, value in OTHERWISE.items() for word in ("--set", f"run.{name}={json.dumps(value)}")]
    done = call(
        [str(folder / "reads.json"), "run", "tiny", *settings],
        home.environment(),
        module="tests.fixtures.recorded_reads",
    )
    assert done.returncode == 0, done.stderr
    return Otherwise(home, json.loads((folder / "reads.json").read_text()))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_what_it_declares(otherwise: Otherwise, name: str) -> None:
    stage = STAGES[name]
    inputs = list(inspect.signature(stage.function).parameters)[2:]
    declared = [*stage.reads, *(path for parent in inputs for path in BY_INPUT.get(parent, ()))]
    within = [path for path in otherwise.reads[name] for known in declared if f"{path}.".startswith(f"{known}.")]
    assert set(otherwise.reads[name]) - set(within) == set()


def test_the_recorder_sees_what_stages_read(otherwise: Otherwise) -> None:
    assert otherwise.reads.keys() == STAGES.keys()
    assert {"train.lr", "train.seed", "draft.num_draft_tokens"} <= set(otherwise.reads["train"])
    assert {"data.seed", "data.splits.gate"} <= set(otherwise.reads["conversations"])
    assert "data.responses.temperature" in otherwise.reads["responses"]
    assert all(not path.startswith("run.") for paths in otherwise.reads.values() for path in paths)


REPEATABLE = ("demo_corpus", "demo_tokenizer", "demo_target", "conversations", "responses", "tokens", "states", "train")
"""Stages whose bytes say nothing of when, where and how fast they were made."""


@pytest.mark.parametrize("name", REPEATABLE)
def test_how_a_run_is_executed_changes_no_byte(cold: Home, otherwise: Otherwise, name: str) -> None:
    digests = [
        [item.digest for item in open_store(str(home.path / "store")).artifacts(name)]
        for home in (cold, otherwise.home)
    ]
    assert digests[0] == digests[1]
