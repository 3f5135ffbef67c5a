"""`deepspec demo` as a newcomer starts it, from nothing, with three seeds of everything that is drawn.

A unit takes about six minutes of two quiet cores. What it measures in seconds, the speedup too, is a
figure and decides nothing.
"""

import json
import os
import pty
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deepspec.demo.corpus import read_conversations
from deepspec.recipe import read_yaml
from deepspec.yaml import dumps
from tests.campaign.conftest import Record
from tests.e2e.conftest import Home

pytestmark = pytest.mark.campaign

CASES = [(0, False), (1, False), (2, True)]
"""Seeds, and whether that one's output is a terminal."""


def inputs_with(seed: int, folder: Path) -> Path:
    """The demo's description of its inputs, whose target starts from and is trained with another seed.

    The corpus stays: of another draw too few prompts may be held out.
    """
    inputs = read_yaml("demo-inputs")
    inputs["train"]["seed"] = seed
    file = folder / "inputs.yaml"
    file.write_text(dumps(inputs))
    return file


def seeded(seed: int, folder: Path) -> list[str]:
    """The options of `demo` that let everything be drawn with a seed; the demo's own is 0."""
    if seed == 0:
        return []
    fields = ("data.seed", "data.responses.seed", "train.seed", "evaluate.seed", "evaluate.sampling.seed")
    settings = {"inputs": inputs_with(seed, folder), **dict.fromkeys(fields, seed)}
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def times_of_output(command: list[str], environment: dict[str, str], *, terminal: bool) -> tuple[list[float], str]:
    """Run a command; seconds from its start to each piece of its output and to its end, and the output."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    begun = time.monotonic()
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        times, output = [], b""
        while piece := read(ours):
            times.append(time.monotonic() - begun)
            output += piece
        os.close(ours)
    text = output.decode()
    assert process.returncode == 0, text
    return [*times, time.monotonic() - begun], text


def read(stream: int) -> bytes:
    """What comes next; nothing at the end, which a terminal tells by an error."""
    try:
        return os.read(stream, 65536)
    except OSError:
        return b""


def processor_seconds() -> float:
    """Of all processes that this one has waited for, and of those that they have."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("seed", "terminal"), CASES)
def test_the_demo_from_nothing(tmp_path: Path, record: Record, seed: int, *, terminal: bool) -> None:
    home = Home(tmp_path / "home")
    command = [sys.executable, "-m", "flows.cli.main", "demo", *seeded(seed, tmp_path)]
    before = processor_seconds()
    times, _ = times_of_output(command, home.environment(), terminal=terminal)
    run = home.record()
    evaluation = run["evaluation"]
    tau = {kind: round(found["tau"], 2) for kind, found in evaluation["benchmarks"].items()}
    assert min(tau.values()) > 3
    check_held_out(home.path / "demo" / "corpus")
    record(
        {
            "seed": seed,
            "terminal": terminal,
            "tau": tau,
            "macro_tau": round(evaluation["macro"]["tau"], 2),
            "speedup": round(evaluation["macro"]["speedup"], 2),
            "seconds": round(times[-1]),
            "processor_seconds": round(processor_seconds() - before),
            "first_line_seconds": round(times[0], 2),
            "longest_silence_seconds": round(max(later - earlier for earlier, later in pairwise(times)), 2),
            "stages": {stage["name"]: round(stage["seconds"], 1) for stage in run["stages"]},
        }
    )


def check_held_out(corpus: Path) -> None:
    """No prompt that is measured on was seen by the target or by the draft."""
    seen = {
        row.prompt
        for name in ("conversations.jsonl", "target-training.jsonl")
        for row in read_conversations(corpus / name)
    }
    asked = {
        json.loads(line)["turns"][0]
        for file in (corpus / "benchmarks").iterdir()
        for line in file.read_text().splitlines()
    }
    assert len(seen) > 1000
    assert len(asked) >= 90
    assert not seen & asked


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """What each seed came to."""
    return {f"seed {unit['seed']}": unit for unit in sorted(units, key=lambda unit: int(unit["seed"]))}
