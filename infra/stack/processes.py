"""Starting and ending processes that outlive us, and never taking another process for one of ours.

A service's processes are found in three ways: by the recorded process id, if it still is the process that was started
(a process id is used again, but not with the same start time); by its session, which every process it starts shares
unless it opens one of its own; and by a mark in the environment, which those inherit too.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from infra.stack.service import Command, write_private

_MARK = "DEEPSPEC_STACK_PROCESS_OF"
_LAST_SECONDS = 10.0


class Record(NamedTuple):
    """A process as it was started: its id, and its start in the kernel's ticks, which no clock's change moves."""

    pid: int
    ticks: int


class Processes:
    """The processes of the stack in a folder: what was started, and with which ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "processes.json"

    def start(self, service: str, command: Command, log: Path) -> None:
        """Start a service's process in a session of its own, so that neither our end nor Ctrl-C reaches it."""
        options = command.options()
        options["env"][_MARK] = self._mark(service)
        with log.open("ab") as output:
            child = subprocess.Popen(
                **options, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        child.returncode = 0  # it outlives us: not for `Popen` to complain of; `stop` looks after it
        ticks = _ticks(child.pid)
        self._write(processes={**self._read()["processes"], service: [child.pid, -1 if ticks is None else ticks]})

    def record(self, service: str) -> Record | None:
        """What is recorded of a service that was started and not stopped."""
        found = self._read()["processes"].get(service)
        return None if found is None else Record(*found)

    def alive(self, service: str) -> bool:
        """Whether the process that was started is there and runs."""
        record = self.record(service)
        return record is not None and _ticks(record.pid) == record.ticks

    def ports(self) -> dict[str, int]:
        """The ports of the last start."""
        ports: dict[str, int] = self._read()["ports"]
        return ports

    def keep_ports(self, ports: dict[str, int]) -> None:
        """Record the ports that services are started with."""
        self._write(ports=ports)

    def memory_bytes(self, service: str) -> int:
        """Resident memory of a service's processes; pages that several hold count in shares."""
        total = 0
        for process in self._members(service):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total

    def stop(self, service: str, by: signal.Signals, seconds: float) -> bool:
        """End a service and all it has started.

        Args:
            service: which.
            by: the signal that asks its first process to end.
            seconds: after these, or once that process has ended, the rest is terminated and then killed.

        Returns:
            Whether there was anything to end.
        """
        record = self.record(service)
        members = self._members(service)
        if record is not None and self.alive(service):
            _send(psutil.Process(record.pid), by)
            _await([member for member in members if member.pid == record.pid], seconds)
        # It may have started some in the meantime.
        left = {*members, *self._members(service)}
        for ending in (signal.SIGTERM, signal.SIGKILL):
            left = {process for process in left if _runs(process)}
            for process in left:
                _send(process, ending)
            _await(list(left), _LAST_SECONDS)
        if record is not None:
            with contextlib.suppress(ChildProcessError):  # unless this process started it, which is seldom
                os.waitpid(record.pid, os.WNOHANG)
        processes = self._read()["processes"]
        processes.pop(service, None)
        self._write(processes=processes)
        return bool(members)

    def _members(self, service: str) -> list[psutil.Process]:
        record = self.record(service)
        started = record is not None and _ticks(record.pid) == record.ticks
        # A session's number is not given to a new process while any process of that session is left.
        session = record.pid if record is not None and (started or not psutil.pid_exists(record.pid)) else None
        found = []
        for process in psutil.process_iter():
            if process.pid != os.getpid() and _runs(process) and self._is_of(process, service, session):
                found.append(process)
        if record is not None and started:
            leader = psutil.Process(record.pid)
            found += [child for child in leader.children(recursive=True) if child not in found and _runs(child)]
        return found

    def _is_of(self, process: psutil.Process, service: str, session: int | None) -> bool:
        try:
            if session is not None and os.getsid(process.pid) == session:
                return True
            return process.environ().get(_MARK) == self._mark(service)
        except (psutil.Error, OSError):
            return False

    def _mark(self, service: str) -> str:
        return f"{service} {self._folder}"

    def _read(self) -> dict[str, Any]:
        if not self._path.is_file():
            return {"ports": {}, "processes": {}}
        state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        return state

    def _write(self, **changes: Any) -> None:
        write_private(self._path, json.dumps({**self._read(), **changes}, indent=1) + "\n")


def _ticks(pid: int) -> int | None:
    """When a process started, or None if it is none or has ended (and only its parent has not looked yet)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name before the last parenthesis may hold anything.
    fields = state.rpartition(")")[2].split()
    # As long as other threads are ending, it still has its ports and files.
    ended = fields[0] in "ZX" and int(fields[17]) <= 1
    return None if ended else int(fields[19])


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and _ticks(process.pid) is not None


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _await(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
