"""The two values everything is made of: the stack, and a service."""

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepspec.errors import LaunchError
from infra.stack.settings import HOST, ROOT

# A user's own configuration of these must not reach our servers.
_NOT_INHERITED = ("AWS_", "CEPH_", "MLFLOW_", "PG", "PREFECT_")
_CHECK_SECONDS = 5.0


class NotHealthy(Exception):
    """A service does not do its work (yet); the message says what was seen."""


@dataclass(frozen=True)
class Stack:
    """What every service knows: its folder, the ports, and the passwords.

    Attributes:
        folder: holds one folder per kind of server, `logs`, and the files `secrets.json` and `env`.
        ports: service -> port, never 0.
        s3_store: as in the settings.
    """

    folder: Path
    ports: Mapping[str, int]
    s3_store: str

    def log(self, service: str) -> Path:
        """Where a service writes."""
        return self.folder / "logs" / f"{service}.log"

    def url(self, service: str) -> str:
        """A web service's address."""
        return f"http://{HOST}:{self.ports[service]}"

    def secret(self, name: str) -> str:
        """A password, made when it is first asked for."""
        kept = self._secrets()
        if name not in kept:
            # No characters that addresses, shells or ini files would have to escape.
            self.keep_secret(name, secrets.token_hex(16))
        return self._secrets()[name]

    def has_secret(self, name: str) -> bool:
        """Whether it has been made."""
        return name in self._secrets()

    def keep_secret(self, name: str, value: str) -> None:
        """Keep one that a server has made."""
        write_private(self.folder / "secrets.json", json.dumps({**self._secrets(), name: value}, indent=1) + "\n")

    def _secrets(self) -> dict[str, str]:
        path = self.folder / "secrets.json"
        if not path.is_file():
            return {}
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return kept


@dataclass(frozen=True)
class Command:
    """How a process is started.

    Attributes:
        arguments: program and arguments; no passwords: everybody on the machine can list them.
        environment: added to what it inherits.
        folder: where it runs.
        user: the account it runs as, if not ours.
        files: descriptors that it inherits.
    """

    arguments: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    user: str | None = None
    files: tuple[int, ...] = ()

    def options(self) -> dict[str, Any]:
        """What `subprocess` takes for it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        options: dict[str, Any] = {
            "args": self.arguments,
            "cwd": self.folder,
            "env": {**inherited, **self.environment},
            "pass_fds": self.files,
        }
        if self.user is not None:
            options |= {"user": self.user, "group": self.user, "extra_groups": []}
        return options


@dataclass(frozen=True)
class Service:
    """One process of the stack.

    Attributes:
        name: its name, also in the settings' ports.
        command: makes what the process needs, unless it is there, and says how it is started.
        check: raises `NotHealthy` unless it does its work.
        after: services that have to be healthy before `command` is called.
        settle: makes what others need of it; called whenever `up` has seen it healthy, so it has to bear repetition.
        stop_signal: asks it to end in good order.
        stop_seconds: it ends within these, or is killed.
        start_seconds: it is healthy within these, or has failed.
    """

    name: str
    command: Callable[[Stack], Command]
    check: Callable[[Stack], None]
    after: tuple[str, ...] = ()
    settle: Callable[[Stack], None] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 30.0
    start_seconds: float = 120.0


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, all at once."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def run_once(
    stack: Stack, service: str, command: Command, *, given: str = "", seconds: float = 120.0, what: str | None = None
) -> str:
    """Run a command that ends, for a service; its error output goes to the service's log.

    Args:
        stack: the stack.
        service: whose log.
        command: what is run.
        given: its standard input.
        seconds: the most that it may take.
        what: what to call it, instead of its program's name.

    Returns:
        Its standard output.

    Raises:
        LaunchError: it failed, or took longer.
    """
    program = what or Path(command.arguments[0]).name
    log = stack.log(service)
    with log.open("ab") as errors:
        try:
            done = subprocess.run(
                **command.options(),
                input=given.encode(),
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LaunchError(
                f"{program} did not end within {seconds:.0f} s.", where=str(log), remedy="Read that log."
            ) from error
    output = bytes(done.stdout).decode(errors="replace")
    if done.returncode != 0:
        with log.open("a", encoding="utf-8") as record:
            record.write(output)
        raise LaunchError(f"{program} failed (exit code {done.returncode}).", where=str(log), remedy="Read that log.")
    return output


def check_port(port: int) -> None:
    """Raise `NotHealthy` unless a server listens there."""
    try:
        socket.create_connection((HOST, port), timeout=_CHECK_SECONDS).close()
    except OSError as error:
        raise NotHealthy(f"port {port}: {error}") from error


def ask(url: str, *, user: str = "", password: str = "", body: Any = None) -> Any:
    """The JSON that a service answers.

    Args:
        url: what is asked for.
        user, password: basic authentication, where it wants some.
        body: sent as JSON with a POST; without one it is a GET.

    Raises:
        NotHealthy: no answer, or an error.
    """
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())  # noqa: S310
    request.add_header("Content-Type", "application/json")
    if user:
        request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
    # Not through a proxy, even if the environment names one.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_CHECK_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise NotHealthy(f"HTTP status {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotHealthy(str(getattr(error, "reason", error)) or type(error).__name__) from error
