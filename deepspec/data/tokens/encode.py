"""From answered conversations to token ids and loss masks.

A single answer that the target generated keeps its ids: exactly what the target read and wrote. Where the target
thinks, this holds for the last answer of several, which alone is supervised. Everything else (several turns, kept
answers, DeepSpec's mask) is rendered once and masked by the offsets of that one tokenisation (chat/renderer.py). Rows
keep the order of the responses. Masks are stored as run lengths: the first run is unsupervised and may be 0, then they
alternate.

Not here: packing and batches (states). `T`: tokens of one document.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deepspec.data.chat.formats import ChatFormat
from deepspec.data.chat.renderer import EncodedConversation, Renderer
from deepspec.data.chat.supervision import RenderedConversation
from deepspec.data.chat.tokenizer import tokenizer_fingerprint
from deepspec.data.config import SPLITS, Config
from deepspec.data.provenance import Positions
from deepspec.data.quarantine import Quarantine, check_splits
from deepspec.data.responses.conversation import NO_ROOM
from deepspec.data.sources.rows import Position, RowRejected, excerpt_of
from deepspec.data.tables import (
    IDS,
    PRIVATE,
    TOOLS,
    TableWriter,
    count_rows,
    is_private,
    read_conversations,
    write_summary,
)
from deepspec.progress import SILENT, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("input_ids", IDS),
        ("mask_runs", IDS),
        ("num_prompt_tokens", pa.int32()),
    ]
)

COLUMNS = ("id", "prompt_id", "messages", "prompt_ids", "output_ids", "finish_reason")
"""What is read of the answers."""
_BATCH_ROWS = 256  # texts that are handed to the tokenizer at once: it works on them in parallel


def write_tokens(
    config: Config,
    responses_dir: Path,
    out: Path,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    chat: ChatFormat,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Tokenise answered conversations: `<split>.parquet`, `quarantine.parquet` and `summary.json` in `out`.

    Args:
        config: the recipe's data section.
        responses_dir: what `write_responses` wrote.
        out: existing folder that is written to.
        tokenizer: the target's.
        chat: the target family's chat format.
        progress: counts rows.

    Returns:
        Counts, as in `summary.json`, with the tokenizer's fingerprint. Rows with some, but fewer than
        `data.min_supervised_tokens` supervised tokens are counted as `too_short`.

    Raises:
        TooManyQuarantined: above `data.max_quarantined_share`; the quarantine file is written all the same.
        DataError: none of a split's rows is left.
        UnsupportedTarget: the chat template does not fit the chat format.
    """
    renderer = Renderer(tokenizer, chat, thinking=config.thinking)
    num_rows = {split: count_rows(responses_dir / f"{split}.parquet") for split in SPLITS}
    progress.start(sum(num_rows.values()), "rows")
    counts: Counter[str] = Counter({"cut_to_max_length": 0, "too_short": 0})
    splits: dict[str, Counter[str]] = {}
    positions = Positions(responses_dir)
    answers: Counter[str] = Counter()
    private = is_private(responses_dir)
    with Quarantine(out) as quarantine, ExitStack() as stack:
        for split in SPLITS:
            writer = stack.enter_context(TableWriter(out / f"{split}.parquet", TOKENS_SCHEMA))
            splits[split] = Counter({"rows": 0, "tokens": 0, "supervised_tokens": 0, "longest_tokens": 0})
            rows = read_conversations(responses_dir / f"{split}.parquet", COLUMNS)
            for row_number, (row, encoded) in enumerate(_encoded(config, rows, renderer), start=1):
                progress.advance()
                index = answers[row["prompt_id"]]
                answers = Counter({row["prompt_id"]: index + 1})  # equal prompts lie together
                try:
                    kept = cut_to_length(config, encoded, counts)
                except RowRejected as rejection:
                    position = positions.of(row["prompt_id"], index, Position(f"{split}.parquet", row_number))
                    if private:
                        quarantine.add(position, rejection.unquoted(), "")
                    else:
                        quarantine.add(position, rejection, excerpt_of(row["messages"][-1]["content"]))
                    continue
                if kept is not None:
                    writer.write(_token_row(row, kept))
                    _count(splits[split], kept)
        quarantine.check(sum(num_rows.values()), config.max_quarantined_share)
    summary = {
        "splits": {split: dict(counted) for split, counted in splits.items()},
        "mask": config.mask,
        **({} if config.thinking == "off" else {"thinking": config.thinking}),
        "chat_format": chat.name,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        **counts,
        **quarantine.counts(),
        **({PRIVATE: True} if private else {}),
    }
    write_summary(out / "summary.json", summary)
    check_splits(num_rows, {split: counted["rows"] for split, counted in splits.items()})
    return summary


