"""What a set of conversations consists of: rows by source and domain, lengths, and a page with some of them.

Names of sources are no part of what a stage computes, so all of this lies in the artifact's `about/`. It is a function
of the rows and of `data.seed`. Lengths are in characters and messages; tokens/encode.py counts tokens. Not here: what
is kept (build.py).
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepspec.data.config import SPLITS, SourceEntry
from deepspec.data.conversations.mixture import fraction_of
from deepspec.data.conversations.statistics_page import COUNTED
from deepspec.data.sources.account import Account, lines
from deepspec.data.sources.rows import source_name
from deepspec.data.tables import write_summary

UNKNOWN = "unknown"
"""The domain of a source that says none."""

_SAMPLED = 24  # of all sources together; each shows as many as the others
_CHARACTERS_SHOWN = 600
_MESSAGE_BINS = 16  # lengths up to this have a bin of their own, longer ones share the last


class LengthHistograms:
    """Histograms of lengths: characters in powers of two, messages one by one.

    Bin k of `characters` counts 2^(k-1) … 2^k - 1; bin k of `messages` counts k, the last one more as well.
    """

    def __init__(self) -> None:
        self._characters: Counter[int] = Counter()
        self._messages: Counter[int] = Counter()
        self._sums: Counter[str] = Counter({"characters": 0, "messages": 0})
        self._longest = 0
        self.num_rows = 0

    def add(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Count one conversation."""
        characters = sum(len(message["content"]) for message in messages)
        self.num_rows += 1
        self._characters[characters.bit_length()] += 1
        self._messages[min(len(messages), _MESSAGE_BINS + 1)] += 1
        self._sums.update({"characters": characters, "messages": len(messages)})
        self._longest = max(self._longest, characters)

    def to_json(self) -> dict[str, Any]:
        """Bins as [from, to, conversations] (`to` null: no end), means and the longest."""
        characters = [[1 << bin_ >> 1, (1 << bin_) - 1, count] for bin_, count in sorted(self._characters.items())]
        messages = [
            [bin_, bin_ if bin_ <= _MESSAGE_BINS else None, count] for bin_, count in sorted(self._messages.items())
        ]
        means = {name: round(total / max(self.num_rows, 1), 2) for name, total in self._sums.items()}
        return {"characters": characters, "messages": messages, "mean": means, "longest_characters": self._longest}


class Statistics:
    """Counts rows while conversations are made.

    Args:
        entries: the sources, as in `data.source`.
        seed: of the choice of conversations that are shown.

    Attributes:
        accounts: of what was read of each source.
    """

    def __init__(self, entries: Sequence[SourceEntry], seed: int) -> None:
        self._entries = tuple(entries)
        self._seed = seed
        self.accounts: Sequence[Account] = [Account(name_of(entry)) for entry in entries]
        self._counts = [Counter(dict.fromkeys(COUNTED, 0)) for _ in entries]
        self._splits = [Counter(dict.fromkeys(SPLITS, 0)) for _ in entries]
        self._lengths = [LengthHistograms() for _ in entries]
        self._all_lengths = LengthHistograms()
        self._shown: list[list[tuple[float, str, str, Sequence[Mapping[str, str]]]]] = [[] for _ in entries]
        self._num_shown = max(1, _SAMPLED // len(self._entries))

    def count(self, entry: int, what: str, by: int = 1) -> None:
        """Count rows of a source under one of `COUNTED`."""
        self._counts[entry][what] += by

    def keep(self, entry: int, split: str, row: Mapping[str, Any]) -> None:
        """Count a conversation that a split keeps."""
        self._counts[entry]["conversations"] += 1
        self._splits[entry][split] += 1
        self._lengths[entry].add(row["messages"])
        self._all_lengths.add(row["messages"])
        if self._entries[entry].is_private:
            return
        shown = self._shown[entry]
        # The largest of negative draws are the smallest draws; ids differ, so messages are never compared.
        item = (-fraction_of(self._seed, "shown", row["id"]), row["id"], split, row["messages"])
        if len(shown) < self._num_shown:
            heapq.heappush(shown, item)
        else:
            heapq.heappushpop(shown, item)

    def sources(self) -> list[dict[str, Any]]:
        """Each source's counts and tags, in the order of the recipe; for cards and counts."""
        return [
            {
                "name": name_of(entry),
                **entry_tags(entry),
                **dict(self._counts[index]),
                "splits": dict(self._splits[index]),
            }
            for index, entry in enumerate(self._entries)
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything but the conversations that are shown."""
        domains: dict[str, Counter[str]] = {}
        for entry, counts in zip(self._entries, self._counts, strict=True):
            domains.setdefault(entry.domain or UNKNOWN, Counter(dict.fromkeys(COUNTED, 0))).update(counts)
        sources = [
            {**source, "input": account.to_json(), "lengths": lengths.to_json()}
            for source, account, lengths in zip(self.sources(), self.accounts, self._lengths, strict=True)
        ]
        return {
            "sources": sources,
            "domains": {name: dict(counts) for name, counts in sorted(domains.items())},
            "lengths": self._all_lengths.to_json(),
        }

    def write(self, folder: Path) -> None:
        """Write `about/statistics.json` and `about/sample.html` below the folder of the artifact."""
        from deepspec.data.conversations.statistics_page import conversations_page

        about = folder / "about"
        about.mkdir(exist_ok=True)
        content = self.to_json()
        write_summary(about / "statistics.json", content)
        shown = [
            {
                "source": name_of(entry),
                "domain": entry.domain or UNKNOWN,
                "split": split,
                "id": identity,
                "messages": [_shown(message) for message in messages],
            }
            for entry, items in zip(self._entries, self._shown, strict=True)
            for _, identity, split, messages in sorted(items, key=lambda item: (-item[0], item[1]))
        ]
        read = [line for account in self.accounts for line in lines(account.name, account.to_json())]
        (about / "sample.html").write_text(conversations_page(content, read, shown), encoding="utf-8", newline="\n")


def name_of(entry: SourceEntry) -> str:
    """What a source is called: its name, or the base name of where it lies."""
    return entry.name or source_name(entry.path)


def entry_tags(entry: SourceEntry) -> dict[str, Any]:
    """What a recipe says of a source, without its location."""
    return {name: getattr(entry, name) for name in ("domain", "licence", "retention", "weight", "max_rows")}


def _shown(message: Mapping[str, str]) -> dict[str, str]:
    content = message["content"]
    cut = f"{content[:_CHARACTERS_SHOWN]} … ({len(content)} characters)"
    return {"role": message["role"], "content": content if len(content) <= _CHARACTERS_SHOWN else cut}
