"""One day of logs, taken: its rows that may be used, redacted, as a file of JSON Lines, and a count of all others.

A day's file is made again when its logs, the settings, the hook's code, or the rows that are too old have changed.
Nothing of a row that is not taken is written, not even to a quarantine.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

from deepspec.atomic_write import replacing, write_text
from deepspec.data.sources.columnar.columns import ALL_COLUMNS
from deepspec.data.sources.finding import Source
from deepspec.data.sources.readers import read_rows
from deepspec.data.sources.rows import RawRow, RowRejected
from deepspec.data.traffic.dated import Window
from deepspec.data.traffic.exchange import Exchange, consents, day_of, exchange_of, identity_of
from deepspec.data.traffic.redaction import code_of, redacted
from deepspec.data.traffic_config import Traffic
from deepspec.keyed_random import fraction
from deepspec.store.keys import digest_of
from deepspec.store.reading.pieces import sha256_of

NO_CONSENT, TOO_OLD, FUTURE, NOT_CHOSEN = "no consent", "too old", "of a day to come", "not in the share"
CUT_OFF = "answers left out: cut off or withheld"
_BATCH_ROWS = 1024  # that a hook is handed at once
_FORMAT = 1  # raised when equal logs and settings give other rows


@dataclass(frozen=True, slots=True)
class TakenDay:
    """One day's file, and what became of its logs' rows.

    Attributes:
        day: which.
        path: the file.
        digest: SHA-256 of it.
        rows, taken: read, and written.
        not_taken, refused: reason -> rows that may not be used, and that cannot be read.
        remarks: what else there is to count.
    """

    day: date
    path: Path
    digest: str
    rows: int
    taken: int
    not_taken: Mapping[str, int]
    refused: Mapping[str, int]
    remarks: Mapping[str, int]


def take_day(
    traffic: Traffic,
    day: date,
    logs: Sequence[Any],
    sources: Callable[[], AbstractContextManager[Sequence[Source]]],
    window: Window,
    folder: Path,
    *,
    max_row_bytes: int,
) -> TakenDay:
    """The day's file in `folder`, which is made if it is not there or is of other logs or settings.

    Args:
        traffic: the recipe's section.
        day: which.
        logs: which files they are, by content or version, in order: equal ones are not read again.
        sources: those files, while they are read.
        window: the days that rows may be of.
        folder: exists.
        max_row_bytes: longer rows cannot be used.

    Raises:
        DataError: a log, or the redaction hook, cannot be used.
    """
    code = code_of(traffic.redaction) if traffic.redaction is not None else None
    made_from = digest_of([_FORMAT, traffic, list(logs), code, max_row_bytes])
    path, about = folder / f"{day}.jsonl", folder / f".{day}.json"
    known = _known(about, path, made_from, window)
    if known is None:
        taking = _Taking(traffic, window, max_row_bytes)
        with sources() as found, replacing(path) as new, new.open("w", encoding="utf-8", newline="\n") as file:
            for row in taking.rows(found):
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        known = {**taking.counts(), "made_from": made_from, "digest": sha256_of(path), "size": path.stat().st_size}
        write_text(about, json.dumps(known))
    counts = {name: known[name] for name in ("digest", "rows", "taken", "not_taken", "refused", "remarks")}
    return TakenDay(day=day, path=path, **counts)


def _known(about: Path, path: Path, made_from: str, window: Window) -> dict[str, Any] | None:
    """What is noted of a file, if it is of these logs and settings, and the window cuts it as it did then."""
    try:
        found = json.loads(about.read_bytes())
        if not isinstance(found, dict) or found["made_from"] != made_from or path.stat().st_size != found["size"]:
            return None
        days = {date.fromisoformat(day) for day in found["days"]}
        left_out = {date.fromisoformat(day) for day in found["left_out"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if left_out == {day for day in days if _why_not(day, window)} else None


class _Taking:
    """A day while it is taken."""

    def __init__(self, traffic: Traffic, window: Window, max_row_bytes: int) -> None:
        self._traffic = traffic
        self._window = window
        self._max_row_bytes = max_row_bytes
        self._rows = self._taken = 0
        self._not_taken: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._remarks: Counter[str] = Counter()
        self._days: set[date] = set()

    def rows(self, sources: Iterable[Source]) -> Iterator[dict[str, Any]]:
        """The rows that are taken, redacted."""
        hook = self._traffic.redaction
        for batch in _batches(self._exchanges(sources)):
            conversations = [exchange.row for exchange in batch]
            if hook is not None:
                conversations = redacted(hook, conversations)
            for exchange, conversation in zip(batch, conversations, strict=True):
                self._taken += 1
                yield exchange.taken(conversation)

    def counts(self) -> dict[str, Any]:
        """What there is to note."""
        return {
            "rows": self._rows,
            "taken": self._taken,
            "not_taken": dict(self._not_taken),
            "refused": dict(self._refused),
            "remarks": dict(self._remarks),
            "days": sorted(map(str, self._days)),
            "left_out": sorted(str(day) for day in self._days if _why_not(day, self._window)),
        }

    def _exchanges(self, sources: Iterable[Source]) -> Iterator[Exchange]:
        for source in sources:
            for row in read_rows(source, max_row_bytes=self._max_row_bytes, columns=ALL_COLUMNS):
                self._rows += 1
                try:
                    exchange = self._exchange(row)
                except RowRejected as rejection:
                    self._refused[rejection.plain] += 1
                    continue
                if exchange is not None:
                    yield exchange

    def _exchange(self, row: RawRow) -> Exchange | None:
        """What a row says, if it is taken; why not is counted."""
        if row.rejection is not None:
            raise row.rejection
        if not isinstance(row.value, Mapping):
            raise RowRejected("row is not an object")
        traffic = self._traffic
        if not consents(row.value, traffic):
            self._not_taken[NO_CONSENT] += 1
            return None
        if traffic.time_field is not None:
            day = day_of(row.value, traffic.time_field)
            self._days.add(day)
            why = _why_not(day, self._window)
            if why is not None:
                self._not_taken[why] += 1
                return None
        exchange = exchange_of(row.value, traffic)
        if traffic.share < 1 and fraction(f"traffic/{traffic.seed}/{identity_of(exchange)}") >= traffic.share:
            self._not_taken[NOT_CHOSEN] += 1
            return None
        if exchange.cut_off:
            self._remarks[CUT_OFF] += 1
        if traffic.id_field is not None and exchange.request is None:
            self._remarks["rows without a request's id (id_field)"] += 1
        return exchange


def _why_not(day: date, window: Window) -> str | None:
    """Why rows of a day are not taken, or None."""
    if day < window.oldest:
        return TOO_OLD
    return FUTURE if day > window.today else None


def _batches(exchanges: Iterator[Exchange]) -> Iterator[list[Exchange]]:
    while batch := list(islice(exchanges, _BATCH_ROWS)):
        yield batch
