"""A real draft's training, killed at random moments, ends with the very weights of one that was not: three kills here,
twenty in `make campaign PART=kills`."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Home
from tests.fixtures.command import forked_trainings

pytestmark = pytest.mark.full

MOST_STEPS = 75
LAUNCH = """
import pathlib, sys
from deepspec.training.job import TrainJob
from deepspec.training.processes.launch import launch

job, work = map(pathlib.Path, sys.argv[1:])
lines = open(work.parent / "lines.txt", "w", buffering=1)
launch(TrainJob.read(job), work_dir=work, metrics=lambda step, name, value, unit: print(step, name, value, file=lines))
"""


def write_job(home: Home, folder: Path, num_steps: int) -> Path:
    """The training of the tiny recipe's draft, much longer."""
    from deepspec.recipe import load_recipe
    from deepspec.training.draft_objective import draft_job

    recipe = load_recipe("tiny", ["train.validate_every_steps=null", f"train.num_steps={num_steps}"])
    execution = recipe.run.model_copy(update={"num_threads": 1, "checkpoint_every_steps": 25, "device": "cpu"})
    job = draft_job(
        recipe.draft,
        recipe.train,
        execution,
        states=home.artifact_file("states", "states.json").parent,
        tokens=home.artifact_file("tokens", "train.parquet").parent,
        target=home.path / "tiny" / "target",
        target_dtype="float32",
        out=folder / "draft",
        identity="kills",
    )
    folder.mkdir()
    job.write(folder / "job.json")
    return folder / "job.json"


def start(job: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", LAUNCH, str(job), str(job.parent / "work")])


def finish(job: Path) -> None:
    """Train to the end, undisturbed."""
    from deepspec.training.job import TrainJob
    from deepspec.training.processes.launch import launch

    with forked_trainings(), (job.parent / "lines.txt").open("w") as lines:

        def note(step: int, name: str, value: float, unit: str) -> None:
            print(step, name, value, file=lines)

        launch(TrainJob.read(job), work_dir=job.parent / "work", metrics=note)


def begun(job: Path) -> list[Path]:
    """What the attempts wrote that came as far as their first step."""
    return sorted((job.parent / "work" / "attempts").glob("*/ready.json"))


def reached(job: Path) -> int:
    """The step whose loss was reported last."""
    file = job.parent / "lines.txt"
    lines = file.read_text().splitlines()[:-1] if file.exists() else []  # the last may be cut
    return int(lines[-1].split()[0]) if lines else 0


def wait_for_training(job: Path, launcher: "subprocess.Popen[bytes]", num_steps: int) -> None:
    """Until this attempt has made so many steps more than all before it."""
    before, wanted = len(begun(job)), reached(job) + num_steps
    while len(begun(job)) == before or reached(job) < wanted:
        assert launcher.poll() is None, "the training ended before it could be killed"
        time.sleep(0.02)


def kill_all(launcher: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for the launcher and everything below it, the training process in its own session included."""
    processes = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=30)


def killed_and_resumed(
    cold: Home, folder: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int, num_kills: int, num_steps: int
) -> list[int]:
    """Train once undisturbed and once with kills, compare all that is left; the steps at which attempts went on."""
    monkeypatch.setenv("DEEPSPEC_HOME", str(cold.path))
    whole, parts = (write_job(cold, folder / name, num_steps) for name in ("whole", "parts"))
    finish(whole)
    moments = random.Random(seed)
    for number in range(num_kills):
        launcher = start(parts)
        if number % 4:  # the others may be killed while they start
            wait_for_training(parts, launcher, moments.randint(0, MOST_STEPS))
        time.sleep(moments.uniform(0.0, 0.5 if number % 4 else 4.0))
        assert launcher.poll() is None, "the training ended before it could be killed"
        kill_all(launcher)
    finish(parts)
    resumed = [int(json.loads(file.read_text())["step"]) for file in begun(parts)]
    assert resumed[-1] > 0  # it did not simply start from nothing
    assert resumed == sorted(resumed)
    drafts = [(path.parent / "draft" / "model.safetensors").read_bytes() for path in (whole, parts)]
    assert drafts[0] == drafts[1]
    curves = [
        [line for line in (path.parent / "lines.txt").read_text().splitlines() if "tokens_per_second" not in line]
        for path in (whole, parts)
    ]
    assert curves[0] == curves[1]
    steps = [int(line.split()[0]) for line in curves[0] if line.split()[1] == "loss"]
    assert steps == list(range(1, num_steps + 1))
    return resumed


def test_kills_change_no_bit(cold: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three starts of a training process are killed, one of them while it starts; two go to the end."""
    killed_and_resumed(cold, tmp_path, monkeypatch, seed=0, num_kills=3, num_steps=300)


def test_a_run_that_is_killed_in_training_and_resumed_is_paid_for_once(warm: Home) -> None:
    """Two runs of a longer training (60 s): processes are stopped before they are killed, so that what the kernel says
    they used is what they used; only what came after the last account may be missing."""
    longer = ["run", "tiny", "--set", "train.num_steps=1000", "--set", "train.validate_every_steps=null"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.main", *longer],
        env=warm.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    accounts = warm.path / "store" / "leases" / "paid"
    while not (found := list(accounts.glob("*/*.json"))):
        assert launcher.poll() is None, "the training ended before it could be killed"
        time.sleep(0.05)
    processes = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    for process in processes:
        process.suspend()
    used = sum(process.cpu_times().user + process.cpu_times().system for process in processes)
    account = json.loads(found[0].read_text())
    kill_all(launcher)
    launcher.wait()
    warm.run(*longer, code=None)
    resumed = warm.record()

    month = f"{resumed['run_id'][:4]}-{resumed['run_id'][4:6]}"
    total = json.loads(warm.run("cost", "--month", month, "--by", "stage", "--json").out)
    records = [json.loads(path.read_text()) for path in (warm.path / "runs").glob("*/run.json")]
    assert [record["status"] for record in records].count("interrupted") == 1
    [killed] = [record for record in records if record["status"] == "interrupted"]
    assert account["cpu_seconds"] - 0.1 <= killed["cost"]["cpu_seconds"] <= used + 0.1
    assert total["total"]["num_runs"] == len(records) == 3
    summed = sum(record["cost"]["cpu_seconds"] for record in records)
    assert total["total"]["cost"]["cpu_seconds"] == pytest.approx(summed, abs=1e-6)

    [training] = [stage for stage in resumed["stages"] if stage["name"] == "train"]
    made = json.loads(warm.run("cost", f"train/{training['key']}", "--json").out)
    attempts = [(row["run"], row["finished"]) for row in made["attempts"] if row["stage"] == "train"]
    assert attempts == [(killed["run_id"], False), (resumed["run_id"], True)]
    cold = next(record for record in records if record["run_id"] not in (killed["run_id"], resumed["run_id"]))
    [first] = [stage for stage in cold["stages"] if stage["name"] == "train"]
    by_artifact = sum(row["cost"]["cpu_seconds"] for row in made["attempts"] if row["stage"] == "train")
    by_run = next(group for group in total["groups"] if group["name"] == "train")["cost"]["cpu_seconds"]
    assert by_run == pytest.approx(first["cost"]["cpu_seconds"] + by_artifact, abs=0.002)
