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
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import LaunchError
from deepspec.store.endpoint import shown as without_credentials

if TYPE_CHECKING:
    from tasks._run import Run

_START_SECONDS = 120.0


class EmbeddedServer:
    """A temporary Prefect API server with its database in the home folder; starts at once, is awaited later."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "prefect"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = self._folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        os.environ.update(
            PREFECT_HOME=str(self._folder),
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_LOGGING_TO_API_ENABLED="false",
            PREFECT_LOGGING_LEVEL="WARNING",
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",
            DO_NOT_TRACK="1",
        )
        environment = {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows._server", str(self.port), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{self.port}/api"

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
        where=f"PREFECT_API_URL {without_credentials(os.environ.get('PREFECT_API_URL', ''))}",
        remedy="Start it, or unset PREFECT_API_URL to run without one; what was finished is kept.",
    )


@contextlib.contextmanager
def server(home: Path) -> Iterator[EmbeddedServer | None]:
    """An embedded server for the block, unless PREFECT_API_URL names one."""
    if is_configured():
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
        LaunchError: Prefect's server does not answer any more.
    """
    import httpx
    from prefect import flow
    from prefect.context import FlowRunContext

    name = function.__name__.replace("_", "-")
    around = FlowRunContext.get()
    if around is None:
        _quiet(run.home)
    outcome: list[Any] = []

    def body(recipe: Any) -> None:
        del recipe
        outcome.append(function(run))

    # Prefect's parameter form is built from the recipe's own model.
    body.__annotations__["recipe"] = type(recipe)
    body.__doc__ = function.__doc__
    try:
        if around is not None and around.flow is not None and around.flow.name == name:
            return function(run)
        named = flow(name=name, flow_run_name=run.run_id, validate_parameters=False, log_prints=False)(body)
        named(recipe)
    except httpx.HTTPError as error:
        raise unreachable() from error
    return outcome[0]


def _quiet(home: Path) -> None:
    """Prefect's log lines go to a file in the home folder, and to a configured server, but not to the terminal."""
    from prefect.logging.configuration import setup_logging

    setup_logging()
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
