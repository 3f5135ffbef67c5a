"""A training process: `python -m deepspec.training.processes.worker WORK_DIR ATTEMPT`, started by `launch`.

It takes the work directory's lock, builds the job's objective, trains, and writes how it ended to the attempt's files.
SIGTERM, or a launcher that is gone, makes it finish the step, save, and end with `EXIT_STOPPED`.

Torch is imported only once the lock is held: a second launch waits without taking memory.
"""

import logging
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.errors import DeepspecError, LaunchError, RecipeError, StoreFull
from deepspec.file_system import is_out_of_room
from deepspec.training.failure import EXIT_STOPPED, OutOfMemory, write_error, write_json
from deepspec.training.job import TrainJob
from deepspec.training.processes.attempt import Attempt
from deepspec.training.processes.launch import LAUNCHER_VARIABLE, STARTED_VARIABLE
from deepspec.training.processes.lock import WorkLock
from deepspec.usage import counted_so_far

if TYPE_CHECKING:
    from deepspec.training.loop import Outcome
    from deepspec.training.objective import Objective, Placement

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run one attempt; returns the exit code."""
    stop = StopRequest()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    work_dir, name = arguments
    attempt = Attempt(Path(work_dir), name)
    try:
        return _run(attempt, stop)
    except DeepspecError as error:
        logger.exception("Training failed.")
        write_error(attempt.error, error)
        return error.exit_code
    except Exception as error:
        if not is_out_of_room(error):
            _report(attempt, error)
            raise
        logger.exception("Training failed.")
        where = getattr(error, "filename", None) or work_dir
        full = StoreFull("there is no room left.", where=str(where), remedy="Free some space and run again.")
        write_error(attempt.error, full)
        return full.exit_code


def _report(attempt: Attempt, error: Exception) -> None:
    """Write down an unforeseen error of one process among several: torchrun's last words are not about it.

    Of several the first counts: the others fail because their peer is gone.
    """
    if type(error).__name__ == "OutOfMemoryError":
        cause: DeepspecError = OutOfMemory(
            f"no room outside the training steps: {error}",
            remedy="Lower train.num_validation_prompts or run.micro_batch_tokens, or set run.parallel=fsdp.",
        )
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        cause = LaunchError(f"{type(error).__name__}: {error}", where=str(attempt.log), remedy="Run again to resume.")
    else:
        return
    logger.error("Process %s failed.", os.environ.get("RANK", "0"), exc_info=error)
    if not attempt.error.exists():
        write_error(attempt.error, cause)


def _run(attempt: Attempt, stop: "StopRequest") -> int:
    clock = _Clock()
    job = TrainJob.read(attempt.job)
    first = int(os.environ.get("RANK", "0")) == 0
    lock = WorkLock(attempt.work_dir)
    if first and not lock.acquire(job.execution.lease_wait_seconds, give_up=stop.is_set):
        write_json(attempt.result, {"status": "stopped", "steps": 0})
        return EXIT_STOPPED
    clock.lap("interpreter")
    from deepspec.training.checkpoint import Checkpoints
    from deepspec.training.loop import Sharding, fit
    from deepspec.training.metric_stream import MetricFile, NoMetrics
    from deepspec.training.parallel import leave_group

    clock.lap("torch")
    placement = _place(job)
    objective: Objective = job.factory()(job, placement)
    clock.lap("objective")

    def started(step: int) -> None:
        clock.lap("resume")
        if first:
            content = {"pid": os.getpid(), "step": step, "num_steps": objective.num_steps, "seconds": clock.laps}
            write_json(attempt.ready, content)

    outcome = fit(
        objective,
        job.train,
        checkpoints=Checkpoints(attempt.checkpoints, keep=job.execution.keep_checkpoints, identity=job.identity),
        metrics=MetricFile(attempt.metrics) if first else NoMetrics(),
        checkpoint_every_steps=job.execution.checkpoint_every_steps,
        sharding=Sharding(job.execution.num_shards) if job.execution.parallel == "fsdp" else None,
        # Counting tensors would take compiled regions apart, and divided weights are no plain tensors.
        watch_memory=placement.device.type == "cuda" or not (job.execution.compile or job.execution.parallel == "fsdp"),
        stop=stop.is_set,
        started=started,
    )
    if first:
        _finish(job, attempt, objective, outcome, placement.device.type)
    write_json(attempt.counted(os.environ.get("RANK", "0")), counted_so_far())
    leave_group()
    lock.release()
    return 0 if outcome.finished else EXIT_STOPPED


def _place(job: TrainJob) -> "Placement":
    """This process's device and rank; joins the other processes, if there are any."""
    import torch

    from deepspec.training.objective import Placement

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    kind = job.execution.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    elif kind == "cuda" and not torch.cuda.is_available():
        raise RecipeError("run.device is cuda, but torch finds no GPU.", where="run.device", remedy="Take auto or cpu.")
    if kind == "cpu" and job.execution.attention == "flex":
        raise RecipeError(
            "flex attention has no backward on a CPU.", where="run.attention", remedy="Take auto or sdpa."
        )
    if kind == "cuda" and int(os.environ.get("LOCAL_RANK", "0")) >= torch.cuda.device_count():
        raise RecipeError(
            f"{job.execution.num_processes} processes, but {torch.cuda.device_count()} GPUs.",
            where="run.num_processes",
            remedy="One process per GPU.",
        )
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if world_size > 1:
        from deepspec.training.parallel import TIMEOUT

        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    return Placement(device, getattr(torch, job.train.compute_dtype), rank, world_size)


def _finish(job: TrainJob, attempt: Attempt, objective: "Objective", outcome: "Outcome", device: str) -> None:
    state = outcome.state
    result = {
        "status": "done" if outcome.finished else "stopped",
        "steps": state.step,
        "chosen_step": outcome.chosen_step,
        "best_score": state.best_score,
        "resumed_step": outcome.resumed_step,
        "num_tokens": outcome.num_tokens,
        "device": device,
        "memory_bytes": dict(outcome.memory),
    }
    if outcome.finished:
        job.out.mkdir(parents=True, exist_ok=True)
        result |= objective.export(job.out)
    write_json(attempt.result, result)


class StopRequest:
    """Whether this process was asked to stop, or is an orphan."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)
        launcher = os.environ.get(LAUNCHER_VARIABLE)
        self._launcher = None if launcher is None else _Peer(int(launcher))

    def _ask(self, _number: int, _frame: object) -> None:
        self._asked = True

    def is_set(self) -> bool:
        """True from the moment on that training should save and end."""
        if not self._asked and self._launcher is not None and self._launcher.is_gone():
            logger.warning("The launching process is gone: saving.")
            self._asked = True
        return self._asked


class _Peer:
    """Another process, watched by a descriptor of its own where the system has them: numbers are used again."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._gone = False
        self._descriptor: int | None = None
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._gone = True
        except (AttributeError, OSError):
            self._descriptor = None

    def is_gone(self) -> bool:
        """Whether the process has ended."""
        if self._gone:
            return True
        if self._descriptor is not None:
            return bool(select.select([self._descriptor], [], [], 0)[0])
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        return False


class _Clock:
    """Seconds from the launch, by part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = float(os.environ.get(STARTED_VARIABLE, time.time()))

    def lap(self, name: str) -> None:
        now = time.time()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def _end(code: int) -> None:
    """End with `code`; torch, if it was imported at all, is not taken apart (see `end_process`)."""
    if "torch" in sys.modules:
        from deepspec.training.parallel import end_process

        end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
