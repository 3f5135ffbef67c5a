"""What a draft would learn from, for people: tokens of a few conversations, and which of them are supervised.

Not here: how it is shown, and where the rows come from (flows).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepspec.data.chat.formats import ChatFormat
from deepspec.data.chat.renderer import EncodedConversation, Renderer
from deepspec.data.chat.supervision import RenderedConversation
from deepspec.data.config import SPLITS, Config
from deepspec.data.provenance import Positions
from deepspec.data.sources.rows import Position, RowRejected
from deepspec.data.tables import TOOLS, read_conversations, read_table
from deepspec.data.tokens.encode import COLUMNS, cut_to_length, generated_or_rendered, runs_to_mask
from deepspec.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "excluded": "has a benchmark's prompt",
        "decontaminated": "shares words with a benchmark's prompt",
        "duplicates": "is there twice",
        "near_duplicates": "is nearly the same as another",
        "left_out_of_mixture": "left out by the sources' weights",
        "left_out_by_max_rows": "left out by data.max_rows",
    }
)
"""Counts of the summary of conversations -> why such rows are not trained on."""


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """One conversation's tokens.

    Attributes:
        id: of the conversation.
        position: where it stands, as `file:row`.
        input_ids: int32 [T].
        mask: bool [T], true where supervised.
        note: a remark for the reader, or "".
        put_in: (token, text) of what the template left out and the target sees: the empty thought before an answer.
    """

    id: str
    position: str
    input_ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    note: str = ""
    put_in: tuple[tuple[int, str], ...] = ()

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


def with_put_in(
    config: Config,
    documents: Sequence[ShownDocument],
    answers: Path,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    chat: ChatFormat,
) -> list[ShownDocument]:
    """Rows of a tokens file with what was put in, which their tokens do not tell: they are rendered once more.

    Args:
        config: the recipe's data section.
        documents: the first rows, from `stored`.
        answers: the file of the same split that `write_tokens` read.
        tokenizer: the target's.
        chat: the target family's chat format.

    Raises:
        ArtifactError: the file is damaged.
    """
    renderer = Renderer(tokenizer, chat, thinking=config.thinking)
    rows = iter(read_conversations(answers, COLUMNS))  # those that have tokens, in the same order, and others
    return [_with_put_in(config, document, rows, renderer) for document in documents]


def _with_put_in(
    config: Config, document: ShownDocument, rows: Iterator[dict[str, Any]], renderer: Renderer
) -> ShownDocument:
    """A document with what was put in, if one of the rows from here on is the one that it was made of."""
    for row in (row for row in rows if row["id"] == document.id):
        found = generated_or_rendered(config, row, renderer)
        if isinstance(found, RenderedConversation):
            (encoded,) = renderer.encode([found])
            if np.array_equal(encoded.input_ids[: config.max_length_tokens], document.input_ids):
                return replace(document, put_in=_put_in(found, renderer, len(document.input_ids)))
        elif isinstance(found, EncodedConversation):  # the target's own tokens: nothing was left out of them
            return document
    return document


def rendered(
    config: Config,
    split: str,
    num_rows: int,
    *,
    conversations: Path,
    tokenizer: "PreTrainedTokenizerFast",
    chat: ChatFormat,
) -> tuple[list[ShownDocument], dict[str, int]]:
    """The first rows of a split's conversations, as the stages would render them.

    Nothing is generated: where the target will answer, the rows' own answers stand in for the target's, and
    a row without an answer is its prompt.

    Args:
        config: the recipe's data section.
        split: one of SPLITS.
        num_rows: the most that are returned.
        conversations: folder that `write_conversations` wrote.
        tokenizer: the target's.
        chat: the target family's chat format.

    Returns:
        the rows, and how many are left out for which reason: of all rows of the sources those that a run does not train
        on, and of the rendered ones those that cannot be shown.

    Raises:
        DataError: no row can be shown, naming the reasons.
    """
    renderer = Renderer(tokenizer, chat, thinking=config.thinking)
    shown: list[ShownDocument] = []
    passed = left_out(json.loads((conversations / "summary.json").read_text(encoding="utf-8")))
    positions, seen = Positions(conversations), Counter[str]()
    file = conversations / f"{split}.parquet"
    for number, row in enumerate(read_conversations(file, ("id", "prompt_id", "messages")), start=1):
        place = positions.of(row["prompt_id"], seen[row["prompt_id"]], Position(file.name, number))
        seen[row["prompt_id"]] += 1
        try:
            shown.append(_shown(config, renderer, str(place), row))
        except RowRejected as rejection:
            passed[rejection.reason] = passed.get(rejection.reason, 0) + 1
        if len(shown) == num_rows:
            break
    if not shown:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(passed.items())) or "there is none"
        raise DataError(
            f"no row of the split {split} can be shown: {reasons}.", where="data.source", remedy="Correct the rows."
        )
    return shown, passed


def left_out(summary: Mapping[str, Any]) -> dict[str, int]:
    """Reason -> rows of the sources that a run does not train on, from the summary of conversations."""
    counted = {reason: summary.get(name, 0) for name, reason in _LEFT_OUT.items()}
    return {**summary.get("quarantine_reasons", {}), **{reason: count for reason, count in counted.items() if count}}


def _shown(config: Config, renderer: Renderer, position: str, row: Mapping[str, Any]) -> ShownDocument:
    row = {TOOLS: None, **row, "prompt_ids": None, "output_ids": None, "finish_reason": None}
    messages = row["messages"]
    regenerated = config.responses.generates
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
    put_in = _put_in(found, renderer, len(cut.input_ids)) if isinstance(found, RenderedConversation) else ()
    return ShownDocument(row["id"], position, cut.input_ids, cut.mask, note, put_in)


def _put_in(rendered: RenderedConversation, renderer: Renderer, num_tokens: int) -> tuple[tuple[int, str], ...]:
    """At which token what the template left out was put in, and the text."""
    found = [
        (
            len(renderer.tokenizer(rendered.text[:start], add_special_tokens=False)["input_ids"]),
            rendered.text[start:end],
        )
        for start, end in rendered.added
    ]
    return tuple((token, text) for token, text in found if token < num_tokens)
