"""The account of a source: rows read, fields not read, rows refused by reason, splits found, files not read.

One for each entry of `data.source`; whoever reads rows keeps it. The conversations' statistics and `data preview` show
it, so that nothing of an input is left out in silence. Standard library only.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from deepspec.data.sources.finding import Found, NotRead

_MOST_NAMES = 100
"""Different names or reasons that are counted apart; what comes after them shares one."""
_MOST_FILES = 1000
_FILES_SHOWN = 5
_REASONS_SHOWN = 3
_DAYS_SHOWN = 5
OTHER = "(others)"


class Account:
    """What was found in one source.

    Args:
        name: what the source is called.
        splits: names of the splits that its files belong to.
        not_read: its files that are not read.

    Attributes:
        rows: read, those that were refused among them.
        unread: field -> rows in which it holds something and is not read.
        refused: reason -> rows that cannot be used.
        is_private: whether names of fields are counted without saying them.
        traffic: what became of the rows of its logs, of a source of traffic.
    """

    def __init__(self, name: str, splits: Collection[str] = (), not_read: Sequence[NotRead] = ()) -> None:
        self.name = name
        self.rows = 0
        self.unread: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.is_private = False
        self.traffic: Mapping[str, Any] | None = None
        self._left_out = {item.split for item in not_read if item.split}
        self._splits = set(splits)
        self._not_read = tuple(not_read)

    def count(self, unread: Collection[str]) -> None:
        """Count a row that was read, and its fields that are not."""
        self.rows += 1
        for field in [OTHER] if unread and self.is_private else unread:
            _count(self.unread, field)

    def refuse(self, reason: str) -> None:
        """Count a row that cannot be used."""
        self.rows += 1
        _count(self.refused, reason)

    def found_splits(self, read: Collection[str], left_out: Collection[str]) -> None:
        """Note the splits of a data set, which are known only when it is loaded."""
        self._splits |= {*read, *left_out}
        self._left_out |= set(left_out)

    def to_json(self) -> dict[str, Any]:
        """All of it; the splits as name -> whether it is read."""
        return {
            "rows": self.rows,
            "unread_fields": _sorted(self.unread),
            "refused": _sorted(self.refused),
            "splits": {split: split not in self._left_out for split in sorted(self._splits)},
            "num_files_not_read": len(self._not_read),
            "files_not_read": [
                {"file": PurePath(item.path).name, "why": item.why} for item in self._not_read[:_MOST_FILES]
            ],
            **({} if self.traffic is None else {"traffic": dict(self.traffic)}),
        }


def lines(name: str, account: Mapping[str, Any]) -> Iterator[str]:
    """What people should know of a source: how much was read, and each thing that was not.

    Args:
        name: of the source.
        account: as `Account.to_json` gives it.
    """
    reasons = [f"{reason} ({count:,})" for reason, count in account["refused"].items()]
    refused = f"{sum(account['refused'].values()):,} refused" + (": " if reasons else "")
    yield f"{name}: {_rows(account['rows'])} read, {refused}{', '.join(reasons[:_REASONS_SHOWN])}"
    yield from (f"{name}: {line}" for line in traffic_lines(account.get("traffic") or {}))
    yield from warnings(name, account)


def traffic_lines(traffic: Mapping[str, Any]) -> Iterator[str]:
    """What people should know of a window of request logs (deepspec/data/traffic/window.py); nothing of none."""
    if not traffic:
        return
    for what, days in (("of the window without a log", traffic["missing_days"]), ("to come", traffic["future"])):
        if days:
            more = f" and {len(days) - _DAYS_SHOWN:,} more" if len(days) > _DAYS_SHOWN else ""
            yield f"{len(days):,} day{'s' if len(days) > 1 else ''} {what}: {', '.join(days[:_DAYS_SHOWN])}{more}"
    counts = {**traffic["not_taken"], **traffic["refused"], **traffic["remarks"]}
    listed = "".join(f"; {reason}: {count:,}" for reason, count in counts.items())
    yield f"{traffic['window']}: {traffic['taken']:,} of {_rows(traffic['rows'])} of logs taken{listed}"


def warnings(name: str, account: Mapping[str, Any]) -> Iterator[str]:
    """Of `lines`, each thing that was not read."""
    splits, files, count = account["splits"], account["files_not_read"], account["num_files_not_read"]
    if splits:
        found = ", ".join(f"{split} ({'read' if is_read else 'left out'})" for split, is_read in splits.items())
        yield f"{name}: splits found: {found}"
    for field, rows in account["unread_fields"].items():
        yield f"{name}: {_rows(rows)} {'has' if rows == 1 else 'have'} a field `{field}` that is not read"
    if files:
        shown = ", ".join(f"{item['file']} ({item['why']})" for item in files[:_FILES_SHOWN])
        more = f" and {count - _FILES_SHOWN:,} more" if count > _FILES_SHOWN else ""
        yield f"{name}: {count:,} file{'s are' if count > 1 else ' is'} not read: {shown}{more}"


def accounts_of(found: Found, names: Sequence[str]) -> list[Account]:
    """An account for each pattern.

    Args:
        found: what the patterns name.
        names: what the patterns' sources are called.
    """
    return [
        Account(name, found.splits[entry], [item for item in found.not_read if item.entry == entry])
        for entry, name in enumerate(names)
    ]


def _count(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < _MOST_NAMES else OTHER] += 1


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
