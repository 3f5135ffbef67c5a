"""Which host holds which draft: small records in the store that followers overwrite, and that lists read.

`followers/<model>/<host>-<id>.json` is a heartbeat, no truth: losing it is harmless, and a follower whose credentials
may not write goes on without. When it was seen last is said by the place's own clock, so that a host whose clock is
wrong is not taken for lost.
"""

import hashlib
import logging
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepspec.errors import ArtifactError
from deepspec.registry.errors import PromotionLogDamaged
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Backend
from deepspec.store.layout import FOLLOWERS
from deepspec.store.records import JsonRecord, refuse_newer, seal, unseal

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when a record is written that an older deepspec could not read."""

_MISSED = 3
_MARGIN_SECONDS = 15.0
"""So much longer than three times its interval a follower may be silent before it counts as lost."""

State = Literal["healthy", "unhealthy", "lost", "stopped"]


class Follower(JsonRecord):
    """What one follower says.

    Attributes:
        format: version of this record.
        host: the machine's name.
        directory: DIR on that machine.
        model, version, digest: of the draft that it holds; version and digest are empty before the first pull.
        since: ISO 8601, UTC: when the draft was put in place there.
        every_seconds: how often it says so, at least.
        healthy: it holds what it should, and the command after the last swap ended well.
        trouble: what is wrong, in words; empty if nothing is.
        hook_exit: exit code of that command; None: none was run.
        stopped: it was ended on purpose.
    """

    format: int
    host: str
    directory: str
    model: str
    version: str
    digest: str
    since: str
    every_seconds: float
    healthy: bool
    trouble: str
    hook_exit: int | None
    stopped: bool

    def say(self, backend: Backend) -> None:
        """Write it over what this follower said before.

        Raises:
            ArtifactError: the place refuses.
            TransientError: it does not answer.
        """
        backend.put(f"{FOLLOWERS}/{self.model}/{name_of(self.host, self.directory)}.json", seal(self.to_json()))


@dataclass(frozen=True)
class Seen:
    """A follower as it is listed.

    Attributes:
        follower: what it said last.
        silent_seconds: how long ago, by the store's clock.
        is_champion: whether it holds the present champion; None: the promotion log cannot say who that is.
    """

    follower: Follower
    silent_seconds: float
    is_champion: bool | None

    @property
    def state(self) -> State:
        """How it is."""
        if self.follower.stopped:
            return "stopped"
        if self.silent_seconds > _MISSED * self.follower.every_seconds + _MARGIN_SECONDS:
            return "lost"
        return "healthy" if self.follower.healthy else "unhealthy"


def host_name() -> str:
    """This machine's name."""
    return socket.gethostname() or "unknown"


def name_of(host: str, directory: str) -> str:
    """The name of a follower's record: the same after a restart, another for another DIR."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", host)[:100].strip("-") or "unknown"
    return f"{plain}-{hashlib.sha256(f'{host} {directory}'.encode()).hexdigest()[:8]}"


def followers(backend: Backend, model: str | None = None) -> list[Seen]:
    """Every follower (of one model), by model, host and directory.

    Costs a listing and a small read for each follower, and for each model what the promotion log costs. A record or a
    log that cannot be read is passed over with a warning.
    """
    listing = backend.list(f"{FOLLOWERS}/{model}" if model else FOLLOWERS)
    now = _now(backend) if listing else 0.0
    read = {path: follower for path in listing if (follower := _read(backend, path)) is not None}
    champions = {name: _champion(backend, name) for name in {follower.model for follower in read.values()}}
    found = []
    for path, follower in read.items():
        known, champion = champions[follower.model]
        holds = follower.digest == champion if known else None
        found.append(Seen(follower, max(0.0, now - listing[path].modified), holds))
    return sorted(found, key=lambda seen: (seen.follower.model, seen.follower.host, seen.follower.directory))


def _champion(backend: Backend, model: str) -> tuple[bool, str | None]:
    """Whether the promotion log can be read, and the champion's digest by it."""
    try:
        champion = PromotionLog(backend).champion(model)
    except PromotionLogDamaged as error:
        logger.warning("%s", error)
        return False, None
    return True, None if champion is None else champion.digest


def _read(backend: Backend, path: str) -> Follower | None:
    try:
        record = unseal(backend.read(path))
        refuse_newer(record, FORMAT, what="This follower", where=path, otherwise="list with the newer one")
        follower = Follower.from_json(record, where=path)
    except FileNotFoundError:
        return None  # removed since it was listed
    except (ValueError, ArtifactError) as error:
        logger.warning("%s is passed over: %s", path, error)
        return None
    expected = f"{FOLLOWERS}/{follower.model}/{name_of(follower.host, follower.directory)}.json"
    if path != expected:
        logger.warning("%s is passed over: it is about %s", path, expected)
        return None
    return follower


def _now(backend: Backend) -> float:
    try:
        return backend.clock()
    except ArtifactError:  # a folder that may only be read
        return time.time()


def document(seen: Seen) -> dict[str, Any]:
    """What is listed of a follower, as plain JSON values."""
    return {
        **seen.follower.to_json(),
        "state": seen.state,
        "is_champion": seen.is_champion,
        "silent_seconds": round(seen.silent_seconds, 1),
    }


def empty(model: str, directory: Path, every_seconds: float) -> Follower:
    """What a follower says before it holds anything."""
    return Follower(
        format=FORMAT,
        host=host_name(),
        directory=str(directory),
        model=model,
        version="",
        digest="",
        since="",
        every_seconds=every_seconds,
        healthy=True,
        trouble="",
        hook_exit=None,
        stopped=False,
    )
