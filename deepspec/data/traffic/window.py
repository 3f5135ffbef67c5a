"""A source of traffic as a folder: the days of its window, one file each, whose content is what keys see.

`<home>/cache/traffic/<source>/days/` has a file for each day that was taken, and `<source>/<content>/<name>/` links to
those of one window: it is never changed, so that a run reads the same rows from its planning to its end. What leaves
the window is removed when the next one is made, a window's folder a day after it was last used.
"""

import contextlib
import functools
import glob
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from deepspec.atomic_write import write_text
from deepspec.data.config import SourceEntry
from deepspec.data.sources.account import traffic_lines
from deepspec.data.sources.columnar.process import end_processes
from deepspec.data.sources.finding import Source, find
from deepspec.data.traffic.dated import Window, days_there, has_days, label_of, on_day, window_of
from deepspec.data.traffic.intake import TakenDay, take_day
from deepspec.data.traffic_config import Traffic
from deepspec.errors import DataError, RecipeError
from deepspec.file_system import link
from deepspec.store.fingerprint import Fingerprints
from deepspec.store.keys import digest_of

logger = logging.getLogger(__name__)

ACCOUNT_FILE = ".account.json"
"""In a window's folder: what became of the rows of its logs."""
_GRACE_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Remote:
    """Object storage, as it is needed here.

    Attributes:
        versions: what a location names, in order: names and versions; nothing where nothing is there.
        copy: makes copies of it in a folder; returns their path.
    """

    versions: Callable[[str], Sequence[Any]]
    copy: Callable[[str, Path], str]


def taken_up(
    entry: SourceEntry,
    cache: Path,
    *,
    today: date,
    remote: Remote | None,
    max_row_bytes: int,
    max_quarantined_share: float,
) -> SourceEntry:
    """The source with the folder of its window as its path.

    Args:
        entry: of traffic.
        cache: folder for what is taken.
        today: of UTC; where the window's days are counted from.
        remote: where the logs lie in object storage; they are copied for as long as a day is read, and no longer.
        max_row_bytes, max_quarantined_share: of the recipe's data section.

    Raises:
        RecipeError: the path has no date, or there is no such window.
        DataError: no day has a log, nothing of them may be used, or too much of them cannot be read.
    """
    traffic, where = entry.traffic, f"data.source {entry.path}"
    if account_of(entry.path) is not None:  # it is a window's folder already
        return entry
    if traffic is None or not has_days(entry.path):
        raise RecipeError(
            "a source of traffic has its days in the path.",
            where=where,
            remedy="Write {date} for 2026-11-30, or {date:%Y/%m/%d} for 2026/11/30.",
        )
    window = window_of(traffic, today, where)
    folder = cache / digest_of([entry.path, json.loads(traffic.model_dump_json())])[:16]
    (folder / "days").mkdir(parents=True, exist_ok=True)
    cache.chmod(0o700)  # copies of what users have written
    fingerprints = Fingerprints(folder / ".fingerprints.json")
    _forget(folder / "days", window)
    taken: list[TakenDay] = []
    missing: list[date] = []
    for day in window.days:
        location = on_day(entry.path, day)
        logs = _local_logs(location, fingerprints) if remote is None else remote.versions(location)
        if not logs:
            missing.append(day)
            continue
        sources = partial(_sources, location, remote, folder)
        taken.append(take_day(traffic, day, logs, sources, window, folder / "days", max_row_bytes=max_row_bytes))
    end_processes()
    fingerprints.save()
    there = days_there(entry.path) if remote is None else {day.day for day in taken}
    account = _account(traffic, window, taken, missing, sorted(day for day in there if day > today))
    _check(account, taken, where, there, max_quarantined_share, today)
    for line in traffic_lines(account):
        _say(f"{entry.name or label_of(entry.path)}: {line}")
    made = _linked(folder, label_of(entry.path), taken, account)
    _clear(folder, made.parent)
    return entry.model_copy(update={"path": str(made)})


