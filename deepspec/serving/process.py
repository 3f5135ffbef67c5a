"""An engine's own server as a child process: started, waited for, ended; what it says goes to a log."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from deepspec.errors import BadArgument
from deepspec.network import heeds_proxies
from deepspec.serving.errors import EngineEnded
from deepspec.serving.launch import DRAIN_SECONDS, Launch

_PACKAGES = {"vllm": "vllm", "sglang": "sglang"}
_LOOK_SECONDS = 0.5
_ASK_SECONDS = 5.0
_PROBE_SECONDS = 120.0
_END_SECONDS = DRAIN_SECONDS + 30.0
_STARTING_SECONDS = 5.0
"""While it loads there is nothing to finish, and vLLM forgets a SIGTERM that comes then."""
_MOST_LOG_BYTES = 4 << 20
_FAILURE = re.compile(r"\b(?:(?:\w+\.)*\w*(?:Error|Exception)|error): +\S.*")
_NO_REASON = ("root cause", "EngineDeadError", "WARNING", "INFO")
"""In lines that only name another failure, or none."""


def refuse_missing(python: str, engine: str) -> None:
    """See that a Python's environment has the engine; nothing of it is imported.

    Raises:
        BadArgument: there is no such program, or it has no such package.
    """
    probe = f"import importlib.util, sys; sys.exit(3 if importlib.util.find_spec({_PACKAGES[engine]!r}) is None else 0)"
    try:
        code = subprocess.run([python, "-c", probe], timeout=_PROBE_SECONDS, stdout=2, check=False).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadArgument(
            f"{python} cannot be run: {error}.", where="--python", remedy=f"Name a Python that has {engine}."
        ) from error
    if code:
        raise BadArgument(
            f"{engine} is not installed for {python}.",
            where="--python",
            remedy=f"Name the Python of an environment that has {engine}, or set DEEPSPEC_ENGINE_PYTHON.",
        )


def refuse_taken(host: str, port: int) -> None:
    """See that nothing listens at an address.

    Raises:
        BadArgument: something does, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadArgument(
                f"port {port} of {host} cannot be listened at: {error.strerror}.",
                where="--port",
                remedy="End what uses it, or name another port.",
            ) from error


class EngineProcess:
    """One start of an engine's server; a context, which ends it.

    Args:
        launch: what is started.
        log: takes what it says, after what is there.

    Raises:
        EngineEnded: the program cannot be run.
    """

    def __init__(self, launch: Launch, log: Path) -> None:
        self.launch, self._log, self._ready = launch, log, False
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                self._said_from = output.tell()
                # In a group of its own: Ctrl-C at a terminal is passed on by us, once.
                self._process = subprocess.Popen(
                    launch.argv,
                    env={**os.environ, **launch.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineEnded(
                f"{launch.argv[0]} cannot be run: {error.strerror}.", where="--python", remedy="Name a Python."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end; its exit code, or None if it goes on."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait_ready(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until it answers, however long it loads.

        Raises:
            EngineEnded: it ended before.
        """
        while not self._answers():
            self.refuse_ended()
            sleep(_LOOK_SECONDS)
        self._ready = True

    def refuse_ended(self) -> None:
        """See that it runs.

        Raises:
            EngineEnded: it does not; says why.
        """
        code = self._process.poll()
        if code is None:
            return
        engine = self.launch.draft.engine
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        why = "" if code == -signal.SIGKILL else self._why()
        raise EngineEnded(
            f"{engine} {how}{f': {why}' if why else ''}.",
            where=self.launch.url,
            remedy=f"What it said is in {self._log}.",
        )

    def end(self) -> int:
        """Let it finish what it has begun and end, and end it by force after a time; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_SECONDS if self._ready else _STARTING_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            code = self.kill()  # what it started, too, if it went before that
        return code

    def kill(self) -> int:
        """End it and all that it started, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _answers(self) -> bool:
        import httpx

        url = self.launch.url
        try:
            with httpx.Client(trust_env=heeds_proxies(url, where=url), timeout=_ASK_SECONDS) as client:
                return client.get(f"{url}/health").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _why(self) -> str:
        """The first failure that it named; the others follow from it."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._said_from)
                lines = file.read(_MOST_LOG_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return ""
        named = (_FAILURE.search(line) for line in lines if not any(word in line for word in _NO_REASON))
        first = next((found[0] for found in named if found is not None), "")
        return first.removeprefix("error: ")[:300].rstrip(". ")
