"""The history of runs in a store: one record of each that has ended, whichever machine it ran on.

`history/<year>-<month>/<run id>.json` is the run's record (deepspec/record.py), created once, never overwritten or
collected. Costs, dashboards and lists of nights are computed from it; which draft is champion only the promotion log
says, and what an artifact has cost its manifest.

    publish(store.backend, record)
    for record in records(store.backend, since=first_of_the_month): ...
"""

import logging
from collections.abc import Container
from datetime import UTC, datetime, timedelta

from deepspec.errors import ArtifactError, DeepspecError
from deepspec.record import FORMAT, RunRecord
from deepspec.store import Backend
from deepspec.store.layout import HISTORY
from deepspec.store.records import refuse_newer, seal, unseal

logger = logging.getLogger(__name__)

_ID_TIME = "%Y%m%d-%H%M%S"
_ID_TIME_CHARACTERS = len("20261201-020000")


def publish(backend: Backend, record: RunRecord) -> None:
    """Add the record of a run that has ended; nothing happens if it is there.

    A run that has done its work does not fail for it: a store that refuses or does not answer is warned of.
    """
    try:
        backend.create(_path(record), seal(record.to_json()))
    except (DeepspecError, ValueError) as error:
        logger.warning("Run %s is missing in the store's history: %s", record.run_id, error)


def records(
    backend: Backend,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    known: Container[str] = (),
) -> list[RunRecord]:
    """The runs that began in a span of time, oldest first; those whose record cannot be read are warned of.

    Args:
        backend: of the store.
        since, until: with a time zone; from the first, up to and without the second.
        known: ids of runs that are left out, and cost no read.

    Raises:
        ArtifactError, TransientError: the store refuses to list its history, or does not answer.
    """
    found: list[RunRecord] = []
    unreadable: list[str] = []
    for path in sorted(backend.list(HISTORY), key=lambda name: name.rpartition("/")[2]):
        name = path.rpartition("/")[2]
        began = time_of(name)
        if name.removesuffix(".json") in known:
            continue
        if began is None or (since and began < since) or (until and began >= until):
            continue
        try:
            content = unseal(backend.read(path))
            refuse_newer(content, FORMAT, what="This record of a run", where=path, otherwise="use another store")
            found.append(RunRecord.model_validate(content))
        except FileNotFoundError:
            continue
        except (ArtifactError, ValueError) as error:
            logger.debug("%s: %s", path, error)
            unreadable.append(path)
    if unreadable:
        logger.warning("%d records of runs cannot be read and are left out, e.g. %s", len(unreadable), unreadable[0])
    return found


def started_at(record: RunRecord) -> datetime:
    """When a run began, in UTC: its id says so.

    Raises:
        ValueError: this is no id of a run.
    """
    began = time_of(record.run_id)
    if began is None:
        raise ValueError(f"{record.run_id!r} is no id of a run")
    return began


def ended_at(record: RunRecord) -> datetime:
    """When a run ended, in UTC.

    Raises:
        ValueError: its id is no id of a run.
    """
    return started_at(record) + timedelta(seconds=float(record.seconds or 0.0))


def _path(record: RunRecord) -> str:
    return f"{HISTORY}/{started_at(record):%Y-%m}/{record.run_id}.json"


def time_of(run_id: str) -> datetime | None:
    """The time that the id of a run begins with, in UTC; None: it does not begin with one."""
    try:
        return datetime.strptime(run_id[:_ID_TIME_CHARACTERS], _ID_TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
