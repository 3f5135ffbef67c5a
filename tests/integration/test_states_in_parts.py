"""States in parts, by Prefect's task runners: the same files with any number of workers, nothing finished is lost."""

import os
import time
import uuid
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from tests.fixtures import command
from tests.fixtures.command import Forked
from tests.fixtures.targets import tiny_qwen3
from tests.unit.test_states_files import VOCAB, write_tokens_file


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("target"), vocab_size=VOCAB)


def start(folder: Path, target: Path, home: Path, *overrides: str) -> tuple[Forked, Path]:
    """A capture that runs, and the file of all that it prints."""
    foreign = ("PREFECT_", "MLFLOW_", "DEEPSPEC_", "AWS_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    arguments = [str(folder), str(target), str(home), *overrides]
    said = folder / f"said-{uuid.uuid4().hex}.txt"
    environment = {**clean, "DEEPSPEC_HOME": str(home)}
    return command.start(arguments, environment, out=said, err=said, module="tests.fixtures.sharded"), said


def captured(folder: Path, target: Path, home: Path, *overrides: str, code: int = 0) -> str:
    """What the capture printed at its end."""
    process, said = start(folder, target, home, *overrides)
    assert process.wait(300) == code, said.read_text()
    return said.read_text().splitlines()[-1]


def content(home: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (home / "out").iterdir()}


@pytest.fixture(scope="module")
def alone(path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one worker makes."""
    folder = tmp_path_factory.mktemp("one")
    write_tokens_file(folder / "train.parquet")
    captured(folder, path, folder / "home")
    return content(folder / "home")


@pytest.mark.full
@pytest.mark.parametrize(("task_runner", "workers"), [("threads", 4), ("processes", 2)])
def test_several_workers_make_the_files_of_one(
    tmp_path: Path, path: Path, alone: dict[str, bytes], task_runner: str, workers: int
) -> None:
    """Real processes, which import torch each."""
    write_tokens_file(tmp_path / "train.parquet")
    captured(tmp_path, path, tmp_path / "home", f"run.num_shard_workers={workers}", f"run.task_runner={task_runner}")
    assert len(alone) > 4
    assert content(tmp_path / "home") == alone


@pytest.mark.full
@pytest.mark.parametrize("task_runner", ["processes"])
def test_what_a_worker_finds_wrong_is_told(tmp_path: Path, path: Path, task_runner: str) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in path.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    options = ("run.num_shard_workers=2", f"run.task_runner={task_runner}")
    said = captured(tmp_path, broken, tmp_path / "home", *options, code=1)
    assert said.startswith("DataError: row ")
    assert all(named in said for named in ("layer 1", "not finite", "position 0"))


@pytest.mark.full
def test_a_killed_worker_is_told_and_a_later_capture_goes_on(tmp_path: Path, path: Path) -> None:
    write_tokens_file(tmp_path / "train.parquet", tuple([60] * 150))
    home, options = tmp_path / "home", ("run.num_shard_workers=2", "run.task_runner=processes")
    work = home / "work" / "capture" / "shards"
    process, said = start(tmp_path, path, home, *options)
    deadline = time.monotonic() + 200
    while not list(work.glob("*.json")):
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The workers are the ones that hold the target.
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert process.wait(300) == 1, said.read_text()
    told = said.read_text().splitlines()[-1]
    assert told.startswith("LaunchError: run.task_runner processes: ")
    finished = {file.name: file.stat().st_mtime_ns for file in work.glob("states-*.parquet.json")}
    captured(tmp_path, path, home, "run.num_shard_workers=2", "run.task_runner=threads")
    assert {name: (work / name).stat().st_mtime_ns for name in finished} == finished
    captured(tmp_path, path, tmp_path / "undisturbed")
    assert content(home) == content(tmp_path / "undisturbed")
