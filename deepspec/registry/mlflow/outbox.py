"""What a run tells MLflow, in order, also while the server is away: no training ends because of that.

While the server answers, a message is sent at once, by the thread that has it. From the first one that is not answered
on, all wait in line, and a thread keeps trying. What the server refuses is an error as ever; in that thread a warning,
since the artifacts have the figures.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from deepspec.registry.errors import TrackingError, TrackingLost

logger = logging.getLogger(__name__)

Message = Callable[[], None]
"""Tells MLflow something; called again if there was no answer."""

AGAIN_SECONDS = 5.0


class Outbox:
    """Messages to one server; safe to use from several threads.

    Args:
        ask_again: called before a server that did not answer is asked again.
    """

    def __init__(self, ask_again: Callable[[], None]) -> None:
        self._ask_again = ask_again
        self._lock = threading.Lock()
        self._waiting: deque[Message] = deque()
        self._all_sent = threading.Event()
        self._all_sent.set()

    def send(self, message: Message) -> None:
        """Send a message, or let it wait in line.

        Raises:
            TrackingError: the server refuses it.
        """
        with self._lock:
            if not self._waiting:
                try:
                    message()
                except TrackingLost as lost:
                    logger.warning("%s Until it does, what there is to track waits.", lost.what)
                    self._all_sent.clear()
                    threading.Thread(target=self._keep_trying, name="mlflow-outbox", daemon=True).start()
                else:
                    return
            self._waiting.append(message)

    def settle(self, seconds: float) -> bool:
        """Wait until everything is sent, so long at most; whether it is."""
        return self._all_sent.wait(seconds)

    def _keep_trying(self) -> None:
        while True:
            time.sleep(AGAIN_SECONDS)
            while self._waiting:
                self._ask_again()
                try:
                    self._waiting[0]()
                except TrackingLost:
                    break
                except TrackingError as error:
                    logger.warning("MLflow did not take what there was to track: %s", error)
                with self._lock:
                    self._waiting.popleft()
                    if not self._waiting:
                        self._all_sent.set()
                        return
