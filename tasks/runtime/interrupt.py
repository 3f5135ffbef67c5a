"""Ctrl-C or SIGTERM during a run: the prompt is back within seconds."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = "Interrupted. What was finished is kept; the same command goes on from there."
_INTERRUPT_SECONDS = 3.0


def is_interruption(error: BaseException | None) -> bool:
    """Whether a person or the system ended the run, by Ctrl-C or a signal, and not an error."""
    return error is not None and not isinstance(error, Exception)


@contextmanager
def prompt_back_soon(leave_record: Callable[[], None]) -> Iterator[None]:
    """After Ctrl-C or SIGTERM the prompt is back within seconds, even if a library's shutdown hangs.

    Nothing is lost: published artifacts are durable, others are invisible, and the training process, in a session of
    its own, saves and ends by itself. A SIGTERM that someone else handles already (Prefect's worker) stays theirs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up() -> None:
        try:
            leave_record()
        finally:
            end()

    def end() -> None:
        os.write(2, INTERRUPTED.encode() + b"\n")
        os._exit(130)

    def interrupt(*_: object) -> None:
        timer = threading.Timer(_INTERRUPT_SECONDS, give_up)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signals = [signal.SIGINT]
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signals.append(signal.SIGTERM)
    before = [signal.signal(one, interrupt) for one in signals]
    try:
        yield
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)
