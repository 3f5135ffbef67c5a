"""Starts training processes, follows them, and brings back how they ended.

The caller never holds a model or a GPU. One process runs as a plain child: torchrun would add an interpreter that
imports torch only to start another one (2.5 s of a short run on two cores). Several run under torchrun. Either way the
child has a session of its own, so that Ctrl-C reaches only the caller, which asks the child to stop and returns at
once; the child saves and ends by itself, also when it finds its launcher gone.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepspec.errors import LaunchError
from deepspec.progress import SILENT, MetricSink, Progress
from deepspec.training.failure import EXIT_STOPPED, TrainingStopped, read_error
from deepspec.training.job import TrainJob
from deepspec.training.metric_stream import MetricTail
from deepspec.training.processes.attempt import Attempt, read_json
from deepspec.usage import count

LAUNCHER_VARIABLE = "DEEPSPEC_LAUNCHER_PID"
STARTED_VARIABLE = "DEEPSPEC_LAUNCHED_AT"
_POLL_SECONDS = 0.1
_LAST_LINES = 15


def launch(
    job: TrainJob,
    *,
    work_dir: Path,
    metrics: MetricSink,
    progress: Progress = SILENT,
    stop: Callable[[], bool] = lambda: False,
    worker: str = "deepspec.training.processes.worker",
) -> dict[str, Any]:
    """Train `job` in processes of its own, resuming what an earlier launch in `work_dir` left.

    Args:
        job: what to train; the result is written to `job.out`.
        work_dir: checkpoints, metrics and logs; one per job, created.
        metrics: given every line of the training, also those from before a resume, exactly once.
        progress: advances by optimizer steps.
        stop: asked while it trains; once true, the training ends its step, saves and ends.
        worker: the module that is run.

    Returns:
        `steps`, `chosen_step`, `best_score`, `resumed_step`, `num_tokens`, `seconds`, `startup_seconds` by part, and
        what the objective's `export` says.

    Raises:
        TrainingStopped: `stop` said so.
        LaunchError: the processes could not be started, died, or were stopped from outside.
        DeepspecError: what they ended with, as the class it was.
        KeyboardInterrupt: at once; the training saves and ends by itself.
    """
    start = time.monotonic()
    attempt = Attempt.create(work_dir.absolute())
    job.model_copy(update={"out": job.out.absolute()}).write(attempt.job)
    child = _start(job, attempt, worker)
    follower = _Follower(attempt, metrics, progress)
    stopping = False
    try:
        while child.poll() is None:
            follower.look()
            if not stopping and follower.is_training and stop():
                stopping = True
                _ask_to_stop(child, attempt)
            try:
                child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        follower.look()
        _take_over_counts(attempt)
    finally:
        if child.poll() is None:
            _ask_to_stop(child, attempt)
    return {**_result(child.returncode, attempt, stopping=stopping), "seconds": round(time.monotonic() - start, 3)}


class _Follower:
    """Passes on what the training reports."""

    def __init__(self, attempt: Attempt, metrics: MetricSink, progress: Progress) -> None:
        self._attempt = attempt
        self._metrics = metrics
        self._progress = progress
        self._tail = MetricTail(attempt.metrics)
        self._step: int | None = None

    @property
    def is_training(self) -> bool:
        """Whether the first step has begun: from then on a signal makes it save."""
        return self._step is not None

    def look(self) -> None:
        if self._step is None:
            # Before that, the stream may hold lines that the training is about to take back.
            ready = read_json(self._attempt.ready)
            if ready is None:
                return
            self._step = int(ready["step"])
            self._progress.start(int(ready["num_steps"]), "steps")
            self._progress.advance(self._step)
        for step, name, value, unit in self._tail.read():
            self._metrics(step, name, value, unit)
            if step > self._step:
                self._progress.advance(step - self._step)
                self._step = step


def _start(job: TrainJob, attempt: Attempt, worker: str) -> "subprocess.Popen[bytes]":
    count = job.execution.num_processes
    threads = job.execution.num_threads or max(1, _num_cores() // count)
    command = [sys.executable]
    if count > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command += ["--max-restarts", "0", "--monitor-interval", "0.1"]
    command += ["-m", worker, str(attempt.work_dir), attempt.name]
    environment = {
        # A waiting thread spins 300,000 times by default. Measured on two cores with other work: a training step took
        # 3 times the CPU time and 2.7 times as long as with 1,000, what OpenMP itself chooses when threads outnumber
        # cores.
        "GOMP_SPINCOUNT": "1000",
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        LAUNCHER_VARIABLE: str(os.getpid()),
        STARTED_VARIABLE: str(time.time()),
    }
    try:
        with attempt.log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise LaunchError(
            f"the training process could not be started: {error}",
            where=command[0],
            remedy="Check that Python can be run there.",
        ) from error


def _num_cores() -> int:
    """Cores that this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _take_over_counts(attempt: Attempt) -> None:
    """Count what the training processes asked of object storage as this process's own."""
    for path in sorted(attempt.path.glob(attempt.counted("*").name)):
        for name, number in (read_json(path) or {}).items():
            count(name, int(number))


def _ask_to_stop(child: "subprocess.Popen[bytes]", attempt: Attempt) -> None:
    ready = read_json(attempt.ready)
    # torchrun would give its processes 30 s and then kill them, in the middle of a long save; the first training
    # process, asked directly, stops all of them after saving.
    try:
        os.kill(child.pid if ready is None else int(ready["pid"]), signal.SIGTERM)
    except ProcessLookupError:
        return


def _result(code: int, attempt: Attempt, *, stopping: bool) -> dict[str, Any]:
    error = read_error(attempt.error)
    if error is not None:
        raise error
    result = read_json(attempt.result)
    if result is None:
        raise LaunchError(_exit_message(code, attempt), where=str(attempt.log), remedy="Run again to resume.")
    ready = read_json(attempt.ready) or {}
    is_done = result.pop("status") == "done"
    if stopping and not is_done:
        stopped = TrainingStopped(
            f"the training was asked to stop, and saved at step {result['steps']}.",
            where=str(attempt.log),
            remedy="Run again to resume.",
        )
        stopped.step, stopped.num_steps = int(result["steps"]), int(ready["num_steps"])
        raise stopped
    if not is_done:
        raise LaunchError(
            f"the training was asked to stop, and saved at step {result['steps']} (exit code {EXIT_STOPPED}).",
            where=str(attempt.log),
            remedy="Run again to resume.",
        )
    return {**result, "startup_seconds": ready.get("seconds", {})}


def _exit_message(code: int, attempt: Attempt) -> str:
    how = f"ended with code {code}"
    if code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        if -code == signal.SIGKILL:
            how += ", perhaps because the machine ran out of memory"
    lines = attempt.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    return "\n  ".join([f"the training process {how}. Its last words:", *(lines or ["(none)"])])
