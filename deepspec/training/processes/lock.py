"""One training at a time in a work directory: a file lock that the kernel releases when its holder dies.

It guards against two trainings on this machine (a run that was interrupted may still be saving when the next one
starts). Across machines, the store's leases do.
"""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import Timeout

from deepspec.errors import LeaseHeld
from deepspec.file_lock import FileLock

_POLL_SECONDS = 0.1


class WorkLock:
    """The lock on a work directory, held from `acquire` until `release` or the end of the process."""

    def __init__(self, work_dir: Path) -> None:
        self._path = work_dir / "lock"
        self._lock = FileLock(self._path, thread_local=False)

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
        try:
            self._lock.acquire(timeout=wait_seconds, poll_interval=_POLL_SECONDS, cancel_check=give_up)
        except Timeout:
            if give_up():
                return False
            holder = self._path.read_text(errors="replace").strip() or "unknown"
            raise LeaseHeld(
                f"another training (process {holder}) has been working here for {wait_seconds:.0f} s.",
                where=str(self._path.parent),
                remedy="Wait for it to end, or end it: it saves first.",
            ) from None
        self._path.write_text(str(os.getpid()))
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()
