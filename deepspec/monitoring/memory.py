"""What the monitor of a served draft remembers: one small document in the store, from look to look.

`monitor/<model>/<first digits of the draft's digest>.json`: each draft has its own references. It is
replaced whole after each look; of two monitors of one draft the second is refused by a lease.
"""

from pydantic import Field

from deepspec.errors import ArtifactError
from deepspec.monitoring.causes import Cause, Change
from deepspec.monitoring.counted import Counters
from deepspec.monitoring.log import Position
from deepspec.monitoring.references import Registered
from deepspec.monitoring.served import Says
from deepspec.monitoring.streams import Finding, StreamState
from deepspec.store.backends.contract import Backend
from deepspec.store.layout import MONITOR
from deepspec.store.records import JsonRecord, refuse_newer, seal, unseal

FORMAT = 1
"""Raised when a memory is written that an older deepspec could not read rightly."""
_DIGITS = 16


class Alarm(JsonRecord):
    """That served acceptance fell.

    Attributes:
        number: from 1.
        when: of the look, ISO 8601 in UTC.
        finding: what was found.
        causes: the likeliest first.
        advice: what to do.
    """

    number: int
    when: str
    finding: Finding
    causes: tuple[Cause, ...]
    advice: str


class Memory(JsonRecord):
    """All that is remembered of one served draft.

    Attributes:
        format: version of this record.
        model: registered model name.
        draft: content digest.
        version: registered version; None: not known.
        evaluation: key of the evaluation that is the first reference; None: there is none.
        registered: that reference.
        streams: by name.
        alarms: all of them, oldest first.
        says: what the server said last.
        seen: target or engine -> all that was said of it.
        changes: of what it says.
        position: in the log.
        counters: at the last look that counted.
        clock: the latest time of an answer, seconds since 1970.
        looked: when, ISO 8601 in UTC.
    """

    format: int = FORMAT
    model: str
    draft: str
    version: str | None = None
    evaluation: str | None = None
    registered: Registered = Registered()
    streams: dict[str, StreamState] = Field({})
    alarms: tuple[Alarm, ...] = ()
    says: Says = Says()
    seen: dict[str, tuple[str, ...]] = Field({})
    changes: tuple[Change, ...] = ()
    position: Position | None = None
    counters: Counters | None = None
    clock: float | None = None
    looked: str | None = None


def path_of(model: str, draft: str) -> str:
    """Where the memory of a draft lies in a store."""
    return f"{MONITOR}/{model}/{draft[:_DIGITS]}.json"


def read(backend: Backend, model: str, draft: str) -> Memory | None:
    """What is remembered of a draft; None: nothing.

    Raises:
        ArtifactError: it is damaged, or a newer deepspec wrote it.
    """
    path = path_of(model, draft)
    try:
        content = unseal(backend.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactError(
            f"What was remembered of served acceptance is damaged: {error}.",
            where=f"{backend.location}/{path}",
            remedy="Remove the file; monitoring then starts with a new burn-in.",
        ) from error
    refuse_newer(content, FORMAT, what="This memory of a monitor", where=path, otherwise="use another store")
    return Memory.from_json(content, where=path)


def write(backend: Backend, memory: Memory) -> None:
    """Replace what is remembered of a draft; never seen half-written."""
    backend.put(path_of(memory.model, memory.draft), seal({**memory.to_json(), "format": FORMAT}))
