"""From sources to conversations: validated, without duplicates and benchmark prompts, in disjoint splits, sorted.

The output is a function of the set of input rows: neither their order nor that of the sources changes it, apart from
the quarantine, which keeps the order of reading. Rows of one split stand sorted by (prompt_id, id). Rows go through
files (external_sort.py), so that memory does not grow with the data; near_duplicates.py, mixture.py and splits.py say
what they add.

The folder's `about/` lists what was left out, and counts it by source (statistics.py).

Not here: answers (responses/regenerate.py), tokens (tokens/encode.py).
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepspec.data.config import SPLITS, Config, SourceEntry
from deepspec.data.conversations.decontamination import NO_BENCHMARKS, Benchmarks, Contamination
from deepspec.data.conversations.external_sort import Spills
from deepspec.data.conversations.mixture import (
    Key,
    Sample,
    is_mixture,
    quotas,
    ranks_of,
    sample,
    sample_key,
)
from deepspec.data.conversations.near_duplicates import NearDuplicate, NearDuplicates
from deepspec.data.conversations.seen_requests import SeenRequests
from deepspec.data.conversations.splits import assign
from deepspec.data.conversations.statistics import Statistics, name_of
from deepspec.data.provenance import PositionWriter
from deepspec.data.quarantine import Quarantine
from deepspec.data.sources.account import Account, accounts_of, warnings
from deepspec.data.sources.columnar.process import end_processes
from deepspec.data.sources.finding import Source, find
from deepspec.data.sources.parsing import conversation_hash, parse_conversation, prompt_hash
from deepspec.data.sources.readers import read_rows, source_bytes
from deepspec.data.sources.rows import Message, Position, RowRejected, excerpt_of, source_name
from deepspec.data.tables import MESSAGES, PRIVATE, TOOLS, TableWriter, with_tools, write_summary
from deepspec.data.traffic.exchange import MODEL, REQUEST, USER
from deepspec.data.traffic.window import account_of
from deepspec.errors import DataError
from deepspec.progress import SILENT, Progress

logger = logging.getLogger(__name__)

CONVERSATIONS_SCHEMA = pa.schema([("id", pa.string()), ("prompt_id", pa.string()), ("messages", MESSAGES)])
_PLACE = [("source", pa.string()), ("row", pa.int64())]
_CONTAMINATED_SCHEMA = pa.schema(
    [*_PLACE, ("benchmark", pa.string()), ("benchmark_row", pa.int64()), ("shared", pa.string())]
)
_NEAR_DUPLICATES_SCHEMA = pa.schema(
    [*_PLACE, ("prompt_id", pa.string()), ("kept_prompt_id", pa.string()), ("similarity", pa.float64())]
)


def write_conversations(
    config: Config,
    sources: Sequence[str | Path | SourceEntry],
    out: Path,
    *,
    benchmarks: Benchmarks = NO_BENCHMARKS,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Read, check and split conversations: `<split>.parquet`, `quarantine.parquet` and `summary.json` in `out`.

    In `out/about`: where each came from (provenance.py), `decontaminated.parquet` and `near_duplicates.parquet` with
    the rows that were left out and why, `statistics.json` and `sample.html`.

    Args:
        config: the recipe's data section.
        sources: what to read, as in `data.source`.
        out: existing folder that is written to.
        benchmarks: what must not be trained on: a conversation that has or begins with one of their prompts is left
            out and counted as excluded, one that shares a run of words with one as decontaminated.
        progress: counts bytes read, then conversations compared (if near-duplicates are left out), then written.

    Returns:
        Counts, as in `summary.json` (every row read is quarantined, excluded, decontaminated, a duplicate, a
        near-duplicate, left out or kept), `rows_by_source` by file, and `sources` by entry of the recipe.

    Raises:
        DataError: a source cannot be read, there are no rows, or a split stays empty.
        TooManyQuarantined: above `data.max_quarantined_share`; the quarantine file is written all the same.
    """
    entries = [item if isinstance(item, SourceEntry) else SourceEntry(path=str(item)) for item in sources]
    found = find([entry.path for entry in entries])
    with tempfile.TemporaryDirectory(dir=out, prefix=".spill-") as spill_folder:
        making = _Making(config, entries, out, Path(spill_folder), progress)
        making.read(found.sources, accounts_of(found, list(map(name_of, entries))), benchmarks)
        making.choose()
        splits = making.write()
    return making.finish(splits)


