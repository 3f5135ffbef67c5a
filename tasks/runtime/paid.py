"""What attempts at an artifact have cost that did not finish it: the one that does adds them up in its manifest.

An attempt keeps the record `leases/paid/<key>/<run id>-<attempt>.json` in the store while it lasts. One that is killed
leaves it, and so does one that fails. The artifact that is made in the end takes them over, in whichever home that is,
and the records go. They have no format of their own: what cannot be read counts nothing.
"""

import contextlib
import hashlib
import json
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspec.errors import DeepspecError, TransientError
from deepspec.store import Backend
from deepspec.store.lease import live
from deepspec.usage import cpu_seconds_so_far

FIELDS = ("seconds", "cpu_seconds", "gpu_seconds")
EARLIER = "earlier_"
"""Before a field's name in a manifest's `cost`: of earlier attempts, which did not finish."""

_FOLDER = "leases/paid"
_FIRST_SECONDS = 5.0
_EVERY_SECONDS = 10.0
_JOIN_SECONDS = 5.0


class Accounts:
    """The accounts in a store, as a run knows them: listed once, when it first makes something.

    Args:
        backend: of the store.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._paths: set[str] | None = None

    def of(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Path and content of those about one artifact that can be read."""
        if self._paths is None:
            self._paths = set(self.backend.list(_FOLDER))
        return _read(self.backend, sorted(path for path in self._paths if path.startswith(f"{_FOLDER}/{key}/")))

    def wrote(self, path: str) -> None:
        """One more is there: this run's."""
        if self._paths is not None:
            self._paths.add(path)


@contextmanager
def paid(
    accounts: Accounts, home: Path, key: str, run_id: str, *, num_gpus: int
) -> Iterator[Callable[[], dict[str, float]]]:
    """Account for one attempt at the artifact `key` while the block runs; if it raises, the account stays.

    Args:
        accounts: in the store where the artifact will be.
        home: of the user; no other process in it is making this artifact.
        key: of the artifact.
        run_id: of the run that makes it.
        num_gpus: that it computes on.

    Yields:
        a function: what attempts that are over have cost, as fields of a manifest's `cost`; empty if there were none.
    """
    backend = accounts.backend
    own = f"{_FOLDER}/{key}/{run_id}-{uuid.uuid4().hex[:6]}.json"
    place = _name_of(home)
    started, started_cpu = time.monotonic(), cpu_seconds_so_far()
    ended = threading.Event()
    gone: set[str] = set()

    def write() -> None:
        seconds, cpu_seconds = time.monotonic() - started, cpu_seconds_so_far() - started_cpu
        values = dict(zip(FIELDS, (seconds, cpu_seconds, seconds * num_gpus), strict=True))
        content = {**{name: round(value, 3) for name, value in values.items()}, "home": place}
        gone.add(own)
        with contextlib.suppress(DeepspecError):  # without it the stage is none the worse
            backend.put(own, json.dumps(content).encode())
            accounts.wrote(own)

    def keep_writing() -> None:
        pause = _FIRST_SECONDS
        while not ended.wait(pause):
            write()
            pause = _EVERY_SECONDS

    def earlier() -> dict[str, float]:
        over: dict[str, Mapping[str, Any]] = {}
        with contextlib.suppress(DeepspecError):
            for path, account in accounts.of(key):
                mine = path != own and (account.get("home") == place or _run_of(path) == run_id)
                if mine or (path != own and not _may_live(backend, _run_of(path))):
                    over[path] = account
        gone.update(over)
        return {f"{EARLIER}{name}": value for name, value in _added_up(over.values()).items() if value}

    writing = threading.Thread(target=keep_writing, name="paid", daemon=True)
    writing.start()
    finished = waits = False
    try:
        yield earlier
        finished = True
    except TransientError:
        waits = True  # the store may not answer: what was written last has to do
        raise
    finally:
        ended.set()
        writing.join(_JOIN_SECONDS)
        if finished:
            for path in gone:
                with contextlib.suppress(DeepspecError):
                    backend.delete(path)
        elif not waits:
            write()


def paid_by(backend: Backend, run_id: str) -> dict[str, float]:
    """What a run has paid for artifacts that are not finished yet.

    Raises:
        ArtifactError, TransientError: the store cannot be listed.
    """
    paths = (path for path in backend.list(_FOLDER) if _run_of(path) == run_id)
    return _added_up(account for _, account in _read(backend, paths))


def _read(backend: Backend, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and content of accounts; not of those that cannot be read."""
    for path in paths:
        with contextlib.suppress(DeepspecError, FileNotFoundError, ValueError, KeyError, TypeError):
            content = json.loads(backend.read(path))
            values = {name: float(content[name]) for name in FIELDS}
            if all(0 <= value < math.inf for value in values.values()):
                yield path, {**content, **values}


def _added_up(accounts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    sums = dict.fromkeys(FIELDS, 0.0)
    for account in accounts:
        sums = {name: round(value + account[name], 3) for name, value in sums.items()}
    return sums


def _run_of(path: str) -> str:
    return path.rpartition("/")[2].rpartition("-")[0]


def _may_live(backend: Backend, run_id: str) -> bool:
    try:
        return any(True for _ in live(backend, f"runs/{run_id}"))
    except DeepspecError:
        return True


def _name_of(home: Path) -> str:
    """A home among those that share a store; it says neither where it is nor whose."""
    return hashlib.sha256(f"{socket.gethostname()}:{home.absolute()}".encode()).hexdigest()[:16]
