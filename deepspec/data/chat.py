"""Conversations as the target sees them: chat formats, template rendering, and which tokens are supervised.

The text always comes from the tokenizer's own chat template, which transformers runs in jinja's immutable sandbox. A
`ChatFormat` only says what that text's markers are, so that the assistant's part of it can be found. It is found by
rendering the same sequence of roles once with placeholders: the text around the placeholders, which the template
wrote, is thereby known, and a conversation that *contains* markers cannot shift the mask. The mask then comes from
the character offsets of ONE tokenisation of the whole text; prefixes are never tokenised.

Masks (spec/algorithms.md, "Decoding, caches and positions"): "serving" supervises what the target generates when it
serves: the answer and its end-of-turn token, not what the template puts into the prompt. "deepspec" is the mask of
DeepSpec's own data: from the assistant header on, with the newline after the end of the turn.

Not here: where conversations come from, generation, and files. Imports neither torch nor transformers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from deepspec.data.rows import Message, RowRejected, excerpt_of
from deepspec.data.tokenizer import check_chat_template
from deepspec.errors import UnsupportedTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MaskKind = Literal["serving", "deepspec"]

# Thinking is off: templates that know the switch then put the empty thought into the generation prompt themselves.
_TEMPLATE_VARIABLES = {"enable_thinking": False}
_SLOT = re.compile(r"q7slot(\d+)(thought|answer)q7")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The markers that a family's chat templates write around the assistant's turns.

    Attributes:
        name: what the format is called.
        assistant_headers: texts after which the assistant's turn begins.
        end_of_turn_tokens: tokens that end it; the target generates them.
        empty_thought: what the template puts before an answer that has no thoughts; "" if nothing.
        thought_open, thought_close: around the thoughts of an answer; "" if the format has none.
        primed_turns: every turn of the assistant is to have the `empty_thought` that the generation prompt has; where
            the template leaves it out of turns that are past, it is put in, so that an answer stands behind what the
            target saw when it gave it.
        deepspec_supervises_empty_thought: whether DeepSpec's own masks cover `empty_thought`.
    """

    name: str
    assistant_headers: tuple[str, ...]
    end_of_turn_tokens: tuple[str, ...]
    empty_thought: str = ""
    thought_open: str = ""
    thought_close: str = ""
    primed_turns: bool = False
    deepspec_supervises_empty_thought: bool = True

    def end_of_turn_ids(self, tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
        """Token ids of the end-of-turn tokens.

        Raises:
            UnsupportedTarget: the tokenizer does not know one of them as a token.
        """
        vocabulary = tokenizer.get_vocab()
        for token in self.end_of_turn_tokens:
            if token not in vocabulary:
                raise UnsupportedTarget(
                    f"the tokenizer has no token {token!r}, which ends a turn of the chat format {self.name!r}.",
                    where=str(tokenizer.name_or_path) or None,
                    remedy="Use the tokenizer that belongs to the target.",
                )
        return tuple(int(vocabulary[token]) for token in self.end_of_turn_tokens)


CHATML = ChatFormat(
    name="chatml",
    assistant_headers=("<|im_start|>assistant\n",),
    end_of_turn_tokens=("<|im_end|>",),
    empty_thought="<think>\n\n</think>\n\n",
    thought_open="<think>",
    thought_close="</think>",
)
"""Qwen3's format."""

GEMMA4 = ChatFormat(
    name="gemma4",
    assistant_headers=("<|turn>model\n",),
    end_of_turn_tokens=("<turn|>",),
    empty_thought="<|channel>thought\n<channel|>",
    thought_open="<|channel>thought",
    thought_close="<channel|>",
    primed_turns=True,
    deepspec_supervises_empty_thought=False,
)
"""Gemma 4's format.

From the models' documented control tokens and from what transformers expects of such an answer. No released template
could be read here; none is needed: the text is written by the target's own template, these markers only find the
answers in it, and a template that writes others is refused.
"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text: `spans` are the supervised [start, end) characters, ascending and disjoint."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens: `input_ids` int32 [T] and `mask` bool [T], true where a token is supervised."""

    input_ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Turn:
    """One of the assistant's turns in a skeleton.

    Attributes:
        answer: which slot holds the answer.
        thought: which slot holds the thought before it, if the template shows one.
        lead: characters between the end of the assistant header and the turn's first slot.
        marker: characters of the end-of-turn token.
        newline: 1 if a newline follows that, else 0.
        primer: what has to be put in after the header.
    """

    answer: int
    thought: int | None
    lead: int
    marker: int
    newline: int
    primer: str


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """What the template writes around the contents of one sequence of roles.

    Attributes:
        literals: the texts around the slots, one more than there are slots.
        slots: (message index, "thought" or "answer"), in the order of the text.
        turns: the assistant's, in the order of the text.
    """

    literals: tuple[str, ...]
    slots: tuple[tuple[int, str], ...]
    turns: tuple[_Turn, ...]


class Renderer:
    """Renders and encodes conversations with one tokenizer's template.

    Args:
        tokenizer: fast, with a chat template.
        chat: the markers that its template writes.

    Raises:
        UnsupportedTarget: no chat template, or one that does not write the markers of `chat`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", chat: ChatFormat) -> None:
        check_chat_template(tokenizer)
        self.tokenizer = tokenizer
        self.chat = chat
        self.end_of_turn_ids = chat.end_of_turn_ids(tokenizer)
        self._skeletons: dict[tuple[tuple[str, bool], ...], _Skeleton] = {}
        self._known_primer: str | None = None

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to where the assistant's next answer begins.

        Raises:
            RowRejected: the template refuses the conversation.
            UnsupportedTarget: the template's generation prompt is not the format's.
        """
        text = self._apply(messages, add_generation_prompt=True)
        for header in self.chat.assistant_headers:
            if text.endswith((header, header + self.chat.empty_thought)):
                return text
        raise UnsupportedTarget(
            f"the chat template's generation prompt ends with {text[-40:]!r}, not with a header of the chat format"
            f" {self.chat.name!r} ({', '.join(map(repr, self.chat.assistant_headers))}).",
            remedy="Use the template that belongs to the target, in its non-thinking form.",
        )

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of `prompt_text`; raises what that raises."""
        encoding = self.tokenizer(self.prompt_text(messages), add_special_tokens=False, verbose=False)
        return tuple(encoding["input_ids"])

    def answer_text(self, output_ids: Sequence[int]) -> str:
        """The text of a generated answer, without its special tokens."""
        text: str = self.tokenizer.decode(output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def render(self, messages: Sequence[Message], *, mask: MaskKind, complete: bool = True) -> Rendered:
        """Render a conversation once and find what is supervised in it.

        Args:
            messages: a conversation with at least one assistant message.
            mask: which of the two masks.
            complete: False for a last answer that was cut off: the text then ends with it, without an end of turn.

        Raises:
            RowRejected: the template refuses the conversation, or changes its contents beyond recognition.
            UnsupportedTarget: the template does not write the markers of the chat format.
        """
        text = self._apply(messages, add_generation_prompt=False)
        for with_thoughts in (False, True):
            shape = tuple((m["role"], with_thoughts and self._has_thought(m)) for m in messages)
            if with_thoughts and not any(has_thought for _, has_thought in shape):
                break
            skeleton = self._skeleton(shape)
            contents = [self._parts(message, split=split) for message, (_, split) in zip(messages, shape, strict=True)]
            found = _locate(skeleton, text, contents)
            if found is not None:
                spans = [self._span(turn, text, found, mask) for turn in skeleton.turns]
                if not complete:
                    text = text[: found[skeleton.turns[-1].answer][1]]
                    spans[-1] = (spans[-1][0], len(text))
                return _primed(skeleton, text, found, spans)
        raise RowRejected("the chat template changes the contents, so that the answers cannot be located in its text")

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Tokenise texts, each once, and mask them by character offsets.

        A token is supervised if all of its characters are: one that reaches over the edge of an answer is not what
        the target generates.

        Returns:
            One `Encoded` for each text, not truncated.
        """
        if not rendered:
            return []
        encoding = self.tokenizer(
            [row.text for row in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows = zip(rendered, encoding["input_ids"], encoding["offset_mapping"], strict=True)
        return [
            Encoded(np.asarray(ids, dtype=np.int32), _offsets_mask(offsets, row.spans)) for row, ids, offsets in rows
        ]

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **_TEMPLATE_VARIABLES,
            )
        except TemplateSyntaxError as error:
            raise UnsupportedTarget(
                f"the chat template is not valid jinja: {error}", remedy="Copy the target's chat template again."
            ) from error
        except TemplateError as error:
            # Also what the sandbox forbids. Templates refuse conversations (roles out of order, say) with this type.
            raise RowRejected("the chat template refuses the conversation", detail=excerpt_of(str(error))) from error
        return text

    def _has_thought(self, message: Message) -> bool:
        close = self.chat.thought_close
        return message["role"] == "assistant" and bool(close) and close in message["content"]

    def _parts(self, message: Message, *, split: bool) -> dict[str, str]:
        """What may stand in a message's slots."""
        content = message["content"]
        if not split:
            return {"answer": content}
        thought, _, answer = content.rpartition(self.chat.thought_close)
        return {"thought": thought.rpartition(self.chat.thought_open)[2], "answer": answer}

    def _skeleton(self, shape: tuple[tuple[str, bool], ...]) -> _Skeleton:
        known = self._skeletons.get(shape)
        if known is not None:
            return known
        chat = self.chat
        messages = []
        for index, (role, has_thought) in enumerate(shape):
            content = f"q7slot{index}answerq7"
            if has_thought:
                content = f"{chat.thought_open}\nq7slot{index}thoughtq7\n{chat.thought_close}\n\n{content}"
            messages.append({"role": role, "content": content})
        # Split by two groups: literal, index, kind, literal, index, kind, ..., literal.
        pieces = _SLOT.split(self._apply(messages, add_generation_prompt=False))
        literals = tuple(pieces[0::3])
        slots = tuple((int(index), kind) for index, kind in zip(pieces[1::3], pieces[2::3], strict=True))
        turns = tuple(
            self._turn(literals, slots, index) for index, (role, _) in enumerate(shape) if role == "assistant"
        )
        skeleton = _Skeleton(literals, slots, turns)
        self._skeletons[shape] = skeleton
        return skeleton

    def _turn(self, literals: tuple[str, ...], slots: tuple[tuple[int, str], ...], index: int) -> _Turn:
        """The assistant's message `index`, which the template must have written as the format says."""
        positions = {kind: n for n, (message, kind) in enumerate(slots) if message == index}
        answer, thought = positions.get("answer"), positions.get("thought")
        if answer is not None and (thought is None or thought == answer - 1):
            before, after = literals[answer if thought is None else thought], literals[answer + 1]
            header_end = max(_end_of(before, header) for header in self.chat.assistant_headers)
            marker = next((token for token in self.chat.end_of_turn_tokens if after.startswith(token)), None)
            if header_end >= 0 and marker is not None:
                newline = int(after.startswith("\n", len(marker)))
                lead = len(before) - header_end
                primer = self._primer() if thought is None and not lead else ""
                return _Turn(answer, thought, lead, len(marker), newline, primer)
        raise UnsupportedTarget(
            f"the chat template does not write an assistant's turn as the chat format {self.chat.name!r} does"
            f" (header {' or '.join(map(repr, self.chat.assistant_headers))}, content,"
            f" {' or '.join(map(repr, self.chat.end_of_turn_tokens))}).",
            remedy="Use the chat template that belongs to the target.",
        )

    def _primer(self) -> str:
        """What the generation prompt has behind its header, if every turn is to have it."""
        if not self.chat.primed_turns:
            return ""
        if self._known_primer is None:
            prompt = self.prompt_text([{"role": "user", "content": "q"}])
            self._known_primer = self.chat.empty_thought if prompt.endswith(self.chat.empty_thought) else ""
        return self._known_primer

    def _span(self, turn: _Turn, text: str, found: Sequence[tuple[int, int]], mask: MaskKind) -> tuple[int, int]:
        """The supervised characters of one of the assistant's turns."""
        start, end = found[turn.answer]
        first, thought_end = found[turn.answer if turn.thought is None else turn.thought]
        has_thought = turn.thought is not None and bool(text[first:thought_end].strip())
        end += turn.marker
        if mask == "serving":
            return (first - turn.lead if has_thought else start), end
        covered = has_thought or self.chat.deepspec_supervises_empty_thought
        return (first - turn.lead if covered else start), end + turn.newline


def _locate(skeleton: _Skeleton, text: str, contents: Sequence[dict[str, str]]) -> list[tuple[int, int]] | None:
    """Where each slot's content stands in `text`, as [start, end) characters.

    None if the text is not the skeleton with these contents. Templates trim contents, each in its own way: every usual
    way is tried, and must fit together with what follows.
    """
    found: list[tuple[int, int]] = []
    position = len(skeleton.literals[0])
    if not text.startswith(skeleton.literals[0]):
        return None
    for slot, literal in zip(skeleton.slots, skeleton.literals[1:], strict=True):
        content = contents[slot[0]][slot[1]]
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


def _primed(
    skeleton: _Skeleton, text: str, found: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> Rendered:
    """The text with the primers that it lacks; none is supervised."""
    pieces: list[str] = []
    moved: list[tuple[int, int]] = []
    end = shift = 0
    for turn, (first, last) in zip(skeleton.turns, spans, strict=True):
        start = found[turn.answer][0]
        if turn.primer:
            pieces += (text[end:start], turn.primer)
            end = start
            shift += len(turn.primer)
        moved.append((first + shift, last + shift))
    return Rendered("".join((*pieces, text[end:])), tuple(moved))


def _end_of(text: str, marker: str) -> int:
    """Where the last `marker` in `text` ends; -1 if there is none."""
    start = text.rfind(marker)
    return start + len(marker) if start >= 0 else -1


def _offsets_mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Tokens that lie within one of the spans, from their [start, end) characters; bool [T]."""
    bounds_T2 = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    mask_T = np.zeros(len(bounds_T2), dtype=np.bool_)
    for start, end in spans:
        mask_T |= (bounds_T2[:, 0] >= start) & (bounds_T2[:, 1] <= end) & (bounds_T2[:, 0] < end)
    return mask_T