class _Making:
    """Conversations while they are made: what has been counted, and the rows on disk."""

    def __init__(
        self, config: Config, entries: Sequence[SourceEntry], out: Path, folder: Path, progress: Progress
    ) -> None:
        self._config = config
        self._entries = entries
        self._ranks = ranks_of(entries)
        self._out = out
        self._folder = folder
        self._progress = progress
        self._spills = Spills(folder)
        self._counts: Counter[str] = Counter()
        self._rows_by_source: Counter[str] = Counter()
        self._quarantined: dict[str, Any] = {}
        self._statistics = Statistics(entries, config.seed)
        self._near_duplicates: Mapping[int, NearDuplicate] = {}
        self._samples = Sample(), Sample()
        self._splits: list[str] = []
        (out / "about").mkdir(exist_ok=True)

    def read(self, found: Sequence[Source], accounts: Sequence[Account], benchmarks: Benchmarks) -> None:
        """Put each row of the sources into the spills or the quarantine, or leave it out as a benchmark's."""
        self._statistics.accounts = accounts
        for account, entry in zip(accounts, self._entries, strict=True):
            account.is_private = entry.is_private
            account.traffic = account_of(entry.path) if entry.traffic is not None else None
        self._rows_by_source.update({source_name(source.path): 0 for source in found})
        self._progress.start(sum(map(source_bytes, found)), "bytes")
        with (
            Quarantine(self._out) as quarantine,
            TableWriter(self._out / "about" / "decontaminated.parquet", _CONTAMINATED_SCHEMA) as contaminated,
        ):
            with self._spills, closing(SeenRequests(self._folder)) as seen:
                for source in found:
                    before = self._counts["rows"]
                    self._read_source(source, benchmarks, quarantine, contaminated, seen)
                    self._rows_by_source[source_name(source.path)] += self._counts["rows"] - before
                    if self._counts["rows"] == before:
                        logger.warning("%s holds no row", source.path)
            end_processes()
            for account in accounts:
                for line in warnings(account.name, account.to_json()):
                    logger.warning("%s", line)
            if not self._counts["rows"]:
                raise DataError(
                    "no source holds a row.",
                    where=", ".join(source.path for source in found),
                    remedy="Check data.source.",
                )
            quarantine.check(self._counts["rows"], self._config.max_quarantined_share)
            self._quarantined = quarantine.counts()

    def choose(self) -> None:
        """Decide which conversations are kept, and in which split each of their prompts stands."""
        self._near_duplicates = self._found_near_duplicates()
        self._samples = self._sampled(self._near_duplicates)
        if any(self._config.splits.model_dump().values()):
            self._progress.start(2 * self._num_spilled(), "conversations")
            self._splits = assign(self._kept_prompts, self._config, self._folder)

    def _kept_prompts(self) -> Iterator[tuple[str, Sequence[Message]]]:
        """The prompts of kept conversations, each once, in order."""
        last_prompt = None
        for row, index, is_copy in self._indexed(["messages"]):
            self._progress.advance()
            if row["prompt_id"] != last_prompt and self._keeps(row, index, is_copy=is_copy):
                last_prompt = row["prompt_id"]
                yield row["prompt_id"], row["messages"]

    def _keeps(self, row: Mapping[str, Any], index: int, *, is_copy: bool) -> bool:
        of_each, of_all = self._samples
        key = sample_key(self._config.seed, row)
        kept = not is_copy and index not in self._near_duplicates
        return kept and of_each.admits(row["entry"], key) and of_all.admits(0, key)

    def _found_near_duplicates(self) -> Mapping[int, NearDuplicate]:
        """Which prompts are left out as near-duplicates, by their index in the order of the spills."""
        threshold = self._config.near_duplicates
        if threshold is None:
            return {}
        self._progress.start(self._num_spilled(), "conversations")
        with NearDuplicates(self._folder, threshold) as near:
            last_prompt = None
            for row in self._spills.sorted_rows(["messages"]):
                self._progress.advance()
                if row["prompt_id"] != last_prompt:
                    last_prompt = row["prompt_id"]
                    near.add(row["messages"])
            return near.found()

    def _sampled(self, duplicates: Mapping[int, NearDuplicate]) -> tuple[Sample, Sample]:
        """Which rows of each source are taken, and which of all of those."""
        config, entries = self._config, self._entries

        def rows() -> Iterator[tuple[int, Key]]:
            for row, index, is_copy in self._indexed([]):
                if not is_copy and index not in duplicates:
                    yield row["entry"], sample_key(config.seed, row)

        of_each = Sample()
        if is_mixture(entries):
            of_each = sample(rows, len(entries), self._quotas)
        if config.max_rows is None:
            return of_each, Sample()
        most = config.max_rows
        return of_each, sample(
            lambda: ((0, key) for entry, key in rows() if of_each.admits(entry, key)),
            1,
            lambda available: [min(most, available[0])],
        )

    def write(self) -> dict[str, int]:
        """Write the kept conversations, sorted; returns how many stand in each split."""
        duplicates, (of_each, of_all) = self._near_duplicates, self._samples
        splits = iter(self._splits)
        split = ""
        kept_prompts: dict[int, str] = {duplicate.kept: "" for duplicate in duplicates.values()}
        schema = CONVERSATIONS_SCHEMA
        if self._spills.have_tools:
            schema = with_tools(schema, weights=self._spills.have_weights)
        if any(entry.traffic is not None for entry in self._entries):
            schema = schema.append(pa.field(USER, pa.string())).append(pa.field(MODEL, pa.string()))
        self._progress.start(self._num_spilled(), "conversations")
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(TableWriter(self._out / f"{split}.parquet", schema)) for split in SPLITS
            }
            positions = stack.enter_context(PositionWriter(self._out))
            listed = stack.enter_context(
                TableWriter(self._out / "about" / "near_duplicates.parquet", _NEAR_DUPLICATES_SCHEMA)
            )
            last_prompt = None
            for row, index, is_copy in self._indexed(["messages", USER, MODEL]):
                self._progress.advance()
                if index in kept_prompts:
                    kept_prompts[index] = row["prompt_id"]
                if is_copy:
                    self._count(row["entry"], "duplicates")
                    continue
                duplicate = duplicates.get(index)
                if duplicate is not None:
                    self._count(row["entry"], "near_duplicates")
                    kept = kept_prompts[duplicate.kept]
                    listed.write({**row, "kept_prompt_id": kept, "similarity": duplicate.similarity})
                    continue
                key = sample_key(self._config.seed, row)
                admitted = of_each.admits(row["entry"], key)
                if not (admitted and of_all.admits(0, key)):
                    self._counts["left_out_by_max_rows" if admitted else "left_out_of_mixture"] += 1
                    self._statistics.count(row["entry"], "left_out")
                    continue
                if row["prompt_id"] != last_prompt:
                    self._counts["prompts"] += 1
                    split = next(splits, SPLITS[0])
                last_prompt = row["prompt_id"]
                writers[split].write(row)
                positions.write(row)
                self._statistics.keep(row["entry"], split, row)
            return {split: writer.num_rows for split, writer in writers.items()}

    def finish(self, splits: Mapping[str, int]) -> dict[str, Any]:
        """Write the summary and the statistics; returns the counts."""
        counts, config = self._counts, self._config
        summary = {
            "rows": counts["rows"],
            "conversations": sum(splits.values()),
            "prompts": counts["prompts"],
            "splits": splits,
            "duplicates": counts["duplicates"],
            "excluded": counts["excluded"],
            "left_out_by_max_rows": counts["left_out_by_max_rows"],
            **self._quarantined,
        }
        # The summary leaves out what is switched off: it is then as it was before that filter existed.
        if config.near_duplicates is not None:
            summary["near_duplicates"] = counts["near_duplicates"]
        if config.decontamination_words is not None:
            summary["decontaminated"] = counts["decontaminated"]
        if is_mixture(self._entries):
            summary["left_out_of_mixture"] = counts["left_out_of_mixture"]
        if any(entry.is_private for entry in self._entries):
            summary[PRIVATE] = True
        write_summary(self._out / "summary.json", summary)
        self._statistics.write(self._out)
        _check_splits(config, splits)
        # Names of sources are no part of the result's content.
        return {**summary, "rows_by_source": dict(self._rows_by_source), "sources": self._statistics.sources()}

    def _read_source(
        self,
        source: Source,
        benchmarks: Benchmarks,
        quarantine: Quarantine,
        contaminated: TableWriter,
        seen: SeenRequests,
    ) -> None:
        config = self._config
        account, entry = self._statistics.accounts[source.entry], self._entries[source.entry]
        for row in read_rows(source, max_row_bytes=config.max_row_bytes, account=account):
            self._count(source.entry, "rows")
            self._progress.advance(row.num_bytes)
            try:
                if row.rejection is not None:
                    raise row.rejection
                value, served = _served(row.value) if entry.traffic is not None else (row.value, {})
                request = served.get(REQUEST)
                if request is not None and not seen.add(request):
                    self._counts["repeated_requests"] += 1
                    self._count(source.entry, "duplicates")
                    account.count(())
                    continue
                messages, tools, unread = parse_conversation(value, config)
            except RowRejected as rejection:
                excerpt = row.excerpt if row.rejection is not None else _excerpt(row.value)
                if entry.is_private:
                    rejection, excerpt = rejection.unquoted(), ""
                account.refuse(rejection.reason)
                self._statistics.count(source.entry, "quarantined")
                quarantine.add(row.position, rejection, excerpt)
                continue
            account.count(unread | row.unread)
            found = benchmarks.find(messages)
            if found is not None:
                self._count(source.entry, "decontaminated" if found.shared else "excluded")
                contaminated.write(_contaminated_row(row.position, found))
                continue
            self._spills.write(
                {
                    "id": conversation_hash(messages, tools),
                    "prompt_id": prompt_hash(messages, tools),
                    "messages": messages,
                    TOOLS: tools,
                    "source": row.position.path,
                    "row": row.position.row,
                    "entry": source.entry,
                    "rank": self._ranks[source.entry],
                    USER: served.get(USER),
                    MODEL: served.get(MODEL),
                }
            )

    def _indexed(self, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], int, bool]]:
        """Rows in order, with the index of their prompt, and whether the row before is the same conversation."""
        last_id = last_prompt = None
        index = -1
        for row in self._spills.sorted_rows(["entry", *columns]):
            index += row["prompt_id"] != last_prompt
            yield row, index, row["id"] == last_id
            last_id, last_prompt = row["id"], row["prompt_id"]

    def _quotas(self, available: Sequence[int]) -> list[int]:
        for count, entry in zip(available, self._entries, strict=True):
            if entry.weight is not None and not count:
                raise DataError(
                    "none of its rows is left to be mixed with the others.",
                    where=f"data.source {name_of(entry)}",
                    remedy="See the counts of quarantined, excluded and doubled rows; or leave the source out.",
                )
        return quotas(available, self._entries, self._config.max_rows)

    def _num_spilled(self) -> int:
        left_out = ("excluded", "decontaminated", "repeated_requests")
        return self._counts["rows"] - sum(self._counts[what] for what in left_out) - self._num_quarantined

    @property
    def _num_quarantined(self) -> int:
        return int(self._quarantined["quarantined"])

    def _count(self, entry: int, what: str) -> None:
        self._counts[what] += 1
        self._statistics.count(entry, what)


def _served(value: object) -> tuple[object, dict[str, Any]]:
    """A row that was taken of traffic, and what it says of the request."""
    if not isinstance(value, dict):
        return value, {}
    named = (REQUEST, USER, MODEL)
    row = {name: inner for name, inner in value.items() if name not in named}
    return row, {name: value[name] for name in named if name in value}


def _contaminated_row(position: Position, found: Contamination) -> dict[str, Any]:
    return {
        "source": position.path,
        "row": position.row,
        "benchmark": found.benchmark,
        "benchmark_row": found.benchmark_row,
        "shared": found.shared,
    }


def _check_splits(config: Config, splits: Mapping[str, int]) -> None:
    shares = config.splits.model_dump()
    for split, num_rows in splits.items():
        if num_rows == 0 and shares.get(split, 1.0) > 0:
            raise DataError(
                f"none of {sum(splits.values())} conversations falls into the split {split}.",
                where=f"data.splits.{split}" if split in shares else "data.source",
                remedy="Give more conversations, or change the shares in data.splits (0 switches a split off).",
            )


def _excerpt(value: object) -> str:
    try:
        return excerpt_of(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:  # nested as deep as could just be read
        return ""
