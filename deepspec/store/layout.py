"""Where things lie in a store, for those that look at listings.

<kind>/<key>/<attempt>/…               the files of one try; key 64 hex digits, attempt 32
<kind>/<key>/manifest.<n>.json         makes an attempt an artifact
<kind>/<key>/condemned.<n>.json        manifest n must not be used again
<kind>/<key>/checked.<n>.<time>.json   its files were read in full; time: milliseconds by the place's clock
dashboard/… followers/… history/… leases/… monitor/… registry/… work/…
                                       no artifacts

`condemned` and `checked` say all by their names: only people read what is in them, and they have no format version.
Files of artifacts need none of their own either: a stage's version is in its key, so that no version reads what another
one wrote.

A name in a listing, a manifest or a lease may come from anyone who can write to the place. `is_plain` says which names
lie inside the store; `inside` is the only way from a name to a local path; `listing` leaves out the others.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deepspec.errors import ArtifactError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stat:
    """Size in bytes and time of last modification (seconds since the epoch, the place's own clock)."""

    size: int
    modified: float


FOLLOWERS = "followers"
"""Of records that hosts overwrite to say what they hold: no artifacts, and no part of a copy."""

HISTORY = "history"
"""Of the records of runs that have ended."""

DASHBOARD = "dashboard"
"""Of pages that are made anew from all the others."""

MONITOR = "monitor"
"""Of what is remembered of served acceptance."""

RESERVED = (DASHBOARD, FOLLOWERS, HISTORY, MONITOR, "leases", "registry", "work")
"""Top-level folders of a store that hold no artifacts."""

KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
KEY = re.compile(r"[0-9a-f]{64}")
ATTEMPT = re.compile(r"[0-9a-f]{32}")
# Numbers in names are bounded: a name from elsewhere makes no number that arithmetic or a loop cannot take.
MANIFEST = re.compile(r"manifest\.([1-9][0-9]{0,8})\.json")
CONDEMNED = re.compile(r"condemned\.([1-9][0-9]{0,8})\.json")
CHECKED = re.compile(r"checked\.([1-9][0-9]{0,8})\.([0-9]{1,17})\.json")


def is_plain(path: str) -> bool:
    """Whether a relative path with forward slashes names something inside the folder that it starts from."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:  # not every place can hold it
        return False
    return not {b"", b".", b".."} & set(encoded.split(b"/")) and b"\0" not in encoded


def inside(root: Path, path: str) -> Path:
    """The local path of `path` in the folder `root`.

    Raises:
        ArtifactError: it would lie elsewhere.
    """
    if not is_plain(path):
        raise ArtifactError(
            f"{path!r} names no file inside the store.",
            where=str(root),
            remedy="Remove what has this name, or names it, from the store.",
        )
    return root.joinpath(*path.split("/"))


def listing(found: Iterable[tuple[str, Stat]], where: str) -> dict[str, Stat]:
    """What a place listed, without names that lie outside the store: these are said, and never used.

    Args:
        found: name relative to the store, and what is known of it.
        where: the place, for the warning.
    """
    kept = {}
    for name, stat in found:
        if is_plain(name):
            kept[name] = stat
        elif not (name.endswith("/") or not name) or stat.size:  # else a folder's marker, as consoles make them
            _warn(name, where)
    return kept


@lru_cache(maxsize=1024)
def _warn(name: str, where: str) -> None:
    logger.warning("%s: %r lies outside the store and is passed over", where, name)


def records(listing: Mapping[str, Stat], pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """The records directly under a key's folder (files of attempts lie one level deeper) whose names match."""
    for path in listing:
        parts = path.split("/")
        if len(parts) == 3 and (match := pattern.fullmatch(parts[2])):
            yield match


def numbers(listing: Mapping[str, Stat], pattern: re.Pattern[str]) -> set[int]:
    """The n of the records that match."""
    return {int(match.group(1)) for match in records(listing, pattern)}


def is_artifact_path(path: str) -> bool:
    """Whether `path` is part of an artifact (or of an attempt at one): anything else is not the store's to remove."""
    parts = path.split("/")
    if len(parts) < 3 or parts[0] in RESERVED or not KIND.fullmatch(parts[0]) or not KEY.fullmatch(parts[1]):
        return False
    if len(parts) == 3:
        return any(pattern.fullmatch(parts[2]) for pattern in (MANIFEST, CONDEMNED, CHECKED))
    return ATTEMPT.fullmatch(parts[2]) is not None