def account_of(folder: str | Path) -> dict[str, Any] | None:
    """What became of the rows of a window's logs; None: this is no window's folder."""
    try:
        found = json.loads((Path(folder) / ACCOUNT_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _local_logs(location: str, fingerprints: Fingerprints) -> list[str]:
    """The contents of a day's logs; none where nothing is there."""
    folder = Path(location)
    named = folder.iterdir() if folder.is_dir() else glob.iglob(location, recursive=True)  # noqa: PTH207
    found = find([location], held_out_too=True).sources if any(True for _ in named) else ()
    return [fingerprints.file(Path(source.path)) for source in found]


@contextlib.contextmanager
def _sources(location: str, remote: Remote | None, folder: Path) -> Iterator[Sequence[Source]]:
    """A day's logs while they are read: copies of what lies elsewhere are removed, for all users' rows are in them."""
    if remote is None:
        yield find([location], held_out_too=True).sources
        return
    with tempfile.TemporaryDirectory(prefix=".copies-", dir=folder) as copies:
        yield find([remote.copy(location, Path(copies))], held_out_too=True).sources


def _account(
    traffic: Traffic, window: Window, taken: Sequence[TakenDay], missing: Sequence[date], future: Sequence[date]
) -> dict[str, Any]:
    return {
        "window": str(window),
        "days": len(taken),
        "missing_days": list(map(str, missing)),
        "future": list(map(str, future)),
        "rows": sum(day.rows for day in taken),
        "taken": sum(day.taken for day in taken),
        "not_taken": _sum(day.not_taken for day in taken),
        "refused": _sum(day.refused for day in taken),
        "remarks": _sum(day.remarks for day in taken),
        **({"retention_days": traffic.retention_days} if traffic.retention_days else {}),
    }


def _sum(counts: Iterable[Any]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _check(
    account: dict[str, Any],
    taken: Sequence[TakenDay],
    where: str,
    there: Collection[date],
    allowed: float,
    today: date,
) -> None:
    """Refuse a window of which nothing may be used, or too much cannot be read."""
    if not taken:
        newest = f"the newest is {max(there)}" if there else "none was found"
        raise DataError(
            f"no day of the window {account['window']} has a log; {newest}, and today is {today} (UTC).",
            where=where,
            remedy="Check the path, the window, and this machine's clock.",
        )
    reasons = ", ".join(f"{why} ({count})" for why, count in {**account["not_taken"], **account["refused"]}.items())
    rows, refused = account["rows"], sum(account["refused"].values())
    if not rows:
        raise DataError(
            f"the {len(taken)} logs of the window {account['window']} are empty.",
            where=where,
            remedy="See what writes them, or take another window.",
        )
    if refused > allowed * rows:
        raise DataError(
            f"{refused} of {rows} rows of logs cannot be used, but data.max_quarantined_share allows {allowed:.2%}:"
            f" {reasons}.",
            where=where,
            remedy="Correct the fields of the section traffic, or the logs; or raise data.max_quarantined_share.",
        )
    if not account["taken"]:
        raise DataError(
            f"none of the {rows} rows of the window {account['window']} may be used: {reasons}.",
            where=where,
            remedy="Check consent_field, consent_value and time_field against a row of the log.",
        )


@functools.cache
def _say(line: str) -> None:
    """Said once: a window is resolved several times in a run."""
    logger.warning("%s", line)


def _linked(folder: Path, label: str, taken: Sequence[TakenDay], account: dict[str, Any]) -> Path:
    """The window's folder, with its days."""
    content = digest_of([[str(day.day), day.digest] for day in taken if day.taken])[:16]
    made = folder / content / label
    made.mkdir(parents=True, exist_ok=True)
    for day in (day for day in taken if day.taken):
        name = made / day.path.name
        if not name.exists():
            # Another run may be faster.
            with contextlib.suppress(FileExistsError):
                if not link(day.path, name):
                    shutil.copyfile(day.path, name)
    write_text(made / ACCOUNT_FILE, json.dumps(account, indent=1))
    os.utime(made.parent)
    return made


def _clear(folder: Path, current: Path) -> None:
    """Remove windows that no run has used for a day, and copies of a run that was killed."""
    for old in folder.iterdir():
        if old.is_dir() and old not in (current, folder / "days"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _GRACE_SECONDS:
                    shutil.rmtree(old)


def _forget(days: Path, window: Window) -> None:
    """Remove days that have left the window."""
    for path in [*days.glob("*.jsonl"), *days.glob(".*.json")]:
        with contextlib.suppress(ValueError):
            if date.fromisoformat(path.stem.lstrip(".")) < window.first:
                path.unlink(missing_ok=True)
