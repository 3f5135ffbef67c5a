"""Launches: real processes around a toy objective, followed, interrupted, killed, resumed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from deepspec.errors import DataError, DeepspecError, LaunchError, LeaseHeld, RecipeError
from deepspec.training.config import Config, TrainingExecution
from deepspec.training.failure import EXIT_STOPPED, TrainingDiverged, TrainingStopped, read_error, write_error
from deepspec.training.job import TrainJob
from deepspec.training.metric_stream import MetricFile, MetricTail
from deepspec.training.processes.attempt import Attempt, read_json
from deepspec.training.processes.launch import launch
from deepspec.training.processes.lock import WorkLock
from tests.fixtures.command import forked_trainings
from tests.fixtures.refused import refused

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def _toy_is_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        yield


@pytest.fixture
def forked() -> Iterator[None]:
    """Trainings are forked: for tests that are about something else than how an interpreter starts."""
    with forked_trainings():
        yield


class Watcher:
    """Keeps what a launch reports; may act at a step."""

    def __init__(self, at: int = 0, act: Any = None) -> None:
        self.lines: list[tuple[int, str, float, str]] = []
        self.total = 0
        self.done = 0
        self._at, self._act = at, act

    def metrics(self, step: int, name: str, value: float, unit: str) -> None:
        self.lines.append((step, name, value, unit))
        if step == self._at and self._act is not None:
            act, self._act = self._act, None
            act()

    def start(self, total: int, unit: str) -> None:
        assert unit == "steps"
        self.total = total

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def steps(self) -> list[int]:
        return [step for step, name, _, _ in self.lines if name == "loss"]


def job(
    folder: Path, *, processes: int = 1, parallel: str = "ddp", every: int = 5, wait: float = 20.0, **config: Any
) -> TrainJob:
    return TrainJob(
        objective="deepspec.toy:objective",
        config=config,
        train=Config(lr=0.05, validate_every_steps=None),
        execution=TrainingExecution(
            device="cpu",
            num_threads=1,
            num_processes=processes,
            parallel=parallel,
            checkpoint_every_steps=every,
            lease_wait_seconds=wait,
        ),
        out=folder / "out",
        identity="toy",
    )


def run(
    folder: Path, watcher: Watcher | None = None, *, stop: Callable[[], bool] = lambda: False, **arguments: Any
) -> dict[str, Any]:
    watcher = watcher or Watcher()
    return launch(
        job(folder, **arguments),
        work_dir=folder / "work",
        metrics=watcher.metrics,
        progress=watcher,
        stop=stop,
        worker="training_toy",
    )


def result_bytes(folder: Path) -> bytes:
    return (folder / "out/toy.safetensors").read_bytes()


def stopped(folder: Path, name: str = "0001") -> dict[str, Any]:
    """The result of an attempt that ends by itself."""
    for _ in range(200):
        result = read_json(Attempt(folder / "work", name).result)
        if result is not None:
            return result
        time.sleep(0.1)
    raise AssertionError("the training did not end")


class Undisturbed(NamedTuple):
    """A training of one process that nothing happened to."""

    folder: Path
    watcher: Watcher
    result: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Undisturbed]:
    """Such a training whose steps are in so many parts; made once."""

    @cache
    def trained(split: int) -> Undisturbed:
        folder, watcher = tmp_path_factory.mktemp("whole"), Watcher()
        with forked_trainings():
            return Undisturbed(folder, watcher, run(folder, watcher, split=split, every=1000))

    return trained


@pytest.mark.usefixtures("forked")
def test_killed_and_resumed_the_result_is_the_same_to_the_bit(
    tmp_path: Path, undisturbed: Callable[[int], Undisturbed]
) -> None:
    whole, watcher, result = undisturbed(8)
    assert (result["steps"], result["chosen_step"], result["resumed_step"]) == (12, 12, 0)
    assert result["files"] == ["toy.safetensors"]
    assert {"interpreter", "torch", "objective", "resume"} == result["startup_seconds"].keys()
    assert watcher.total == watcher.done == 12
    with refused(LaunchError, "signal 9"):
        run(tmp_path / "parts", every=2, kill_at=7)
    again = Watcher()
    # The one of step 6 may have been on its way.
    assert run(tmp_path / "parts", again, every=2)["resumed_step"] in (4, 6)
    assert result_bytes(tmp_path / "parts") == result_bytes(whole)
    assert again.done == 12
    curves = [[line for line in w.lines if line[1] != "tokens_per_second"] for w in (watcher, again)]
    assert curves[0] == curves[1]
    assert watcher.steps() == list(range(1, 13))


@pytest.mark.usefixtures("forked")
def test_ctrl_c_returns_at_once_and_the_training_saves_by_itself(tmp_path: Path) -> None:
    interrupted = time.monotonic()

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = time.monotonic()
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Watcher(3, interrupt), sleep_seconds=0.3, every=1000)
    finally:
        signal.signal(signal.SIGINT, before)
    returned = time.monotonic() - interrupted
    # The next launch finds the first one still saving, waits for it, and goes on from there.
    result = run(tmp_path, every=1000)
    assert returned < 5  # what is promised for Ctrl-C
    assert result["resumed_step"] == stopped(tmp_path)["steps"] >= 3
    assert stopped(tmp_path)["status"] == "stopped"


def test_an_orphan_saves_and_ends(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    job(tmp_path, sleep_seconds=0.2, every=1000).write(tmp_path / "job.json")
    code = (
        "import sys, pathlib; from deepspec.training.processes.launch import launch; "
        "from deepspec.training.job import TrainJob;"
        "launch(TrainJob.read(pathlib.Path(sys.argv[1])), work_dir=pathlib.Path(sys.argv[2]),"
        " metrics=lambda *_: print('line', flush=True), worker='training_toy')"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "job.json"), str(tmp_path / "work")], stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"line\n"
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    result = stopped(tmp_path)
    assert result["status"] == "stopped"
    assert (tmp_path / f"work/checkpoints/step-{result['steps']:09d}/manifest.json").is_file()


def test_a_training_that_was_stopped_says_so_with_its_exit_code(tmp_path: Path) -> None:
    """Supervisors see nothing else of it."""
    attempt = Attempt.create(tmp_path / "work")
    job(tmp_path, sleep_seconds=0.2, every=1000).write(attempt.job)
    process = subprocess.Popen([sys.executable, "-m", "training_toy", str(attempt.work_dir), attempt.name])
    while read_json(attempt.ready) is None:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == EXIT_STOPPED


@pytest.mark.full  # torchrun and its processes
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(
    tmp_path: Path, undisturbed: Callable[[int], Undisturbed], parallel: str
) -> None:
    watcher = Watcher()
    # Once as a user's are: an interpreter for torchrun, and one for each of its processes.
    with nullcontext() if parallel == "ddp" else forked_trainings():
        # Three parts: one of the processes has two of them.
        result = run(tmp_path / "two", watcher, split=3, processes=2, parallel=parallel)
    assert result["steps"] == 12
    assert watcher.steps() == list(range(1, 13))
    from safetensors.torch import load_file

    one, two = (load_file(folder / "out/toy.safetensors") for folder in (undisturbed(3).folder, tmp_path / "two"))
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-4  # fp32 sums in another order over 12 steps
    assert (tmp_path / "two/work/checkpoints/step-000000010/__1_0.distcp").is_file()


@pytest.mark.full  # three launches
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("before", "after"), [((2, "fsdp"), (1, "ddp")), ((1, "ddp"), (2, "fsdp"))])
def test_a_checkpoint_resumes_on_another_number_of_processes(
    tmp_path: Path, undisturbed: Callable[[int], Undisturbed], before: tuple[int, str], after: tuple[int, str]
) -> None:
    whole, again = undisturbed(2).watcher, Watcher()
    with pytest.raises(LaunchError):
        run(tmp_path / "parts", split=2, every=2, kill_at=7, processes=before[0], parallel=before[1])
    resumed = run(tmp_path / "parts", again, split=2, every=2, processes=after[0], parallel=after[1])
    assert resumed["resumed_step"] in (4, 6)
    assert again.steps() == list(range(1, 13))
    curves = [[value for _, name, value, _ in w.lines if name == "loss"] for w in (whole, again)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)  # fp32 sums in another order


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("config", "kind", "named"),
    [
        ({"nan_at": 2}, TrainingDiverged, ["loss", "nan", "step 3"]),
        ({"crash_at": 1}, LaunchError, ["ZeroDivisionError", "the toy broke"]),
    ],
)
def test_failures_come_back_as_what_they_were(
    tmp_path: Path, config: dict[str, Any], kind: type[DeepspecError], named: list[str]
) -> None:
    with refused(kind, *named):
        run(tmp_path, **config)


@pytest.mark.full
@pytest.mark.usefixtures("forked")
def test_an_error_of_one_of_two_processes_is_told_as_itself(tmp_path: Path) -> None:
    with refused(LaunchError, "ZeroDivisionError", "the toy broke"):
        run(tmp_path, crash_at=1, processes=2)


@pytest.mark.usefixtures("forked")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    wanted = job(tmp_path)
    wanted = wanted.model_copy(update={"execution": wanted.execution.model_copy(update={"device": "cuda"})})
    with refused(RecipeError, "GPU", where="run.device"):
        launch(wanted, work_dir=tmp_path / "work", metrics=Watcher().metrics, worker="training_toy")


@pytest.mark.usefixtures("forked")
def test_somebody_elses_stop_is_an_error_that_says_so(tmp_path: Path) -> None:
    def stop() -> None:
        ready = read_json(Attempt(tmp_path / "work", "0001").ready)
        assert ready is not None
        os.kill(ready["pid"], signal.SIGTERM)

    with refused(LaunchError, "saved at step", "exit code 75"):
        run(tmp_path, Watcher(2, stop), sleep_seconds=0.2, every=1000)


@pytest.mark.usefixtures("forked")
def test_a_training_that_the_caller_ends_is_saved_and_goes_on_to_the_same_bits(
    tmp_path: Path, undisturbed: Callable[[int], Undisturbed]
) -> None:
    """Also where it is to end before its first step."""
    watcher = Watcher()
    with pytest.raises(TrainingStopped) as caught:
        run(tmp_path, watcher, stop=lambda: watcher.done >= 3, split=8, sleep_seconds=0.2, every=1000)
    step = caught.value.step
    assert (caught.value.num_steps, 3 <= step < 12) == (12, True)
    assert stopped(tmp_path)["steps"] == step
    with pytest.raises(TrainingStopped) as caught:
        run(tmp_path, stop=lambda: True, split=8, sleep_seconds=0.2, every=1000)
    assert step <= caught.value.step < 12
    again = run(tmp_path, split=8, every=1000)
    assert again["resumed_step"] == caught.value.step
    assert result_bytes(tmp_path) == result_bytes(undisturbed(8).folder)


def test_a_lock_that_stays_held_is_refused(tmp_path: Path) -> None:
    holder = WorkLock(tmp_path)
    holder.acquire(0)
    with refused(LeaseHeld, f"process {os.getpid()}", where=str(tmp_path)):
        WorkLock(tmp_path).acquire(0.2)
    assert not WorkLock(tmp_path).acquire(10, give_up=lambda: True)
    threading.Timer(0.2, holder.release).start()
    assert WorkLock(tmp_path).acquire(10)


def test_attempts_never_share_a_folder(tmp_path: Path) -> None:
    names = [Attempt.create(tmp_path).name for _ in range(3)]
    assert names == ["0001", "0002", "0003"]


def test_only_complete_lines_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricTail(path)
    assert list(tail.read()) == []
    metrics = MetricFile(path)
    metrics(1, "loss", float("nan"), "nats")
    metrics(1, "lr", 0.5, "1/step")
    mark = metrics.mark()
    with path.open("ab") as file:
        file.write(b'{"step": 2, "na')
    lines = list(tail.read())
    assert [line[:2] for line in lines] == [(1, "loss"), (1, "lr")]
    assert lines[0][2] != lines[0][2]
    metrics.rewind(mark)
    metrics(2, "loss", 1.0, "nats")
    metrics.close()
    assert list(tail.read()) == [(2, "loss", 1.0, "nats")]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 1, 2]


def test_errors_survive_as_json_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    write_error(path, DataError("What.", where="here:3", remedy="Do."))
    error = read_error(path)
    assert isinstance(error, DataError)
    assert (str(error), error.where) == ("here:3: What. Do.", "here:3")
    assert read_error(tmp_path / "none.json") is None
    for text in (
        "{",
        '{"class": "os:system", "state": {"what": "ls"}}',
        '{"class": "deepspec.config:Section", "state": {"what": ""}}',
    ):
        path.write_text(text)
        assert read_error(path) is None


@pytest.mark.parametrize("name", ["os:system", "deepspec.training", "deepspec.training.loop:_Fit", "deepspec/x:y"])
def test_objectives_come_from_inside_the_house(name: str) -> None:
    with pytest.raises(ValueError, match="objective"):
        TrainJob(objective=name, config={}, train=Config(), out=Path("out"))


def test_an_unknown_objective_is_named() -> None:
    for name in ("deepspec.nowhere:objective", "deepspec.training.job:nothing"):
        with refused(LaunchError, name.partition(":")[0], where=name):
            TrainJob(objective=name, config={}, train=Config(), out=Path("out")).factory()
