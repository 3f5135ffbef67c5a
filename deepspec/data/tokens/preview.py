"""What a draft would learn from, for people: tokens of a few conversations, and which of them are supervised.

Not here: how it is shown, and where the rows come from (flows).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepspec.data.chat.formats import ChatFormat
from deepspec.data.chat.renderer import EncodedConversation, RenderedConversation, Renderer
from deepspec.data.config import SPLITS, Config
from deepspec.data.conversations.splits import split_of
from deepspec.data.conversations.statistics import name_of
from deepspec.data.sources.account import Account, accounts_of
from deepspec.data.sources.finding import find
from deepspec.data.sources.parsing import as_supervised, conversation_hash, parse_conversation, prompt_hash
from deepspec.data.sources.readers import read_rows
from deepspec.data.sources.rows import RawRow, RowRejected
from deepspec.data.tables import TOOLS, read_table
from deepspec.data.tokens.encode import cut_to_length, generated_or_rendered, runs_to_mask
from deepspec.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROWS_LOOKED_AT = 10_000


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """One conversation's tokens.

    Attributes:
        id: of the conversation.
        position: where it stands, as `file:row`.
        input_ids: int32 [T].
        mask: bool [T], true where supervised.
        note: a remark for the reader, or "".
    """

    id: str
    position: str
    input_ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    note: str = ""

    def stretches(self, tokenizer: "PreTrainedTokenizerFast") -> Iterator[tuple[bool, list[int], str]]:
        """Stretches of tokens that are supervised, or are not: (which, ids, their text), in order."""
        edges = [0, *(np.flatnonzero(np.diff(self.mask)) + 1).tolist(), len(self.mask)]
        for start, end in pairwise(edges):
            if start < end:
                ids = self.input_ids[start:end].tolist()
                text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
                yield bool(self.mask[start]), ids, text


def check_split(split: str) -> None:
    """Refuse what is no split.

    Raises:
        RecipeError: naming those there are.
    """
    if split not in SPLITS:
        raise RecipeError(f"there is no split {split!r}.", where="--split", remedy=f"Name one of {', '.join(SPLITS)}.")


def stored(file: Path, num_rows: int) -> list[ShownDocument]:
    """The first rows of a tokens file.

    Args:
        file: what `write_tokens` wrote.
        num_rows: the most that are returned.

    Raises:
        ArtifactError: the file is damaged.
    """
    rows = islice(read_table(file, ("id", "input_ids", "mask_runs")), num_rows)
    return [
        ShownDocument(
            row["id"],
            f"{file.stem}:{row_number}",
            np.asarray(row["input_ids"], dtype=np.int32),
            runs_to_mask(row["mask_runs"]),
        )
        for row_number, row in enumerate(rows, start=1)
    ]


def rendered(
    config: Config, split: str, num_rows: int, *, tokenizer: "PreTrainedTokenizerFast", chat: ChatFormat
) -> tuple[list[ShownDocument], dict[str, int], list[Account]]:
    """The first rows of the sources that fall into a split, as the stages would render them.

    Nothing is generated: with `data.responses.mode` "regenerate" the rows' own answers stand in for the target's, and
    a row without an answer is its prompt. Duplicates and benchmarks' prompts are not looked for.

    Args:
        config: the recipe's data section.
        split: one of SPLITS.
        num_rows: the most that are returned.
        tokenizer: the target's.
        chat: the target family's chat format.

    Returns:
        the rows, how many were passed over for which reason, and an account of each source. Of a large source the
        first 10,000 rows are looked at, and more where fewer rows than asked for have been found.

    Raises:
        DataError: no row can be shown, naming the reasons; or a source cannot be read.
    """
    renderer = Renderer(tokenizer, chat, thinking=config.thinking)
    shown: list[ShownDocument] = []
    passed: dict[str, int] = {}
    found = find([entry.path for entry in config.source])
    accounts = accounts_of(found, [name_of(entry) for entry in config.source])
    for source in found.sources:
        account = accounts[source.entry]
        for raw in read_rows(source, max_row_bytes=config.max_row_bytes, account=account):
            is_enough = len(shown) == num_rows
            if is_enough and account.rows >= _ROWS_LOOKED_AT:
                account.is_complete = False
                break
            row = _row(raw, config, account, passed)
            if row is None or is_enough or split_of(prompt_hash(row["messages"], row[TOOLS]), config) != split:
                continue
            try:
                shown.append(_shown(config, renderer, str(raw.position), row))
            except RowRejected as rejection:
                passed[rejection.reason] = passed.get(rejection.reason, 0) + 1
    if not shown:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(passed.items())) or "there is none"
        raise DataError(
            f"no row of the split {split} can be shown: {reasons}.", where="data.source", remedy="Correct the rows."
        )
    return shown, passed, accounts


def _row(raw: RawRow, config: Config, account: Account, passed: dict[str, int]) -> dict[str, Any] | None:
    """A row as the stages have it, or None if it is refused; either is counted."""
    try:
        if raw.rejection is not None:
            raise raw.rejection
        messages, tools, unread = parse_conversation(raw.value, config)
    except RowRejected as rejection:
        account.refuse(rejection.reason)
        passed[rejection.reason] = passed.get(rejection.reason, 0) + 1
        return None
    account.count(unread | raw.unread)
    row = {"id": conversation_hash(messages, tools), "messages": messages, TOOLS: tools}
    return {**row, "prompt_ids": None, "output_ids": None, "finish_reason": None}


def _shown(config: Config, renderer: Renderer, position: str, row: Mapping[str, Any]) -> ShownDocument:
    messages = as_supervised(row["messages"], config)
    regenerated = config.responses.mode == "regenerate"
    if not any(message["role"] == "assistant" for message in messages):
        if not regenerated:
            raise RowRejected("no answer to keep (data.responses.mode is keep)")
        prompt = RenderedConversation(renderer.prompt_text(messages, tools=row[TOOLS]), ())
        (encoded,) = renderer.encode([prompt])
        return ShownDocument(row["id"], position, encoded.input_ids, encoded.mask, "the prompt; the target will answer")
    found = generated_or_rendered(config, {**row, "messages": messages}, renderer)
    if isinstance(found, RowRejected):
        raise found
    (encoded,) = renderer.encode([found]) if isinstance(found, RenderedConversation) else [found]
    cut: EncodedConversation | None = cut_to_length(config, encoded, counts=Counter())
    if cut is None:
        raise RowRejected("fewer supervised tokens than data.min_supervised_tokens")
    note = "the row's own answers stand in for the target's" if regenerated else ""
    return ShownDocument(row["id"], position, cut.input_ids, cut.mask, note)
