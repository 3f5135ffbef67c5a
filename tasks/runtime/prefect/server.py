"""Prefect's server: a quiet one of our own where none is configured, and what errors say of one.

Not Prefect's `SubprocessASGIServer`: it outlives a parent that is killed, dies of the terminal's Ctrl-C while the run
still ends in order, writes to the terminal, and blocks until it answers, while ours starts before Prefect is imported.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepspec.errors import DeepspecError, LaunchError
from deepspec.network import ask_this_machine_directly, without_socks
from deepspec.store.backends.s3_location import shown as without_credentials

_START_SECONDS = 120.0
_SERVICES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")
"""Variables with the addresses that a run's libraries ask by themselves."""

_PATIENCE = {
    # Prefect's own are 5 repetitions over a minute, and a minute for each answer of a server that hangs. These bridge a
    # short restart (14 s); soon after, the error names a server that is down or hangs to a person who waits.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    "PREFECT_API_REQUEST_TIMEOUT": "20",
}


class EmbeddedServer:
    """A temporary Prefect API server with its database in the home folder; starts at once, is awaited later."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "prefect"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = self._folder / "server.log"
        os.environ.update(
            PREFECT_HOME=str(self._folder),
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_LOGGING_TO_API_ENABLED="false",
            PREFECT_LOGGING_LEVEL="WARNING",
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",
            PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="prefect.server.concurrency.lease_storage.filesystem",
            DO_NOT_TRACK="1",
        )
        self.port = self._start()
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{self.port}/api"

    def _start(self) -> int:
        """Start its process on a free port; the port."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        environment = {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.runtime.prefect.server_process", str(port), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        return port

    def ready(self) -> None:
        """Wait until it answers.

        Raises:
            LaunchError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        url = f"http://127.0.0.1:{self.port}/api/health"
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise LaunchError(
            "Prefect's temporary server did not start.",
            where=str(self._log),
            remedy="Read that log, or set PREFECT_API_URL to a running server.",
        )

    def stop(self) -> None:
        """End it."""
        os.environ.pop("PREFECT_API_URL", None)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def is_configured() -> bool:
    """Whether the user has a Prefect server (or Prefect Cloud) of their own."""
    return bool(os.environ.get("PREFECT_API_URL"))


def check() -> None:
    """See that the configured server answers, before anything begins.

    Raises:
        LaunchError: it does not.
    """
    url = os.environ["PREFECT_API_URL"].rstrip("/") + "/health"
    try:
        with urllib.request.urlopen(url, timeout=10):  # noqa: S310  # the user's own address
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:  # it is there; whether it lets us in shows with the first call
            return
        raise unreachable() from error
    except (OSError, ValueError) as error:
        raise unreachable() from error


def unreachable() -> LaunchError:
    """The error for a Prefect server that does not answer."""
    return LaunchError(
        "Prefect's server does not answer.",
        where=_where(),
        remedy="Start it, or unset PREFECT_API_URL to run without one; what was finished is kept.",
    )


def _refused() -> LaunchError:
    return LaunchError(
        "Prefect's server does not accept the password.",
        where=_where(),
        remedy="Check PREFECT_API_AUTH_STRING (user:password), or PREFECT_API_KEY for Prefect Cloud.",
    )


def _where() -> str:
    return f"PREFECT_API_URL {without_credentials(os.environ.get('PREFECT_API_URL', ''))}"


def named(error: BaseException) -> LaunchError | None:
    """What an error says of Prefect's server; None if it is about something else.

    The engine hands on what its calls to the server raise, or raises errors of its own because of them.
    """
    import httpx

    found: BaseException | None = None if isinstance(error, DeepspecError) else error
    while found is not None:
        if isinstance(found, httpx.HTTPStatusError) and found.response.status_code in (401, 403) and _is_asked(found):
            return _refused()
        if isinstance(found, httpx.HTTPError) and _is_asked(found):
            return unreachable()
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return None


def _is_asked(error: Any) -> bool:
    """Whether the request that failed went to Prefect's server: other libraries use httpx, too."""
    try:
        asked = error.request.url
    except RuntimeError:  # it does not know its request
        return True
    server = urllib.parse.urlsplit(os.environ.get("PREFECT_API_URL", ""))
    return bool(asked.host == server.hostname and asked.port == server.port)


@contextlib.contextmanager
def server(home: Path) -> Iterator[EmbeddedServer | None]:
    """An embedded server for the block, unless PREFECT_API_URL names one.

    Raises:
        LaunchError: the configured one does not answer.
        RecipeError: a configured service can be asked through a SOCKS proxy only, and that cannot be used.
    """
    ask_this_machine_directly(os.environ)
    with without_socks({name: os.environ[name] for name in _SERVICES if os.environ.get(name)}):
        if is_configured():
            for name, value in _PATIENCE.items():
                os.environ.setdefault(name, value)
            check()
            yield None
            return
        embedded = EmbeddedServer(home)
        try:
            yield embedded
        finally:
            embedded.stop()
