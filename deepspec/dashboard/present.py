"""The present: hosts that follow champions, and runs that are alive, as the store knows them."""

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from deepspec.dashboard.nights import plain
from deepspec.errors import ArtifactError
from deepspec.history import time_of
from deepspec.reports.dashboard.feed import FollowerEntry, LogEntry, RunningRun
from deepspec.serving.followers import Seen, followers
from deepspec.store import Backend
from deepspec.store.lease import live

logger = logging.getLogger(__name__)

_RUN_LEASE = re.compile(r"leases/runs/(\d{8}-\d{6}-[0-9a-f]+)/\d+\.json")
_STAGE_LEASE = re.compile(r"leases/stages/([a-z_]+)-[0-9a-f]{64}/\d+\.json")


def following(
    backend: Backend, logs: Mapping[str, Sequence[LogEntry]], now: datetime
) -> tuple[FollowerEntry, ...] | None:
    """Every host that follows a champion; None: the store does not hand them out.

    Args:
        backend: of the store.
        logs: the promotion log of each model.
        now: in UTC.
    """
    try:
        return tuple(_entry(seen, logs.get(seen.follower.model, ()), now) for seen in followers(backend))
    except ArtifactError as error:
        logger.warning("Followers are missing on the dashboard: %s", error)
        return None


def _entry(seen: Seen, log: Sequence[LogEntry], now: datetime) -> FollowerEntry:
    said = seen.follower
    heard = now - timedelta(seconds=seen.silent_seconds)
    return FollowerEntry(
        host=said.host,
        place=said.directory.rstrip("/").rpartition("/")[2],
        model=said.model,
        version=said.version,
        digest=said.digest,
        since=said.since,
        seen=heard.isoformat(timespec="seconds"),
        state=seen.state,
        is_champion=seen.is_champion,
        behind=_behind(said.digest, log),
        trouble=plain(said.trouble),
    )


def _behind(digest: str, log: Sequence[LogEntry]) -> int | None:
    """How many changes of the champion came after the last one that this draft came in by."""
    changes = [entry for entry in log if entry.kind != "unblock"]
    for missed, entry in enumerate(reversed(changes)):
        if entry.digest == digest:
            return missed
    return None


def running(backend: Backend, but: str | None) -> tuple[RunningRun, ...] | None:
    """Runs that are alive, by their leases; None: it cannot be found out.

    A run that has found all it needs holds no lease, and is over in seconds.

    Args:
        backend: of the store.
        but: a run that is just ending.
    """
    try:
        found = {}
        for path in backend.list("leases/runs"):
            match = _RUN_LEASE.fullmatch(path)
            if match is not None and match[1] not in found and match[1] != but:
                found[match[1]] = next(live(backend, f"runs/{match[1]}"), None)
        alive = {run_id: content for run_id, content in found.items() if content is not None}
        stages = _stages(backend) if alive else {}
    except ArtifactError as error:
        logger.warning("What runs now is missing on the dashboard: %s", error)
        return None
    return tuple(
        RunningRun(
            run_id=run_id,
            models=tuple(map(str, content.get("models", ()))),
            began=began.isoformat() if (began := time_of(run_id)) is not None else None,
            stages=tuple(stages.get(run_id, ())),
        )
        for run_id, content in sorted(alive.items())
    )


def _stages(backend: Backend) -> dict[str, list[str]]:
    """The stages that each run makes just now."""
    found: dict[str, list[str]] = {}
    listing = backend.list("leases/stages")
    for path in listing:
        match = _STAGE_LEASE.fullmatch(path)
        if match is None or path.removesuffix("json") + "released" in listing:
            continue
        for content in live(backend, path.rpartition("/")[0].removeprefix("leases/")):
            found.setdefault(str(content.get("run")), []).append(match[1])
    return found
