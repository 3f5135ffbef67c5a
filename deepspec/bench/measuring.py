"""How benches measure: alternating runs for time, a process of its own for each side's peak memory.

Seconds on a shared machine drift; sides that take turns drift together, so that the ratio of their medians holds. Peak
memory is what a run needs above what was there before it: parameters, inputs and preallocated gradients are not in it.
"""

import argparse
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from deepspec.errors import DeepspecError, RecipeError

Sizes = TypeVar("Sizes")

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16})
"""What inputs may be in, by the names of options."""
_PEAKS = 3

Run = Callable[[], Any]
"""One run of one side; what it returns is dropped."""


def prepare_device(device: str, threads: int | None) -> None:
    """Check that `device` is here, and compute with this many threads (None leaves torch's own choice).

    Raises:
        RecipeError: it is not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"there is no device {device!r} ({error}).", where="--device", remedy="Name cpu, cuda or cuda:<number>."
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)


def usual_dtype(device: str) -> str:
    """A name in DTYPES: what is trained in there."""
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"


def positive(text: str) -> int:
    """A number of at least 1, from a command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def finish(device: str) -> None:
    """Wait until `device` has done all it was asked to."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def alternate(sides: Mapping[str, Run], *, repeat: int, device: str) -> dict[str, list[float]]:
    """Seconds of each side's runs; the sides take turns, and each has run once before the clock starts.

    Args:
        sides: by name.
        repeat: how often each is timed.
        device: where they compute.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeat + 1):
        for name, run in sides.items():
            gc.collect()
            finish(device)
            start = time.perf_counter()
            run()
            finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_peaks(
    prepare: Callable[[Sizes, str], Run],
    sizes: Sizes,
    warm_up: Sizes,
    sides: Sequence[str],
    *,
    repeat: int,
    device: str,
) -> dict[str, int]:
    """Medians of up to three `extra_peak_bytes` of each side: what an allocator keeps differs between processes."""
    found: dict[str, list[int]] = {side: [] for side in sides}
    for _ in range(min(repeat, _PEAKS)):
        for side in sides:
            found[side].append(extra_peak_bytes(prepare, sizes, warm_up, side, device))
    return {side: int(statistics.median(peaks)) for side, peaks in found.items()}


def extra_peak_bytes(prepare: Callable[[Sizes, str], Run], sizes: Sizes, warm_up: Sizes, side: str, device: str) -> int:
    """Peak memory of one run of `side` above what was there before it, measured in a process of its own.

    Args:
        prepare: (sizes, side) -> what is run; a module's function, so that another process finds it.
        sizes: to measure.
        warm_up: small sizes that are run before, so that code being loaded is not counted.
        side: a name that `prepare` knows.
        device: where it computes; of a CPU the resident memory counts, of a GPU what tensors take.

    Raises:
        DeepspecError: the process failed, or this system does not tell peaks.
    """
    # Not forked from here, where memory is in use already; the server has imported torch and done nothing with it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    receiver, sender = context.Pipe(duplex=False)
    threads = torch.get_num_threads()
    process = context.Process(target=_peak, args=(sender, prepare, sizes, warm_up, side, device, threads))
    process.start()
    # The child holds the other end: without ours, its death is seen as the end of what can be read.
    sender.close()
    try:
        found: int = receiver.recv()
    except EOFError as error:
        process.join()
        raise DeepspecError(
            f"the process that measured the memory of {side!r} ended with code {process.exitcode}.",
            remedy="Its error is printed above; smaller sizes need less memory.",
        ) from error
    process.join()
    return found


def _peak(
    sender: Any,
    prepare: Callable[[Sizes, str], Run],
    sizes: Sizes,
    warm_up: Sizes,
    side: str,
    device: str,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    prepare(warm_up, side)()
    run = prepare(sizes, side)
    gc.collect()
    finish(device)
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        finish(device)
        sender.send(torch.cuda.max_memory_allocated(device) - before)
        return
    before = _reset_high_water_mark()
    run()
    sender.send(_status_bytes("VmHWM") - before)


def _reset_high_water_mark() -> int:
    """Forget the peak of this process's resident memory; returns what is resident now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise DeepspecError(
            f"the peak of resident memory cannot be reset here ({error}).",
            where="/proc/self/clear_refs",
            remedy="Measure on Linux, or with --device cuda.",
        ) from error
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise DeepspecError(
        f"this system does not report {field}.",
        where="/proc/self/status",
        remedy="Measure on Linux, or with --device cuda.",
    )


def ratio(ours: float, reference: float) -> float:
    """ours / reference; a reference below what can be measured counts as one page or one nanosecond."""
    least = os.sysconf("SC_PAGE_SIZE") if isinstance(reference, int) else 1e-9
    return round(ours / max(reference, least), 4)


def compared(seconds: Mapping[str, list[float]], peaks: Mapping[str, int]) -> dict[str, Any]:
    """`ours`, `reference` and `ratio` of a document: median seconds and extra peak bytes."""
    sides = {
        side: {"seconds": median(seconds[side]), "extra_peak_bytes": peaks[side]} for side in ("ours", "reference")
    }
    names = ("seconds", "extra_peak_bytes")
    return {**sides, "ratio": {name: ratio(sides["ours"][name], sides["reference"][name]) for name in names}}


def worst_distance(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Relative Frobenius distance of two sets of tensors, of the worst of them."""
    return max(
        float((ours[name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-300))
        for name, tensor in reference.items()
    )


def table(document: Mapping[str, Any]) -> list[list[str]]:
    """What `compared` and `worst_distance` found, for people."""
    rows = [["", "seconds", "extra peak MiB"]]
    for side in ("ours", "reference"):
        rows.append([side, f"{document[side]['seconds']:.4f}", f"{document[side]['extra_peak_bytes'] / 2**20:.1f}"])
    found = document["ratio"]
    rows.append(["ratio", f"{found['seconds']:.3f}", f"{found['extra_peak_bytes']:.4f}"])
    rows.append(["gradient error", f"{document['max_rel_grad_error']:.1e}", ""])
    return rows


def median(seconds: list[float]) -> float:
    """The median, in a document's precision."""
    return round(statistics.median(seconds), 6)


def device_name(device: str) -> str:
    """What `device` is, for a document."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"
