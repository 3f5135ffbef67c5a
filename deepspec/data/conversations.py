"""From sources to conversations: validated, without duplicates and benchmark prompts, in disjoint splits, sorted.

The output is a function of the set of input rows: neither their order nor that of the sources changes it, apart from
the quarantine, which keeps the order of reading. Rows of one split stand sorted by (prompt_id, id). Memory does not
grow with the data: rows go through spill files by hash (about 64 of them), which are sorted one after the other.

Not here: answers (responses.py), tokens (tokens.py).
"""

import hashlib
import heapq
import itertools
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from deepspec.data.config import SPLITS, Config
from deepspec.data.positions import PositionWriter
from deepspec.data.quarantine import Quarantine
from deepspec.data.rows import Message, RowRejected, excerpt_of, source_name
from deepspec.data.sources import COLUMNS, TOO_LONG, Source, find_sources, read_rows, source_bytes
from deepspec.data.tables import (
    MESSAGES,
    TOOLS,
    TableWriter,
    read_conversations,
    read_table,
    with_tools,
    write_summary,
)
from deepspec.data.tool_calls import linked, parse_calls, parse_tools
from deepspec.errors import DataError
from deepspec.progress import SILENT, Progress

logger = logging.getLogger(__name__)

CONVERSATIONS_SCHEMA = pa.schema([("id", pa.string()), ("prompt_id", pa.string()), ("messages", MESSAGES)])
_SPILL_SCHEMA = pa.schema([*with_tools(CONVERSATIONS_SCHEMA), ("source", pa.string()), ("row", pa.int64())])

_NUM_SPILLS = 64  # of 256 / 64 = 4 first hash bytes each: 5 GB of conversations are sorted 80 MB at a time
_SPILL_ROWS = 128  # pending in each of the files: 64 · 128 rows in all
_ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
_ID_CHARACTERS = 32  # 128 bits of SHA-256: no two of a billion conversations collide


