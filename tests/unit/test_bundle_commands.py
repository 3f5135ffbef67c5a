"""The scripts of a bundle, run by a shell with an echo in Python's place: what the engine's Python is called with."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deepspec.bundle.commands import TARGET, engine_commands, scripts
from deepspec.export.engine_files import ACCEPTANCE, DRAFT_LENGTHS, SCHEDULE_FIELD, STEP_RATES, TEMPERATURES

ECHO = "#!/bin/sh\nenv | grep -E '^(VLLM|SGLANG)_'; pwd\nfor word; do echo \"word $word\"; done\n"
RATES = [0.5, 0.25]
CONTENTS: Mapping[str, Any] = {
    ACCEPTANCE: {"chat": RATES, "it's code": [1.0, 0.0]},
    DRAFT_LENGTHS: [[1, 4, 2], [5, 64, 0]],
    TEMPERATURES: {"temperatures": [1.0, 2.0]},
    STEP_RATES: {},
}


class Ran:
    """What came of a script: variables and folder first, the words after."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.err = done.returncode, done.stderr
        lines = done.stdout.splitlines()
        self.words = [line.removeprefix("word ") for line in lines if line.startswith("word ")]
        self.before = lines[: len(lines) - len(self.words)]

    def after(self, flag: str) -> str:
        return self.words[self.words.index(flag) + 1]


def run(folder: Path, script: str, *arguments: str, name: str = TARGET, **given: Any) -> Ran:
    """Write the scripts of a bundle to a folder, and run one of them from another."""
    environment = given.pop("environment", {})
    call = {"weights_format": "vllm", "method": "eagle3", "num_draft_tokens": 2, "contents": CONTENTS, **given}
    (folder / "a bundle" / "serving").mkdir(parents=True)
    for file, text in scripts(engine_commands(target=name, **call), name).items():
        (folder / "a bundle" / "serving" / file).write_text(text)
    (folder / "echo").write_text(ECHO)
    (folder / "echo").chmod(0o755)
    plain = {"PATH": os.environ["PATH"], "PYTHON": str(folder / "echo")} | environment
    command = ["sh", f"a bundle/serving/{script}", *arguments]
    return Ran(subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, check=False))


def test_the_bundle_is_the_draft_and_arguments_are_the_engines(tmp_path: Path) -> None:
    found = run(tmp_path, "vllm.sh", "--port", "8001", "--dtype", "a b", name="org/target", revision="a" * 40)
    assert found.code == 0, found.err
    assert found.before == [str(tmp_path / "a bundle")]
    assert found.words[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "org/target"]
    assert found.after("--revision") == "a" * 40
    assert found.words[-4:] == ["--port", "8001", "--dtype", "a b"]
    speculative = json.loads(found.after("--speculative-config"))
    assert speculative == {
        "method": "eagle3",
        "model": ".",
        "num_speculative_tokens": 2,
        "draft_sample_method": "probabilistic",
        SCHEDULE_FIELD: CONTENTS[DRAFT_LENGTHS],
    }


def test_the_target_is_a_variable(tmp_path: Path) -> None:
    moved = run(tmp_path / "a", "vllm.sh", name="org/target", environment={"TARGET": "/a folder/target"})
    assert moved.after("--model") == "/a folder/target"
    missing = run(tmp_path / "b", "vllm.sh")
    assert missing.code != 0
    assert "TARGET" in missing.err
    assert missing.words == []


def test_dspark_asks_for_the_runner_that_has_it(tmp_path: Path) -> None:
    found = run(tmp_path, "vllm.sh", name="org/target", method="dspark")
    assert found.before[0] == "VLLM_USE_V2_MODEL_RUNNER=1"


def test_capacity_takes_a_domains_acceptance_and_no_weights(tmp_path: Path) -> None:
    found = run(tmp_path / "a", "vllm-capacity.sh", "chat", "--port", "1", name="org/target")
    speculative = json.loads(found.after("--speculative-config"))
    assert speculative["rejection_sample_method"] == "synthetic"
    assert speculative["synthetic_acceptance_rates"] == RATES
    assert speculative["draft_load_config"] == {"load_format": "dummy"}
    assert speculative[SCHEDULE_FIELD] == CONTENTS[DRAFT_LENGTHS]
    assert found.words[-2:] == ["--port", "1"]
    quoted = run(tmp_path / "b", "vllm-capacity.sh", "it's code", name="org/target")
    assert json.loads(quoted.after("--speculative-config"))["synthetic_acceptance_rates"] == [1.0, 0.0]
    for number, arguments in enumerate(([], ["poetry"])):
        unknown = run(tmp_path / f"unknown {number}", "vllm-capacity.sh", *arguments, name="org/target")
        assert unknown.code == 2
        assert "chat, it's code" in unknown.err
        assert unknown.words == []


@pytest.mark.parametrize(
    ("contents", "flags", "variables"),
    [
        ({}, [], 0),
        ({TEMPERATURES: {}}, ["sts"], 0),
        ({STEP_RATES: {}, TEMPERATURES: {}}, ["sts", "sps"], 1),
    ],
)
def test_sglang_is_given_the_files_that_are_there(
    contents: dict[str, Any], flags: list[str], variables: int, tmp_path: Path
) -> None:
    """The table of rates comes with the mode that uses it."""
    found = run(tmp_path, "sglang.sh", name="org/target", weights_format="sglang", method="DSPARK", contents=contents)
    names = [word for word in found.words if word.startswith("--speculative-dspark")]
    assert [one for one in ("sts", "sps") if any(one in name for name in names)] == flags
    assert found.before[:variables] == ["SGLANG_RAGGED_VERIFY_MODE=compact"][:variables]
    assert len(found.before) == variables + 1
