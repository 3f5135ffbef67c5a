"""That a command is at work: a line on stderr within a second, then no silence of five, whatever it imports or does.

Every command has one (main.py starts it), also while its libraries are imported and while the process ends, when no
other display is there. A display that shows more takes over for as long as it lasts. Nothing heavy is imported here.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

_LOOK_SECONDS = 0.2
_FIRST_SECONDS = 0.7
_QUIET_SECONDS = 4.0


def _to_stderr(line: str) -> None:
    # Not sys.stderr: its lock must not be held by a daemon thread when the interpreter ends.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


class Heartbeat:
    """Lines about one command.

    Args:
        name: what it is called.
        write: takes a line.
        clock: seconds.
    """

    def __init__(
        self, name: str, write: Callable[[str], None] = _to_stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._write, self._clock = name, write, clock
        self._begun = clock()
        self._next = self._begun + _FIRST_SECONDS
        self._others = 0

    def said(self) -> None:
        """Someone has said something just now."""
        self._next = self._clock() + _QUIET_SECONDS

    def beat(self) -> None:
        """Say that the command is at work, if nothing has been said for a while."""
        now = self._clock()
        if not self._others and now >= self._next:
            self.said()
            self._write(f"  {self._name}: at work for {now - self._begun:.0f} s")

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Someone else shows what is done, for the block."""
        self._others += 1
        try:
            yield
        finally:
            self._others -= 1
            self.said()

    def start(self) -> None:
        """Beat until the process has ended."""

        def go_on() -> None:
            while True:
                time.sleep(_LOOK_SECONDS)
                self.beat()

        threading.Thread(target=go_on, name="deepspec-heartbeat", daemon=True).start()


_current: Heartbeat | None = None


def start(arguments: Sequence[str]) -> None:
    """The heartbeat of the command that these arguments name; none where only help or the version is asked for."""
    global _current  # noqa: PLW0603  # the process's
    words = [word for word in arguments if not word.startswith("-")][:2]
    if words and not {"-h", "--help"} & set(arguments):
        _current = Heartbeat(" ".join(words))
        _current.start()


def said() -> None:
    """The command has said something by itself just now."""
    if _current is not None:
        _current.said()


def elsewhere() -> contextlib.AbstractContextManager[None]:
    """A display takes over, for the block."""
    return contextlib.nullcontext() if _current is None else _current.elsewhere()
