"""What a run uses: processor time, peak memory and wall time of the machine, and requests to servers that bill them."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping

COUNTED = ("bytes_read", "put_requests", "get_requests", "list_requests", "delete_requests", "endpoint_requests")
"""What `count` takes: bytes that came from object storage, requests to it by kind as it bills them, and requests to the
endpoints that serve a target. Retries are requests."""

USED = ("seconds", "cpu_seconds", "gpu_seconds", "bytes_written", *COUNTED)
"""What an attempt at an artifact uses, by the names that manifests and runs' records have for it."""

_counts: Counter[str] = Counter()  # like processor time, of the whole process
_counting = threading.Lock()


def count(name: str, number: int = 1) -> None:
    """Note a request, or bytes, of this process.

    Raises:
        ValueError: `name` is not one of `COUNTED`.
    """
    if name not in COUNTED:
        raise ValueError(f"{name} is not counted")
    with _counting:
        _counts[name] += number


def counted_so_far() -> dict[str, float]:
    """What `count` has noted in this process; what there was none of is left out."""
    with _counting:
        return {name: float(number) for name, number in _counts.items() if number}


def counted_since(earlier: Mapping[str, float]) -> dict[str, float]:
    """The same since `counted_so_far` gave `earlier`."""
    now = counted_so_far()
    return {name: number - earlier.get(name, 0.0) for name, number in now.items() if number > earlier.get(name, 0.0)}


def added_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of what several attempts have used, to the millisecond; what there was none of is left out."""
    sums: Counter[str] = Counter()
    for part in parts:
        sums.update({name: part[name] for name in USED if part.get(name)})
    return {name: round(sums[name], 3) for name in USED if sums[name]}


def cpu_seconds_so_far() -> float:
    """Processor seconds of this process and of all its children, those that still run included."""
    import psutil

    total = _cpu_seconds()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
    return total


def spelled_out(used: Mapping[str, float]) -> dict[str, float]:
    """What was used with every name of `USED`, for those who read it by them."""
    return {name: used.get(name, 0.0) for name in USED}


class Usage:
    """What this process and its children have used since it was made; requests are those of this process alone."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._cpu = _cpu_seconds()
        self._counted = counted_so_far()
        self._peak = 0
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="usage", daemon=True)
        self._watcher.start()

    def seconds(self) -> float:
        """Wall time so far."""
        return time.monotonic() - self._started

    def cpu_seconds(self) -> float:
        """Processor seconds so far, ended children included."""
        return _cpu_seconds() - self._cpu

    def cpu_seconds_now(self) -> float:
        """Processor seconds so far, with those of children that still run."""
        return cpu_seconds_so_far() - self._cpu

    def counted(self) -> dict[str, float]:
        """Requests and bytes so far, see `COUNTED`."""
        return counted_since(self._counted)

    def peak_rss_bytes(self) -> int:
        """Largest resident memory seen, this process and its children added up."""
        self._measure()
        return self._peak

    def stop(self) -> None:
        """End the measurement."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self._measure()

    def _measure(self) -> None:
        import psutil

        total = 0
        try:
            own = psutil.Process()
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.Error:
            return
        self._peak = max(self._peak, total)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
