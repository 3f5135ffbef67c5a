"""The device is never waited for between micro-batches, and processes exchange no objects between steps."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.drafts import ALGORITHMS
from deepspec.training.checkpoint import Checkpoints
from deepspec.training.draft_objective import objective
from deepspec.training.loop import fit
from deepspec.training.metric_stream import NoMetrics
from deepspec.training.objective import Placement
from deepspec.training.parallel import NamedSums
from tests.fixtures.algorithms import small_config
from tests.fixtures.readings import readings
from tests.fixtures.training import LAYERS, draft_training, write_inputs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def read_in(inputs: Path, folder: Path, algorithm: str, *, captured: bool, budget: int, num_steps: int) -> int:
    """What a training reads back from its device."""
    draft = small_config(ALGORITHMS[algorithm], target_layer_ids=LAYERS, mask_token_id=60)
    job = draft_training(
        inputs,
        folder,
        draft=draft,
        captured=captured,
        execution={"micro_batch_tokens": budget},
        num_steps=num_steps,
        num_documents_per_step=4,
    )
    what = objective(job, Placement(torch.device("cpu"), torch.float32))
    assert len(what.micro_batches(0)) == (4 if budget == 1 else 1)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, identity="draft")
    with readings() as found:
        fit(what, job.train, checkpoints=checkpoints, metrics=NoMetrics())
    return found.total()


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "live"])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_step_reads_back_once_however_many_micro_batches_it_has(
    inputs: Path, tmp_path: Path, algorithm: str, *, captured: bool
) -> None:
    for budget in (1, 10_000):
        found = [
            read_in(inputs, tmp_path, algorithm, captured=captured, budget=budget, num_steps=steps) for steps in (1, 3)
        ]
        assert found[1] - found[0] == 2, budget


def test_readings_are_counted() -> None:
    numbers = torch.arange(4.0)
    with readings() as found:
        numbers.sum().item()
        float(numbers[0])
        numbers[numbers > 1]
        numbers.nonzero()
        numbers[numbers.long()].sum().tolist()
    assert found.total() == 5


EXCHANGES = """
import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, "tests/unit")
from training_toy import Toy

from deepspec.training.checkpoint import Checkpoints
from deepspec.training.config import Config
from deepspec.training.loop import fit
from deepspec.training.metric_stream import NoMetrics

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
count = 0

def counted(exchange):
    def call(*arguments, **named):
        global count
        count += 1
        return exchange(*arguments, **named)
    return call

for name in [name for name in vars(dist) if "object" in name and callable(getattr(dist, name))]:
    setattr(dist, name, counted(getattr(dist, name)))
config = Config(lr=0.05, validate_every_steps=None)
for steps in (2, 7):
    before = count
    checkpoints = Checkpoints(folder / f"{steps}", keep=1, identity="toy")
    # One micro-batch: the second process has none, and learns the names from the first.
    outcome = fit(Toy(num_steps=steps, rank=rank, world_size=2), config, checkpoints=checkpoints, metrics=NoMetrics())
    print(count - before, outcome.num_tokens)
dist.barrier()
dist.destroy_process_group()
"""


def test_no_objects_are_exchanged_between_steps(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", EXCHANGES, str(tmp_path), str(rank)] for rank in (0, 1)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) for command in commands]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        (few, tokens), (many, more_tokens) = (map(int, line.split()) for line in out.splitlines())
        assert few == many > 0
        assert (tokens, more_tokens) == (2 * 8, 7 * 8)


def test_a_name_that_was_not_agreed_on_is_refused() -> None:
    sums = NamedSums()
    assert sums.add({"a": 1.0, "b": 2.0}) == {"a": 1.0, "b": 2.0}
    with pytest.raises(ValueError, match="c is not one"):
        sums.add({"a": 1.0, "c": 2.0})
