"""Up, down and status of any set of services in a folder."""

import contextlib
import errno
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import psutil
from filelock import FileLock, Timeout

from deepspec.errors import LaunchError
from infra.stack.processes import Processes
from infra.stack.service import NotHealthy, Service, Stack
from infra.stack.settings import HOST, Settings, port_variable

_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class State:
    """The state of a service.

    Attributes:
        service: its name.
        state: `up`, `down` (no process) or `failing` (a process that does not do its work).
        address: where it listens, if it has a port of its own that clients use.
        pid: its first process.
        memory_bytes: resident memory of all its processes.
        reason: why it is failing.
    """

    service: str
    state: str
    address: str | None = None
    pid: int | None = None
    memory_bytes: int = 0
    reason: str = ""

    def as_json(self) -> dict[str, str | int | None]:
        """As the command line prints it."""
        return asdict(self)


def up(settings: Settings, services: Sequence[Service], tell: Callable[[str], None] = lambda _: None) -> Stack:
    """Start every service that is not up, and wait until all are healthy.

    Args:
        settings: folder, ports and store.
        services: in the order in which they are reported; each waits for those in its `after`.
        tell: called with a line for each service that came up.

    Returns:
        The stack that runs.

    Raises:
        LaunchError: a port is taken, or a service did not come up. What this call started has been ended again.
    """
    with _alone(settings):
        processes = Processes(settings.folder)
        stack = _stack(settings, services, processes)
        started: list[Service] = []
        try:
            _start(stack, services, processes, started, tell)
        except BaseException:
            for service in reversed(started):
                processes.stop(service.name, service.stop_signal, service.stop_seconds)
            raise
        return stack


def down(
    settings: Settings, services: Sequence[Service], tell: Callable[[str], None] = lambda _: None, *, kill: bool = False
) -> None:
    """End every service and all it has started, last first; data and logs stay.

    Args:
        settings: whose stack.
        services: all that may run there, in the order in which they are started.
        tell: called with a line for each service that was ended.
        kill: without asking first; for data that are not needed any more.
    """
    if not settings.folder.is_dir():
        return
    with _alone(settings):
        processes = Processes(settings.folder)
        for service in reversed(services):
            begun = time.monotonic()
            by = signal.SIGKILL if kill else service.stop_signal
            if processes.stop(service.name, by, service.stop_seconds):
                tell(f"{service.name:<10} ended in {time.monotonic() - begun:4.1f} s")


def status(settings: Settings, services: Sequence[Service]) -> list[State]:
    """What every service is doing; asks each that has a process, and changes nothing."""
    processes = Processes(settings.folder)
    ports = processes.ports()
    stack = Stack(settings.folder, ports, settings.s3_store)
    return [_state(stack, service, processes) for service in services]


def _state(stack: Stack, service: Service, processes: Processes) -> State:
    record = processes.record(service.name)
    if record is None or not processes.alive(service.name):
        return State(service.name, "down")
    try:
        service.check(stack)
        reason = ""
    except NotHealthy as error:
        reason = str(error)
    port = stack.ports.get(service.name)
    return State(
        service.name,
        "failing" if reason else "up",
        None if port is None else f"{HOST}:{port}",
        record.pid,
        processes.memory_bytes(service.name),
        reason,
    )


def _start(
    stack: Stack, services: Sequence[Service], processes: Processes, started: list[Service], tell: Callable[[str], None]
) -> None:
    """Start services and wait for them, as many at once as possible: a loop over those not healthy yet."""
    begun = time.monotonic()
    since: dict[str, float] = {}
    healthy: set[str] = set()
    while len(healthy) < len(services):
        for service in services:
            name = service.name
            if name in healthy or not healthy.issuperset(service.after):
                continue
            if name not in since:
                if not processes.alive(name):
                    # What a killed one has left behind would hold its port and its files.
                    processes.stop(name, service.stop_signal, service.stop_seconds)
                    started.append(service)
                    processes.start(name, service.command(stack), stack.log(name))
                since[name] = time.monotonic()
            try:
                service.check(stack)
            except NotHealthy as reason:
                _give_up(stack, service, processes, time.monotonic() - since[name], reason)
                continue
            if service.settle is not None:
                service.settle(stack)
            healthy.add(name)
            new = service in started
            tell(f"{name:<10} {f'up after {time.monotonic() - begun:4.1f} s' if new else 'was up'}")
        time.sleep(_PAUSE_SECONDS)


def _give_up(stack: Stack, service: Service, processes: Processes, seconds: float, reason: NotHealthy) -> None:
    """Raise if there is nothing left to wait for."""
    where = str(stack.log(service.name))
    if not processes.alive(service.name):
        raise LaunchError(f"{service.name} exited during startup.", where=where, remedy="Read that log.")
    if seconds > service.start_seconds:
        raise LaunchError(
            f"{service.name} is not healthy after {seconds:.0f} s ({reason}).",
            where=where,
            remedy="Read that log; `make stack-down` ends it.",
        )


def _stack(settings: Settings, services: Sequence[Service], processes: Processes) -> Stack:
    """The stack to start: on the ports it has if part of it is up, else on those configured."""
    running = {service.name for service in services if processes.alive(service.name)}
    names = [service.name for service in services if service.name in settings.ports]
    if running:
        ports = processes.ports()
        ports |= _choose({name: settings.ports[name] for name in names if name not in ports})
        moved = [name for name in names if settings.ports[name] not in (0, ports[name])]
        if moved:
            raise LaunchError(
                f"{moved[0]} is configured for port {settings.ports[moved[0]]}, and the stack is up with "
                f"{ports[moved[0]]}.",
                where=port_variable(moved[0]),
                remedy="`make stack-down` first, or leave the variable as it was.",
            )
    else:
        ports = _choose({name: settings.ports[name] for name in names})
    for name in names:
        if name not in running and settings.ports[name] != 0:
            _refuse_taken(name, ports[name])
    processes.keep_ports(ports)
    return Stack(settings.folder, ports, settings.s3_store)


def _choose(ports: dict[str, int]) -> dict[str, int]:
    """Free ports in place of zeros; held until all are chosen, so that none is chosen twice."""
    with contextlib.ExitStack() as held:
        chosen = {}
        for name, port in ports.items():
            chosen[name] = port
            if port == 0:
                probe = held.enter_context(socket.socket())
                probe.bind((HOST, 0))
                chosen[name] = probe.getsockname()[1]
        return chosen


def _refuse_taken(service: str, port: int) -> None:
    with socket.socket() as probe:
        # As the servers do: a port that only remembers closed connections is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            what = (
                f"is taken by {_listener(port)}"
                if error.errno == errno.EADDRINUSE
                else "needs more rights than we have"
            )
            raise LaunchError(
                f"Port {port}, where {service} is to listen, {what}.",
                where=port_variable(service),
                remedy="Set that variable to another port (0 takes a free one), or end that process.",
            ) from error


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (process {process.pid} of {process.username()})"
    except psutil.Error:
        pass
    return "a process that we may not see, of another user or in a container"


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the folder: one up or down at a time."""
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.folder.chmod(0o700)
    (settings.folder / "logs").mkdir(mode=0o700, exist_ok=True)
    lock = FileLock(settings.folder / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise LaunchError(
            "Another command is starting or ending this stack.", where=str(settings.folder), remedy="Wait for it."
        ) from None
    try:
        yield
    finally:
        lock.release()