def mask_to_runs(mask_T: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Lengths of the runs of a mask, alternating, the first of false (0 if the mask begins with true).

    Args:
        mask_T: bool [T].

    Returns:
        int32, their sum is T; empty for an empty mask.
    """
    if len(mask_T) == 0:
        return np.zeros(0, dtype=np.int32)
    edges = np.flatnonzero(np.diff(mask_T.astype(np.int8))) + 1
    runs = np.diff(np.concatenate(([0], edges, [len(mask_T)])))
    return np.concatenate(([0], runs) if mask_T[0] else (runs,)).astype(np.int32)


def runs_to_mask(runs: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """The mask whose runs these are, bool [T].

    Raises:
        ValueError: a run is negative.
    """
    lengths = np.asarray(runs, dtype=np.int64)
    if np.any(lengths < 0):
        raise ValueError(f"a run of a mask is negative: {lengths.min()}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def _encoded(
    config: Config, rows: Iterable[dict[str, Any]], renderer: Renderer
) -> Iterator[tuple[dict[str, Any], EncodedConversation | RowRejected]]:
    """Each row of the responses with its document, not cut yet, in order."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        ready: list[EncodedConversation | RenderedConversation | RowRejected] = [
            generated_or_rendered(config, row, renderer) for row in batch
        ]
        encoded = iter(renderer.encode([item for item in ready if isinstance(item, RenderedConversation)]))
        for row, item in zip(batch, ready, strict=True):
            yield row, next(encoded) if isinstance(item, RenderedConversation) else item


def generated_or_rendered(
    config: Config, row: dict[str, Any], renderer: Renderer
) -> EncodedConversation | RenderedConversation | RowRejected:
    """A row of the responses as the ids it has, or as text to encode, or why it is rejected."""
    if config.mask == "serving" and row["output_ids"] is not None:
        ids = [*row["prompt_ids"], *row["output_ids"]]
        mask = np.arange(len(ids)) >= len(row["prompt_ids"])
        return EncodedConversation(np.asarray(ids, dtype=np.int32), mask)
    try:
        complete = row["finish_reason"] != "length"
        return renderer.render(row["messages"], mask=config.mask, complete=complete, tools=row[TOOLS])
    except RowRejected as rejection:
        return rejection


def cut_to_length(
    config: Config, encoded: EncodedConversation | RowRejected, counts: Counter[str]
) -> EncodedConversation | None:
    """The document cut to `data.max_length_tokens`; None if too little of it is supervised.

    Args:
        config: the recipe's data section.
        encoded: the document, or why there is none.
        counts: `too_short` and `cut_to_max_length` are counted in it.

    Raises:
        RowRejected: nothing of it is supervised.
    """
    if isinstance(encoded, RowRejected):
        raise encoded
    if not encoded.mask.any():
        raise RowRejected("no supervised token")
    limit = config.max_length_tokens
    cut = EncodedConversation(encoded.input_ids[:limit], encoded.mask[:limit])
    num_supervised = int(cut.mask.sum())
    if num_supervised == 0:
        raise RowRejected(NO_ROOM, detail=f"{int(encoded.mask.argmax())} tokens")
    if num_supervised < config.min_supervised_tokens:
        counts["too_short"] += 1
        return None
    counts["cut_to_max_length"] += len(encoded.input_ids) > limit
    return cut


def _token_row(row: dict[str, Any], encoded: EncodedConversation) -> dict[str, Any]:
    runs = mask_to_runs(encoded.mask)
    return {
        "id": row["id"],
        "prompt_id": row["prompt_id"],
        "input_ids": encoded.input_ids,
        "mask_runs": runs,
        "num_prompt_tokens": int(runs[0]),
    }


def _count(counted: Counter[str], encoded: EncodedConversation) -> None:
    counted["rows"] += 1
    counted["tokens"] += len(encoded.input_ids)
    counted["supervised_tokens"] += int(encoded.mask.sum())
    counted["longest_tokens"] = max(counted["longest_tokens"], len(encoded.input_ids))
