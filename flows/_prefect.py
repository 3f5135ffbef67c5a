"""Prefect around a flow: a quiet server of our own where none is configured, and quiet logging.

Prefect is imported inside functions: a run in which every stage hits never pays for it.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import DeepspecError, LaunchError
from deepspec.store.backends.s3_location import shown as without_credentials

if TYPE_CHECKING:
    from tasks._run import Run

_START_SECONDS = 120.0
_PATIENCE = {
    # Prefect's own are 5 repetitions over a minute, and a minute for each answer of a server that hangs. These bridge a
    # short restart (14 s); a person who waits at a terminal is told of a server that is down, or hangs, soon after.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    "PREFECT_API_REQUEST_TIMEOUT": "20",
}

lost = False
"""Whether the server stopped answering: Prefect's threads would go on trying to tell it things at the end."""


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
                [sys.executable, "-m", "flows._server", str(port), str(os.getpid())],
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
    """An embedded server for the block, unless PREFECT_API_URL names one."""
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


def run_as_flow(run: "Run[Any]", function: Callable[["Run[Any]"], Any], recipe: Any) -> Any:
    """Call `function(run)` as a Prefect flow run whose parameter is the typed recipe.

    In a deployment's flow run of the same name it is called as that run; other flows are its children.

    Raises:
        LaunchError: Prefect's server does not answer any more, or does not let us in.
    """
    from prefect import flow
    from prefect.context import FlowRunContext
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    global lost  # noqa: PLW0603  # it is the process's server
    name = function.__name__.replace("_", "-")
    around = FlowRunContext.get()
    if around is None:
        _quiet(run.home)
    outcome: list[Any] = []
    giving_up = contextlib.ExitStack()

    def body(recipe: Any) -> None:
        del recipe
        try:
            outcome.append(function(run))
        except Exception as error:
            if named(error) is not None:
                # The engine is about to tell the server of it.
                giving_up.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
            raise

    # Prefect's parameter form is built from the recipe's own model.
    body.__annotations__["recipe"] = type(recipe)
    body.__doc__ = function.__doc__
    try:
        if around is not None and around.flow is not None and around.flow.name == name:
            return function(run)
        with giving_up:
            flow(name=name, flow_run_name=run.run_id, validate_parameters=False, log_prints=False)(body)(recipe)
    except Exception as error:
        about_server = named(error)
        if about_server is None:
            raise
        lost = True
        raise about_server from error
    return outcome[0]


def _quiet(home: Path) -> None:
    """Prefect's log lines go to a file in the home folder, and to a configured server, but not to the terminal."""
    from prefect.logging.configuration import setup_logging

    setup_logging()
    logging.raiseExceptions = False  # else it prints what it could not send to its server
    path = home / "prefect" / "flows.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # All that Prefect has made so far: some of its loggers have handlers of their own and do not propagate.
    made = [name for name in logging.root.manager.loggerDict if name.startswith("prefect.")]
    for name in ("prefect", *made, "httpx", "httpcore"):
        logger = logging.getLogger(name)
        logger.handlers = [handler, *(old for old in logger.handlers if type(old).__name__ == "APILogHandler")]
        logger.propagate = False
