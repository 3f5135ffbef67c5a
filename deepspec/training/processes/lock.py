"""One training at a time in a work directory: a file lock that the kernel releases when its holder dies.

It guards against two trainings on this machine (a run that was interrupted may still be saving when the next one
starts). Across machines, the store's leases do.
"""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from deepspec.errors import LeaseHeld

_POLL_SECONDS = 0.1


class WorkLock:
    """The lock on a work directory, held from `acquire` until `release` or the end of the process."""

    def __init__(self, work_dir: Path) -> None:
        self._path = work_dir / "lock"
        self._descriptor: int | None = None

    def acquire(self, wait_seconds: float, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Take the lock, waiting for a holder that may be about to end.

        Args:
            wait_seconds: how long.
            give_up: asked while waiting.

        Returns:
            False if `give_up` ended the waiting.

        Raises:
            LeaseHeld: it is still held after `wait_seconds`.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if give_up():
                    os.close(descriptor)
                    return False
                if time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
                    continue
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise LeaseHeld(
                    f"another training (process {holder}) has been working here for {wait_seconds:.0f} s.",
                    where=str(self._path.parent),
                    remedy="Wait for it to end, or end it: it saves first.",
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            self._descriptor = descriptor
            return True

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
