"""States in parts, by Prefect's task runners: the same files with any number of workers, nothing finished is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from tests.fixtures.targets import tiny_qwen3
from tests.unit.test_states_files import VOCAB, write_tokens_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("target"), vocab_size=VOCAB)


def start(folder: Path, target: Path, home: Path, *overrides: str) -> "subprocess.Popen[str]":
    foreign = ("PREFECT_", "MLFLOW_", "DEEPSPEC_", "AWS_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    arguments = [str(folder), str(target), str(home), *overrides]
    command = [sys.executable, "-m", "tests.fixtures.sharded", *arguments]
    options = {"cwd": ROOT, "env": {**clean, "DEEPSPEC_HOME": str(home)}, "text": True}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def captured(folder: Path, target: Path, home: Path, *overrides: str, code: int = 0) -> str:
    """What the capture printed at its end."""
    with start(folder, target, home, *overrides) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out.splitlines()[-1]


def content(home: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (home / "out").iterdir()}


@pytest.mark.full
@pytest.mark.parametrize("task_runner", ["threads", "processes"])
def test_one_and_four_workers_make_the_same_files(tmp_path: Path, path: Path, task_runner: str) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    captured(tmp_path, path, tmp_path / "one")
    captured(tmp_path, path, tmp_path / "four", "run.shard_workers=4", f"run.task_runner={task_runner}")
    assert len(content(tmp_path / "one")) > 4
    assert content(tmp_path / "one") == content(tmp_path / "four")


@pytest.mark.full
@pytest.mark.parametrize("task_runner", ["threads", "processes"])
def test_what_a_worker_finds_wrong_is_told(tmp_path: Path, path: Path, task_runner: str) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in path.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    options = ("run.shard_workers=2", f"run.task_runner={task_runner}")
    said = captured(tmp_path, broken, tmp_path / "home", *options, code=1)
    assert said.startswith("DataError: row ")
    assert "the target's layer 1 is not finite at position 0" in said


@pytest.mark.full
def test_a_killed_worker_is_told_and_a_later_capture_goes_on(tmp_path: Path, path: Path) -> None:
    write_tokens_file(tmp_path / "train.parquet", tuple([60] * 400))
    home, options = tmp_path / "home", ("run.shard_workers=2", "run.task_runner=processes")
    work = home / "work" / "capture" / "shards"
    with start(tmp_path, path, home, *options) as process:
        deadline = time.monotonic() + 200
        while not list(work.glob("*.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # The workers are the ones that hold the target.
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        workers[0].kill()
        out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert out.splitlines()[-1].startswith("LaunchError: run.task_runner processes: A worker of states part failed")
    finished = {file.name: file.stat().st_mtime_ns for file in work.glob("states-*.parquet.json")}
    captured(tmp_path, path, home, *options)
    assert {name: (work / name).stat().st_mtime_ns for name in finished} == finished
    captured(tmp_path, path, tmp_path / "undisturbed")
    assert content(home) == content(tmp_path / "undisturbed")
