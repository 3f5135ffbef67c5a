"""Where a chat template put the contents of a conversation: found by rendering its roles once with placeholders.

The text around the placeholders, which the template wrote, is thereby known, and what a conversation *contains*
(markers, say) cannot shift what is found. Tool calls are written by the template from structured arguments: a second
rendering, with the conversation's own calls and tools but placeholders for its contents, gives that text as it is.

Not here: how messages reach the template (prepared.py, renderer.py), and masks (supervision.py).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepspec.data.sources.rows import RowRejected
from deepspec.errors import UnsupportedTarget

if TYPE_CHECKING:
    from deepspec.data.chat.formats import ChatFormat

_GAP = re.compile(r"q7gap(\d+)(thought|answer|call)q7")
_KINDS = ("thought", "answer", "call")

CHANGED = "the chat template changes the contents, so that the answers cannot be located in its text"
NO_CALLS = "the chat template writes no tool calls"
MOVED = "the chat template does not keep an answer and its tool calls together"

Apply = Callable[[Sequence[Mapping[str, Any]]], str]
"""Renders messages, as the template is given them, to text."""


@dataclass(frozen=True, slots=True)
class MessageForm:
    """A message's form: all that decides what the template writes around its contents.

    Attributes:
        role: its role.
        has_thought: whether its thought is separate from its answer.
        is_empty: whether it has no text besides its tool calls, or is a tool's empty result.
        calls: names of the tools that it calls.
    """

    role: str
    has_thought: bool = False
    is_empty: bool = False
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the assistant's turns in a skeleton; gaps are numbered without those of calls.

    Attributes:
        message: which message it is.
        gaps: its first gap and the one behind its last; equal if it has calls only.
        has_thought: whether its first gap is a thought that the template shows.
        header_end: characters from the gap before it (or the text's beginning) to the end of its header.
        lead: characters between the end of the header and its first gap or call.
        supplied: how many of those the template puts there itself, whatever was answered.
        marker: the end-of-turn token.
        suffix: characters from that token to the next gap, or to the end of the text.
        newline: 1 if a newline follows the token, else 0.
        lead_text: the text of `lead`.
    """

    message: int
    gaps: tuple[int, int]
    has_thought: bool
    header_end: int
    lead: int
    supplied: int
    marker: str
    suffix: int
    newline: int
    lead_text: str


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What the template writes around the contents of one sequence of message forms.

    Attributes:
        literals: the texts around the gaps, one more than there are gaps.
        gaps: (message index, "thought" or "answer"), in the order of the text.
        turns: the assistant's, in the order of the text.
    """

    literals: tuple[str, ...]
    gaps: tuple[tuple[int, str], ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class TurnBounds:
    """Where one of the assistant's turns stands in a text: characters.

    Attributes:
        header_end: where the header ends.
        answer: where its answer begins, or, without one, its calls.
        last: where its last gap ends (its calls, if it has only those).
        end: where the end-of-turn token begins.
        thought: its thought as the template shows it, or None.
    """

    header_end: int
    answer: int
    last: int
    end: int
    thought: str | None


def placeholder(index: int, kind: str) -> str:
    """What stands in place of a content."""
    return f"q7gap{index}{kind}q7"


def split(text: str) -> tuple[tuple[str, ...], tuple[tuple[int, str], ...]]:
    """A rendering with placeholders as literals and gaps."""
    # Split by two groups: literal, index, kind, literal, index, kind, ..., literal.
    pieces = _GAP.split(text)
    gaps = tuple((int(index), kind) for index, kind in zip(pieces[1::3], pieces[2::3], strict=True))
    return tuple(pieces[0::3]), gaps


def skeleton_of(text: str, forms: Sequence[MessageForm], chat: "ChatFormat") -> Skeleton:
    """The skeleton in a rendering with placeholders, those of calls among them.

    Raises:
        RowRejected: the template pulls an answer and its calls apart, or writes no calls.
        UnsupportedTarget: it does not write an assistant's turn as the format says.
    """
    literals, gaps = split(text)
    kept = [number for number, (_, kind) in enumerate(gaps) if kind != "call"]
    number_of = {position: number for number, position in enumerate(kept)}
    turns = []
    for index, form in enumerate(forms):
        if form.role == "assistant":
            turns.append(_turn(literals, gaps, number_of, index, form, chat))
    return Skeleton(*_without_calls(literals, gaps), tuple(turns))


def _turn(
    literals: tuple[str, ...],
    gaps: tuple[tuple[int, str], ...],
    number_of: Mapping[int, int],
    index: int,
    form: MessageForm,
    chat: "ChatFormat",
) -> Turn:
    own = [position for position, (message, _) in enumerate(gaps) if message == index]
    kinds = [gaps[position][1] for position in own]
    if own and (own != list(range(own[0], own[-1] + 1)) or kinds != sorted(kinds, key=_KINDS.index)):
        raise RowRejected(MOVED)
    if form.calls and "call" not in kinds:
        raise RowRejected(NO_CALLS)
    expected = {"answer"} if not form.is_empty else set()
    if not own or not expected <= set(kinds):
        raise _unsupported(chat)
    before, after = literals[own[0]], literals[own[-1] + 1]
    header_end = max(_end_of(before, header) for header in chat.turn_starts)
    markers = chat.end_of_turn_tokens + (chat.end_of_call_tokens if form.calls else ())
    # Behind an answer the turn ends at once; behind a call's last argument the template closes the call first.
    ends = [(after.find(token), token) for token in markers]
    marker_at, marker = min(((at, token) for at, token in ends if at >= 0), default=(-1, ""))
    if header_end < 0 or marker_at < 0 or (not form.calls and marker_at > 0):
        raise _unsupported(chat)
    numbers = [number_of[position] for position in own if position in number_of]
    before_it = sum(position in number_of for position in range(own[0]))
    first = numbers[0] if numbers else before_it
    lead_text = before[header_end:]
    supplied = len(lead_text)
    if not numbers:  # what leads to a call's argument is generated, but for what the template puts before it
        supplied = len(chat.empty_thought) if chat.empty_thought and lead_text.startswith(chat.empty_thought) else 0
    return Turn(
        message=index,
        gaps=(first, first + len(numbers)),
        has_thought="thought" in kinds,
        header_end=header_end,
        lead=len(lead_text),
        supplied=supplied,
        marker=marker,
        suffix=len(after) - marker_at,
        newline=int(after.startswith("\n", marker_at + len(marker))),
        lead_text=lead_text,
    )


def _unsupported(chat: "ChatFormat") -> UnsupportedTarget:
    return UnsupportedTarget(
        f"the chat template does not write an assistant's turn as the chat format {chat.name!r} does"
        f" (header {' or '.join(map(repr, chat.turn_starts))}, content,"
        f" {' or '.join(map(repr, chat.end_of_turn_tokens))}).",
        remedy="Use the chat template that belongs to the target.",
    )


def _without_calls(
    literals: tuple[str, ...], gaps: tuple[tuple[int, str], ...]
) -> tuple[tuple[str, ...], tuple[tuple[int, str], ...]]:
    merged = [literals[0]]
    kept = []
    for gap, literal in zip(gaps, literals[1:], strict=True):
        if gap[1] == "call":
            merged[-1] += placeholder(*gap) + literal
        else:
            kept.append(gap)
            merged.append(literal)
    return tuple(merged), tuple(kept)


def locate(
    skeleton: Skeleton, literals: Sequence[str], text: str, contents: Sequence[Mapping[str, str]]
) -> list[tuple[int, int]] | None:
    """Where each gap's content stands in `text`, as [start, end) characters.

    None if the text is not the literals with these contents. Templates trim contents, each in its own way: every usual
    way is tried, and must fit together with what follows.

    Args:
        skeleton: its gaps.
        literals: the texts around them, the conversation's own calls and tools included.
        text: the rendered conversation.
        contents: of each message, by kind of gap.
    """
    found: list[tuple[int, int]] = []
    position = len(literals[0])
    if not text.startswith(literals[0]):
        return None
    for gap, literal in zip(skeleton.gaps, literals[1:], strict=True):
        content = contents[gap[0]][gap[1]]
        trimmed = (
            content,
            content.strip(),
            content.lstrip(),
            content.rstrip(),
            content.strip("\n"),
            content.lstrip("\n"),
        )
        for candidate in trimmed:
            if text.startswith(candidate + literal, position):
                break
        else:
            return None
        found.append((position, position + len(candidate)))
        position += len(candidate) + len(literal)
    return found if position == len(text) else None


def turn_bounds(turn: Turn, text: str, found: Sequence[tuple[int, int]], chat: "ChatFormat") -> TurnBounds:
    """The bounds of a turn in a text in which the gaps have been found.

    Raises:
        RowRejected: its header or its end is not where it must be.
    """
    begin, behind = turn.gaps
    if begin < behind:
        answer, last = found[behind - 1]
        header_end = found[begin][0] - turn.lead
    else:
        header_end = (found[begin - 1][1] if begin else 0) + turn.header_end
        answer = last = header_end + turn.supplied
    end = (found[behind][0] if behind < len(found) else len(text)) - turn.suffix
    is_whole = text.startswith(turn.marker, end) and end >= last
    if not is_whole or not text[:header_end].endswith(chat.turn_starts):
        raise RowRejected(CHANGED)
    thought = text[slice(*found[begin])] if turn.has_thought else None
    return TurnBounds(header_end, answer, end if begin == behind else last, end, thought)


def _end_of(text: str, marker: str) -> int:
    """Where the last `marker` in `text` ends; -1 if there is none."""
    start = text.rfind(marker)
    return start + len(marker) if start >= 0 else -1
