"""What a place must offer to hold artifacts: few operations, one of them atomic.

`create` (write a new object, never overwrite) is the only primitive that correctness rests on: a link to a finished
file locally, a single PUT with `If-None-Match: *` on object storage. Paths are relative, with forward slashes.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from deepspec.account import Actor
from deepspec.errors import ArtifactError, DeepspecError, RecordTooLarge, StoreFull, TransientError
from deepspec.file_system import is_out_of_room
from deepspec.store.layout import Stat

MAX_RECORD_BYTES = 64 << 20
"""Most bytes of a record (a manifest, a lease, an entry of the log): what a reader holds in memory, whoever wrote it.

The largest is the manifest of states, with 92 bytes a piece: in pieces of 16 MB, that of 11 TB.
"""


class Backend(Protocol):
    """A place for immutable files, manifests and small records.

    Every method raises ArtifactError if the place refuses, and TransientError if it does not answer.
    """

    @property
    def location(self) -> str:
        """Where it is, for people (a path, or a URL without credentials)."""

    def actor(self) -> Actor:
        """Whom this place has let in: who writes to it."""

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` durably if nothing is at `path`; return whether this call created it.

        A place that repeats unanswered requests by itself may return False for what its own first request created.
        A caller that has to know whose it is uses `created`.

        Raises:
            StoreFull: no room left; nothing was created, or will be.
            RecordTooLarge: it could not be read back; nothing was created, or will be.
            ArtifactError: the place cannot be written; nothing was created, or will be.
            TransientError: no answer; it may have been created, or may yet be.
        """

    def put(self, path: str, data: bytes) -> None:
        """Write or overwrite a small record whose loss is harmless (a heartbeat); never seen half-written.

        Raises:
            RecordTooLarge: it could not be read back; nothing was written.
        """

    def read(self, path: str, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        """The whole content of `path`.

        Args:
            path: of a record.
            max_bytes: most of them; of what is larger no more is taken into memory.

        Raises:
            FileNotFoundError: nothing is there.
            RecordTooLarge: what is there is larger.
        """

    def list(self, prefix: str) -> dict[str, Stat]:
        """Every file under the folder `prefix` ("" for all), by full relative path; not a snapshot."""

    def delete(self, path: str) -> None:
        """Remove the file `path`; nothing happens if it is not there."""

    def staging(self, prefix: str) -> Path:
        """An empty local folder in which the files of `prefix` are prepared."""

    def publish(self, prefix: str, staging: Path) -> None:
        """Make every file in `staging` durable under `prefix`; visible only through a manifest made later.

        Who may read the store may read them, whatever mode the library that wrote a file left it with.
        """

    def fetch(self, prefix: str, names: Sequence[str], *, refetch: bool = False) -> Path:
        """A local folder in which the files `names` of `prefix` can be read (no copy where the place is local).

        Always the same folder for a prefix, with nothing else in it (names that begin with a dot apart). A file that is
        not in the place is left out: its reader finds it missing.

        Args:
            prefix: the attempt.
            names: its files that are wanted.
            refetch: take them from the place even where there are copies of them.
        """

    def clock(self) -> float:
        """Now by the clock that `Stat.modified` is measured with; needs no room."""

    def sweep(self, older_than_seconds: float) -> None:
        """Remove what interrupted calls left where no listing shows it (temporary files, unfinished uploads).

        Args:
            older_than_seconds: longer than any call that goes on may have taken so far.
        """


def created(backend: Backend, path: str, data: bytes) -> bool:
    """Create `path` and return whether it holds `data` now, even if the answer was lost on the way.

    Args:
        backend: the place.
        path: where.
        data: unlike what any other writer may bring (a fresh uuid in it), so that reading it back shows whose it is.

    Raises:
        as `Backend.create`, unless reading back shows that it did create it.
    """
    try:
        return backend.create(path, data) or _holds(backend, path, data)
    except (ArtifactError, TransientError):
        with contextlib.suppress(DeepspecError):
            if _holds(backend, path, data):
                return True
        raise


def refuse_large(size: int, path: str, where: str, max_bytes: int = MAX_RECORD_BYTES) -> None:
    """Refuse a record that is too large to be one.

    Args:
        size: its bytes; of one whose size is unknown, as many as have come.
        path: its name in the store.
        where: the store.
        max_bytes: most bytes of it.

    Raises:
        RecordTooLarge: it has more.
    """
    if size > max_bytes:
        raise RecordTooLarge(
            f"A record of {size:,} bytes or more is refused: at most {max_bytes:,} are read.",
            where=f"{where}/{path}",
            remedy="Look at what wrote it. If it is no record of deepspec's, remove it.",
        )


def full_disk(error: BaseException, where: str) -> StoreFull | None:
    """The StoreFull that `error` means, if it says that there is no room left (whichever library it came through)."""
    if not is_out_of_room(error):
        return None
    return StoreFull(
        "No space left for artifacts.",
        where=where,
        remedy="Free some space (`deepspec artifacts gc`), or point DEEPSPEC_STORE or DEEPSPEC_HOME at a larger disk.",
    )


def _holds(backend: Backend, path: str, data: bytes) -> bool:
    try:
        return backend.read(path) == data
    except FileNotFoundError:
        return False
