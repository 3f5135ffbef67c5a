"""`deepspec plan demo` against what the demo's training takes, at its own size: see tests/e2e/test_plan.py."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.demo.config import Config as Inputs
from deepspec.demo.corpus import write_corpus
from deepspec.demo.target import write_target
from deepspec.demo.tokenizer import write_tokenizer
from deepspec.recipe import read_yaml
from deepspec.training.config import TrainingExecution
from tests.campaign.conftest import Record
from tests.e2e.conftest import Home
from tests.e2e.test_plan import WITHIN, check

pytestmark = pytest.mark.campaign


def make_inputs_of_the_demo(folder: Path) -> None:
    """As the demo makes them, but that its target has learnt next to nothing: sizes are what counts here."""
    inputs = Inputs.model_validate(read_yaml("demo-inputs"))
    inputs = inputs.model_copy(update={"train": inputs.train.model_copy(update={"num_steps": 2})})
    write_corpus(inputs, folder / "corpus")
    write_tokenizer(inputs, folder / "corpus", folder / "tokenizer")
    execution = TrainingExecution(device="cpu", num_threads=1)
    work = folder / "work"
    write_target(inputs, folder / "corpus", folder / "tokenizer", folder / "target", work, execution, lambda *_: None)


def test_estimates_for_the_demo_are_what_it_took(tmp_path: Path, record: Record) -> None:
    home = Home(tmp_path)
    make_inputs_of_the_demo(tmp_path / "demo")
    settings = {
        "inputs": "null",
        "data.responses.mode": "keep",
        "train.num_steps": "100",
        "evaluate.max_new_tokens": "16",
        "evaluate.num_calibration_prompts": "16",
        "evaluate.thresholds": "[]",
        "evaluate.load.concurrency": "[]",
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    home.run("run", "demo", *options, code=None, seconds=900)
    check(home, "demo", *options)
    record({"within": WITHIN})


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """How close tokens, bytes and memory of the estimates were at least."""
    return units[0]
