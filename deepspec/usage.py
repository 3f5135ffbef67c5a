"""What a run uses of the machine: processor time, peak memory, wall time."""

import contextlib
import os
import threading
import time


def cpu_seconds_so_far() -> float:
    """Processor seconds of this process and of all its children, those that still run included."""
    import psutil

    total = _cpu_seconds()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
    return total


class Usage:
    """Processor time, peak memory and wall time of this process and its children since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._cpu = _cpu_seconds()
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