def write_conversations(
    config: Config,
    sources: Sequence[str | Path],
    out: Path,
    *,
    excluded: AbstractSet[str] = frozenset(),
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Read, check and split conversations: `<split>.parquet`, `quarantine.parquet` and `summary.json` in `out`.

    Where each came from is noted apart (positions.py).

    Args:
        config: the recipe's data section.
        sources: what to read, as in `data.source`.
        out: existing folder that is written to.
        excluded: prompt hashes of benchmarks (`prompt_hashes` of each of their prompts): a conversation that has or
            begins with such a prompt is left out, and counted.
        progress: told bytes read, then conversations written.

    Returns:
        Counts, as in `summary.json` (every row read is quarantined, excluded, a duplicate, left out or kept), and
        `rows_by_source`.

    Raises:
        DataError: a source cannot be read, there are no rows, or a split stays empty.
        TooManyQuarantined: above `data.max_quarantined`; the quarantine file is written all the same.
    """
    found = find_sources(sources)
    counts: Counter[str] = Counter()
    rows_by_source: Counter[str] = Counter({source_name(source.path): 0 for source in found})
    with (
        Quarantine(out) as quarantine,
        tempfile.TemporaryDirectory(dir=out, prefix=".spill-") as spill_folder,
    ):
        with _Spills(Path(spill_folder)) as spills:
            progress.start(sum(map(source_bytes, found)), "bytes")
            for source in found:
                before = counts["rows"]
                _read_source(config, source, excluded, spills, quarantine, counts, progress)
                rows_by_source[source_name(source.path)] += counts["rows"] - before
                if counts["rows"] == before:
                    logger.warning("%s holds no row", source.path)
        if not counts["rows"]:
            raise DataError("no source holds a row.", where=", ".join(source.path for source in found))
        quarantine.check(counts["rows"], config.max_quarantined)
        progress.start(counts["rows"] - quarantine.num_rows - counts["excluded"], "conversations")
        splits = _write_splits(config, spills, out, counts, progress)
        summary = {
            "rows": counts["rows"],
            "conversations": sum(splits.values()),
            "prompts": counts["prompts"],
            "splits": splits,
            "duplicates": counts["duplicates"],
            "excluded": counts["excluded"],
            "left_out_by_max_rows": counts["left_out"],
            **quarantine.counts(),
        }
    write_summary(out / "summary.json", summary)
    _check_splits(config, splits)
    # Names of sources are no part of the result's content.
    return {**summary, "rows_by_source": dict(rows_by_source)}


def parse_row(
    value: object, *, max_row_bytes: int, system_prompt: str | None = None, thoughts: bool = False
) -> list[Message]:
    """The conversation in a row, in OpenAI's form.

    Args:
        value: a row with `messages` (role, content), `conversations` (from, value) or `turns` (user turns only).
        max_row_bytes: most bytes of content, UTF-8.
        system_prompt: put before a conversation that has no system message.
        thoughts: whether an answer's `reasoning_content` (or `reasoning`) is kept; else it is left out.

    Raises:
        RowRejected: saying why it is not a conversation that can be used.
    """
    if not isinstance(value, Mapping):
        raise RowRejected("row is not an object")
    column = next((name for name in COLUMNS if value.get(name) is not None), None)
    turns = value.get(column) if column else None
    if turns is None or turns == []:
        raise RowRejected("row without messages")
    if not isinstance(turns, list):
        raise RowRejected(f"{column} is not a list")
    if column == "turns":
        messages: list[Message] = [{"role": "user", "content": _checked_content(turn)} for turn in turns]
    else:
        messages = [_parse_message(turn, thoughts=thoughts) for turn in turns]
        _check_order([message["role"] for message in messages])
        messages = linked(messages, [parse_calls(turn) for turn in turns])
    if (
        sum(len(text.encode()) for message in messages for name, text in message.items() if name != "role")
        > max_row_bytes
    ):
        raise RowRejected(TOO_LONG)
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def conversation_hash(messages: Iterable[Message], tools: str | None = None) -> str:
    """SHA-256 (128 bits of it, hex) over roles, contents and what else there is, in a canonical form."""
    said = [_hashed(message) for message in messages] + ([] if tools is None else [["tools", tools]])
    canonical = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_ID_CHARACTERS]


def _hashed(message: Message) -> list[Any]:
    more = {name: text for name, text in sorted(message.items()) if name not in {"role", "content"}}
    return [message["role"], message["content"], *([more] if more else [])]


def prompt_hash(messages: Iterable[Message], tools: str | None = None) -> str:
    """The hash of a conversation's prompt: all of it but the assistant's answers."""
    return conversation_hash((m for m in messages if m["role"] != "assistant"), tools)


def prompt_hashes(messages: Sequence[Message]) -> frozenset[str]:
    """Hashes under which a prompt is recognised: the whole of it, and the user's first one, two, … turns alone.

    Two conversations that open with the same question share one, whatever their system messages.
    """
    users = [message for message in messages if message["role"] == "user"]
    openings = (conversation_hash(users[: count + 1]) for count in range(len(users)))
    return frozenset((prompt_hash(messages), *openings))


def split_of(prompt_id: str, config: Config) -> str:
    """The split that a prompt belongs to: a function of the prompt and the recipe alone, never of other rows."""
    share = _fraction(config.seed, "split", prompt_id)
    edge = 0.0
    for name in SPLITS[1:]:
        edge += getattr(config.splits, name)
        if share < edge:
            return name
    return SPLITS[0]


def _read_source(
    config: Config,
    source: Source,
    excluded: AbstractSet[str],
    spills: "_Spills",
    quarantine: Quarantine,
    counts: Counter[str],
    progress: Progress,
) -> None:
    """Put each row of a source into the spills or the quarantine, or leave it out as a benchmark's prompt."""
    for row in read_rows(source, max_row_bytes=config.max_row_bytes):
        counts["rows"] += 1
        progress.advance(row.num_bytes)
        if row.rejection is not None:
            quarantine.add(row.position, row.rejection, row.excerpt)
            continue
        try:
            messages = parse_row(
                row.value,
                max_row_bytes=config.max_row_bytes,
                system_prompt=config.system_prompt,
                thoughts=config.thinking != "off",
            )
            tools = parse_tools(row.value)
            if tools is not None and len(tools.encode()) > config.max_row_bytes:
                raise RowRejected(TOO_LONG)
        except RowRejected as rejection:
            quarantine.add(row.position, rejection, _excerpt(row.value))
            continue
        if excluded and not excluded.isdisjoint(prompt_hashes(messages)):
            counts["excluded"] += 1
            continue
        spills.write(
            {
                "id": conversation_hash(messages, tools),
                "prompt_id": prompt_hash(messages, tools),
                "messages": messages,
                TOOLS: tools,
                "source": row.position.path,
                "row": row.position.row,
            }
        )


def _write_splits(
    config: Config, spills: "_Spills", out: Path, counts: Counter[str], progress: Progress
) -> dict[str, int]:
    """Write the kept conversations, sorted; returns how many stand in each split."""
    last_kept = _last_kept(config, spills)
    schema = with_tools(CONVERSATIONS_SCHEMA) if spills.have_tools else CONVERSATIONS_SCHEMA
    with ExitStack() as stack:
        writers = {split: stack.enter_context(TableWriter(out / f"{split}.parquet", schema)) for split in SPLITS}
        last_id = last_prompt = None
        positions = stack.enter_context(PositionWriter(out))
        for row in spills.sorted_rows(_SPILL_SCHEMA.names):
            progress.advance()
            if row["id"] == last_id:
                counts["duplicates"] += 1
                continue
            last_id = row["id"]
            if last_kept is not None and _sample_key(config, row) > last_kept:
                counts["left_out"] += 1
                continue
            counts["prompts"] += row["prompt_id"] != last_prompt
            last_prompt = row["prompt_id"]
            writers[split_of(row["prompt_id"], config)].write(row)
            positions.write(row)
        return {split: writer.num_rows for split, writer in writers.items()}


def _last_kept(config: Config, spills: "_Spills") -> tuple[float, str, str] | None:
    """The last sample key that `max_rows` lets in; None lets all in.

    Sampled by prompt first: which prompts stay does not depend on what was answered to them.
    """
    if config.max_rows is None:
        return None
    rows = spills.sorted_rows(["prompt_id", "id", "source", "row"])
    distinct = (key for key, _ in itertools.groupby(_sample_key(config, row) for row in rows))
    kept = heapq.nsmallest(config.max_rows, distinct)
    return kept[-1] if kept else None


def _sample_key(config: Config, row: Mapping[str, Any]) -> tuple[float, str, str]:
    return _fraction(config.seed, "sample", row["prompt_id"]), row["prompt_id"], row["id"]


def _fraction(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) drawn by hash: the same on every machine, and independent of every other draw."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _check_splits(config: Config, splits: Mapping[str, int]) -> None:
    shares = config.splits.model_dump()
    for split, num_rows in splits.items():
        if num_rows == 0 and shares.get(split, 1.0) > 0:
            raise DataError(
                f"none of {sum(splits.values())} conversations falls into the split {split}.",
                where=f"data.splits.{split}" if split in shares else "data.source",
                remedy="Give more conversations, or change the shares in data.splits (0 switches a split off).",
            )


def _parse_message(turn: object, *, thoughts: bool) -> Message:
    if not isinstance(turn, Mapping):
        raise RowRejected("message is not an object")
    role = _first(turn, "role", "from")
    if not isinstance(role, str):
        raise RowRejected("message without a role")
    if role not in _ROLES:
        raise RowRejected(f"unknown role {excerpt_of(role)[:30]!r}")
    role = _ROLES[role]
    content = _first(turn, "content", "value")
    calls = bool(turn.get("tool_calls") or turn.get("function_call"))
    if calls and role != "assistant":
        raise RowRejected(f"tool calls of the {role}")
    # A call needs no words, and a tool may have nothing to say.
    is_optional = calls or role == "tool"
    message = {"role": role, "content": "" if is_optional and not content else _checked_content(content)}
    if role == "tool" and isinstance(turn.get("tool_call_id"), str):
        message["tool_call_id"] = turn["tool_call_id"]
    thought = _first(turn, "reasoning_content", "reasoning")
    if thoughts and role == "assistant" and isinstance(thought, str) and thought.strip():
        message["reasoning_content"] = _checked_content(thought).strip("\n")
    return message


def _first(turn: Mapping[str, object], *names: str) -> object:
    """The first of these fields that is there: Parquet columns of mixed origin hold both, one of them null."""
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _checked_content(content: object) -> str:
    if not isinstance(content, str):
        raise RowRejected("content is not a string")
    if not content.strip():
        raise RowRejected("content is empty")
    if "\0" in content:
        raise RowRejected("content holds a NUL character")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise RowRejected("content is not valid Unicode", detail=str(error)) from error
    return content


def _check_order(roles: Sequence[str]) -> None:
    """System at most once and first; then user and assistant in turn, the user first; results before an answer."""
    speakers = roles[1:] if roles[0] == "system" else roles
    if not speakers:
        raise RowRejected("conversation without a user message")
    if "system" in speakers:
        raise RowRejected("system message after the first message")
    if speakers[0] == "assistant":
        raise RowRejected("conversation starts with the assistant")
    if speakers[0] == "tool":
        raise RowRejected("tool result without a tool call")
    for role, following in itertools.pairwise(speakers):
        if role == following != "tool":
            raise RowRejected(f"two {role} messages in a row")
        if (role, following) == ("tool", "user"):
            raise RowRejected("user message behind a tool result that has no answer")
        if (role, following) == ("user", "tool"):
            raise RowRejected("tool result without a tool call")


def _excerpt(value: object) -> str:
    try:
        return excerpt_of(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:  # nested as deep as could just be read
        return ""


class _Spills:
    """Rows on disk, spread over files by the first byte of their prompt's hash, to be sorted file by file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, TableWriter] = {}
        self.have_tools = False

    def write(self, row: Mapping[str, Any]) -> None:
        number = int(row["prompt_id"][:2], 16) * _NUM_SPILLS // 256
        if number not in self._files:
            path = self._folder / f"{number:02d}.parquet"
            self._files[number] = TableWriter(path, _SPILL_SCHEMA, rows_per_group=_SPILL_ROWS)
        self._files[number].write(row)
        self.have_tools |= row[TOOLS] is not None or any(len(message) > 2 for message in row["messages"])

    def sorted_rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows sorted by (prompt_id, id, source, row); the files must be closed."""
        for _, file in sorted(self._files.items()):
            rows = (read_conversations if "messages" in columns else read_table)(file.path, columns)
            yield from sorted(rows, key=lambda row: (row["prompt_id"], row["id"], row["source"], row["row"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
