"""Leases: how a live run says so, to collectors and to other runs.

A lease is a record `leases/<name>/<token>.json` whose modification time is its heartbeat. Its holder gets a fencing
token, the number of the record, which only ever grows: the newest record is never removed, and an empty file
`<token>.released` marks a released one. So a holder that was held up for longer than its lease lives notices that it
lost it (`held`), whatever happened meanwhile.
"""

import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from deepspec.errors import ArtifactError, DeepspecError, LeaseHeld
from deepspec.store.backends.contract import Backend, created
from deepspec.store.layout import Stat
from deepspec.store.records import refuse_newer, seal, unseal

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when a lease is written that an older deepspec could not read."""

_RECORD = re.compile(r"([0-9]{6,})\.(json|released)")
_FORGOTTEN_SECONDS = 24 * 3600.0
"""A record that was not written to for this long cannot be a live holder's, whatever it says."""


class Lease:
    """A lease on `name`, kept alive by a thread until it is released.

    Args:
        backend: where leases are kept.
        name: what is leased, e.g. "runs/<run id>" or "train/<key>".
        ttl_seconds: a lease without a heartbeat for this long is dead; heartbeats come three times as often.
    """

    def __init__(self, backend: Backend, name: str, ttl_seconds: float = 60.0) -> None:
        self._backend = backend
        self._prefix = f"leases/{name}"
        self._ttl_seconds = ttl_seconds
        self._holder = uuid.uuid4().hex
        self._content: dict[str, object] = {}
        self._writing = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._written = 0.0
        self.token = 0

    def acquire(self, **content: object) -> int:
        """Take the lease and keep it alive.

        Returns:
            the fencing token.

        Raises:
            LeaseHeld: a live holder has it.
            ArtifactError: a holder that may be live wrote it with a newer deepspec.
        """
        self._content = content
        self._holder = uuid.uuid4().hex
        while True:
            listing = self._listing()
            if self._is_taken(listing):
                # The clock first: whatever holds us up from here on makes the holder look younger, never dead.
                now = self._backend.clock()
                listing = self._listing()
                self._refuse_if_alive(listing, now)
            self.token = _newest(listing) + 1
            self._written = time.monotonic()
            if not created(self._backend, self._path(), self._body()):
                continue
            # The number may have been free again because others took it, and later ones, and tidied up since.
            listing = self._listing()
            if _newest(listing) == self.token:
                break
            self._backend.delete(self._path())
        # What is left of earlier holders only takes room: failing to remove it is no reason to fail.
        with contextlib.suppress(DeepspecError):
            for path in listing:
                if 0 < _token(path) < self.token:
                    self._backend.delete(path)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{self._prefix}", daemon=True)
        self._thread.start()
        return self.token

    def note(self, **content: object) -> None:
        """Change what the lease says (which keys it protects).

        Raises:
            LeaseHeld: it was lost to another run.
        """
        with self._writing:
            self._content = {**self._content, **content}
            if not self._write():
                raise LeaseHeld(
                    "Another run took over this lease, which this run had not renewed.",
                    where=self._prefix,
                    remedy="Run again.",
                )

    def held(self) -> bool:
        """Whether no other run has taken over since."""
        listing = self._listing()
        return _newest(listing) == self.token and self._released() not in listing and self._is_ours()

    def _is_ours(self) -> bool:
        """Whether the record under our number is the one that we wrote."""
        try:
            return bool(unseal(self._backend.read(self._path()))["holder"] == self._holder)
        except FileNotFoundError:
            return False
        except (ValueError, KeyError):
            return True  # damaged, not taken over: the next heartbeat writes it again

    def release(self) -> None:
        """Give the lease back; if the store cannot be written, it runs out by itself."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        try:
            # The record itself stays: a run that decided to take this number a while ago must not find it free.
            # Whether another run has taken over does not matter: its number is a later one.
            if self._is_ours():
                self._backend.create(self._released(), b"")
        except DeepspecError as error:
            logger.warning("%s could not be released and will run out by itself: %s", self._prefix, error)

    def _is_taken(self, listing: Mapping[str, Stat]) -> bool:
        """Whether the newest record is not released: its holder lives, or died."""
        path = f"{self._prefix}/{_newest(listing):06d}.json"
        return path in listing and path.removesuffix("json") + "released" not in listing

    def _refuse_if_alive(self, listing: Mapping[str, Stat], now: float) -> None:
        if not self._is_taken(listing):
            return
        path = f"{self._prefix}/{_newest(listing):06d}.json"
        ttl_seconds = self._ttl_seconds
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            record = unseal(self._backend.read(path))
            if now - listing[path].modified < _FORGOTTEN_SECONDS:
                _refuse_newer(record, path)
            ttl_seconds = record["ttl_seconds"]
        if now - listing[path].modified < ttl_seconds:
            raise LeaseHeld(
                "Another run is working on this.",
                where=self._prefix,
                remedy=f"Wait for it to end; a dead run's lease expires after {ttl_seconds:g} s.",
            )

    def _beat(self) -> None:
        stopped = self._stopped
        while not stopped.wait(self._ttl_seconds / 3):
            try:
                with self._writing:
                    if not self._write():
                        logger.warning("%s was taken over by another run.", self._prefix)
                        return
            except DeepspecError as error:  # a missed heartbeat must not end the run; the next may come through
                logger.warning("The heartbeat of %s could not be written: %s", self._prefix, error)
                logger.debug("where that happened", exc_info=True)

    def _write(self) -> bool:
        """Write the record again if the lease is still ours; return whether it is."""
        if not (self._is_fresh() or self.held()):
            return False
        started = time.monotonic()
        self._backend.put(self._path(), self._body())
        self._written = started
        return True

    def _is_fresh(self) -> bool:
        """Whether the record is so new that no other run can have taken over: that takes the time to live."""
        return time.monotonic() - self._written < self._ttl_seconds / 4

    def _listing(self) -> dict[str, Stat]:
        """The records under this very name (another lease's name may begin with it)."""
        listing = self._backend.list(self._prefix)
        return {path: stat for path, stat in listing.items() if path.rpartition("/")[0] == self._prefix}

    def _path(self) -> str:
        return f"{self._prefix}/{self.token:06d}.json"

    def _released(self) -> str:
        return f"{self._prefix}/{self.token:06d}.released"

    def _body(self) -> bytes:
        return seal(
            {"format": FORMAT, "holder": self._holder, "ttl_seconds": self._ttl_seconds, "content": self._content}
        )


@contextlib.contextmanager
def leased(backend: Backend, name: str, ttl_seconds: float = 60.0, **content: object) -> Iterator[Lease]:
    """Hold the lease `name` for the duration of a `with` block."""
    lease = Lease(backend, name, ttl_seconds)
    lease.acquire(**content)
    try:
        yield lease
    finally:
        lease.release()


def live(backend: Backend, group: str) -> Iterator[dict[str, Any]]:
    """The contents of every live lease under `leases/<group>/`.

    A lease is judged by the time to live that its holder gave it.

    Raises:
        ArtifactError: a lease that may be live cannot be understood, or a newer deepspec wrote it.
    """
    now = backend.clock()
    listing = backend.list(f"leases/{group}")
    for path, stat in listing.items():
        age = now - stat.modified
        if not path.endswith(".json") or path.removesuffix("json") + "released" in listing:
            continue
        try:
            record = unseal(backend.read(path))
            if age < _FORGOTTEN_SECONDS:
                _refuse_newer(record, path)
            ttl_seconds, content = float(record["ttl_seconds"]), dict(record["content"])
        except FileNotFoundError:
            continue  # released since
        except (ValueError, KeyError, TypeError) as error:
            if age >= _FORGOTTEN_SECONDS:
                continue
            raise ArtifactError(
                "This lease cannot be read, so what its run uses is unknown.",
                where=path,
                remedy="If the run is alive, it writes the lease again within a minute; if not, remove this file.",
            ) from error
        if age < ttl_seconds:
            yield content


def _refuse_newer(record: Mapping[str, Any], path: str) -> None:
    refuse_newer(
        record,
        FORMAT,
        what="The lease of a run that may be live",
        where=path,
        otherwise="wait until that run has ended",
    )


def _token(path: str) -> int:
    match = _RECORD.fullmatch(path.rpartition("/")[2])
    return int(match.group(1)) if match else 0


def _newest(listing: Mapping[str, Stat]) -> int:
    return max(map(_token, listing), default=0)
