"""Capturing a target's states with several processes, one per GPU: each makes some of the shards.

What a shard holds does not depend on who makes it, so the files are the same with any number of processes. On a CPU
each process uses all threads that one alone would use, since the number of threads decides how sums are rounded: there,
more processes make nothing faster.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from deepspec.errors import DeepspecError, LaunchError
from deepspec.progress import SILENT, Progress
from deepspec.states.config import Config
from deepspec.states.writer import RunTarget, Survey, gather_shards, is_finished, write_shards
from deepspec.targets.family import TargetSpec


@dataclass(frozen=True)
class TargetPlace:
    """A target that another process can load.

    Args:
        path: its directory.
        layer_ids: layers to capture.
        device: "cpu", or "cuda": then process i takes GPU i, modulo their number.
        dtype: what it computes in.
        num_threads: CPU threads of each process; None: one per core.
    """

    path: Path
    layer_ids: tuple[int, ...]
    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int | None = None


def write_states_in_processes(
    tokens_file: Path,
    out: Path,
    *,
    target: TargetPlace,
    num_processes: int,
    config: Config,
    work: Path,
    batch_tokens: int = 4096,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """As `writer.write_states`, by several processes.

    Args:
        tokens_file, out, config, work, batch_tokens: see there.
        target: what each process loads.
        num_processes: no more are started than there are unfinished shards.
        progress: told tokens, a shard at a time.

    Raises:
        LaunchError: a process died; finished shards stay in `work`.
        DeepspecError: what a process ended with.
    """
    survey = Survey.of(tokens_file, config)
    progress.start(survey.num_tokens, "tokens")
    open_shards = []
    for number in range(survey.places.num_shards):
        if is_finished(work, survey.shard(number)):
            progress.advance(survey.shard(number).num_tokens)
        else:
            open_shards.append(number)
    _capture(survey, work, open_shards, target, num_processes, config, batch_tokens, progress)
    spec = TargetSpec.read(target.path)
    return gather_shards(survey, work, out, layer_ids=target.layer_ids, hidden_size=spec.hidden_size, config=config)


def _capture(
    survey: Survey,
    work: Path,
    numbers: Sequence[int],
    target: TargetPlace,
    num_processes: int,
    config: Config,
    batch_tokens: int,
    progress: Progress,
) -> None:
    """Have the shards `numbers` made, each process every num_processes-th of them."""
    context = get_context("spawn")
    running: dict[connection.Connection, SpawnProcess] = {}
    try:
        for index in range(min(num_processes, len(numbers))):
            receiver, sender = context.Pipe(duplex=False)
            own = list(numbers[index::num_processes])
            arguments = (sender, survey, work, own, target, index, config, batch_tokens)
            process = context.Process(target=_work, args=arguments, daemon=True, name=f"capture-{index}")
            process.start()
            # The child holds the other end: without ours, its death is seen as the end of what can be read.
            sender.close()
            running[receiver] = process
        while running:
            ready = connection.wait(list(running))
            for receiver in [one for one in running if one in ready]:
                _listen(receiver, running, survey, progress)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _listen(
    receiver: connection.Connection,
    running: dict[connection.Connection, SpawnProcess],
    survey: Survey,
    progress: Progress,
) -> None:
    try:
        said = receiver.recv()
    except EOFError as error:
        process = running.pop(receiver)
        process.join()
        raise LaunchError(
            f"{process.name}, which captured states, ended with code {process.exitcode}.",
            where=str(survey.tokens_file),
            remedy="Run again to go on: finished shards are kept. Smaller run.capture_batch_tokens need less memory.",
        ) from error
    if isinstance(said, BaseException):
        raise said
    if said is None:
        running.pop(receiver).join()
    else:
        progress.advance(survey.shard(said).num_tokens)


def _work(
    sender: connection.Connection,
    survey: Survey,
    work: Path,
    numbers: Sequence[int],
    target: TargetPlace,
    index: int,
    config: Config,
    batch_tokens: int,
) -> None:
    """The body of a process: load the target, make shards, tell of each; None at the end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from deepspec.targets.model import Target

    try:
        torch.set_num_threads(target.num_threads or os.cpu_count() or 1)
        device = f"cuda:{index % torch.cuda.device_count()}" if target.device == "cuda" else target.device
        loaded = Target.load(target.path, device=device, dtype=target.dtype, layer_ids=target.layer_ids)
        origin = RunTarget(loaded, batch_tokens)
        for number in numbers:
            write_shards(survey, work, [number], origin=origin, config=config)
            sender.send(number)
        sender.send(None)
    except DeepspecError as error:
        sender.send(error)


def _end_with_parent() -> None:
    """A capture whose run was killed must not go on computing."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
