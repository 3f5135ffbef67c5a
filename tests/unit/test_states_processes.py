"""Capture by several processes: the same files as by one, and nothing finished is lost with a process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.errors import DataError, LaunchError
from deepspec.states.config import Config
from deepspec.states.processes import TargetPlace, write_states_in_processes
from deepspec.states.writer import write_states
from deepspec.targets.model import Target
from tests.fixtures.targets import tiny_qwen3
from tests.unit.test_states_files import VOCAB, content, write_tokens_file

CONFIG = Config(shard_tokens=128, block_tokens=48)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("target"), vocab_size=VOCAB)


def captured(folder: Path, path: Path, num_processes: int, **options: object) -> Path:
    out = folder / f"out-{num_processes}"
    out.mkdir(parents=True)
    write_states_in_processes(
        folder / "train.parquet",
        out,
        target=TargetPlace(path, (-1, 1, 2), num_threads=1),
        num_processes=num_processes,
        config=CONFIG,
        work=folder / f"work-{num_processes}",
        batch_tokens=100,
        **options,  # type: ignore[arg-type]
    )
    return out


def test_any_number_of_processes_writes_the_same_files(tmp_path: Path, path: Path) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    torch.set_num_threads(1)
    (tmp_path / "alone").mkdir()
    target = Target.load(path, layer_ids=(-1, 1, 2))
    write_states(tmp_path / "train.parquet", tmp_path / "alone", target=target, config=CONFIG, batch_tokens=100)
    assert content(captured(tmp_path, path, 4)) == content(tmp_path / "alone")


@pytest.mark.full
def test_what_a_process_finds_wrong_is_told(tmp_path: Path, path: Path) -> None:
    write_tokens_file(tmp_path / "train.parquet")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in path.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"row \d+: the target's layer 1 is not finite at position 0"):
        captured(tmp_path, broken, 2)


@pytest.mark.full
def test_a_killed_process_is_told_and_its_finished_shards_are_kept(tmp_path: Path, path: Path) -> None:
    write_tokens_file(tmp_path / "train.parquet", tuple([60] * 40))

    class Killing:
        """Kills the process once it has told of a shard."""

        def start(self, total: int, unit: str) -> None:
            del total, unit

        def advance(self, amount: int = 1) -> None:
            del amount
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(LaunchError, match="ended with code -9"):
        captured(tmp_path, path, 1, progress=Killing())
    finished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "work-1").glob("states-*.parquet")}
    assert finished
    (tmp_path / "out-1").rename(tmp_path / "before")
    out = captured(tmp_path, path, 1)
    assert {name: (tmp_path / "work-1" / name).stat().st_mtime_ns for name in finished} == finished
    assert content(captured(tmp_path, path, 2)) == content(out)


@pytest.mark.full
def test_processes_end_with_their_parent(tmp_path: Path, path: Path) -> None:
    write_tokens_file(tmp_path / "train.parquet", tuple([60] * 4000))
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from tests.unit.test_states_processes import captured\n"
        "if __name__ == '__main__':\n    captured(Path(sys.argv[1]), Path(sys.argv[2]), 1)\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), str(path)], env={**os.environ, "PYTHONPATH": str(root)}
    )
    work = tmp_path / "work-1"
    deadline = time.monotonic() + 120
    while not list(work.glob("states-*.parquet.json")) and time.monotonic() < deadline:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(1.0)
    before = len(list(work.glob("*.json")))
    time.sleep(1.0)
    assert 0 < len(list(work.glob("*.json"))) == before
