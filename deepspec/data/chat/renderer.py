"""Conversations as the target sees them: template rendering, and which tokens are supervised.

The text always comes from the tokenizer's own chat template, which runs in transformers' environment (template.py). A
`ChatFormat` (formats.py) only says what that text's markers are, so that the assistant's part of it can be found.
It is found by rendering the same sequence of roles once with placeholders (template_layout.py): a conversation that
*contains* markers cannot shift the mask. The mask then comes from the character offsets of ONE tokenisation of the
whole text; prefixes are never tokenised. What is supervised by which of the two masks: supervision.py.

Thinking (`data.thinking`):

* "off": the generation prompt closes thinking (`enable_thinking=False`; Qwen3 and Gemma 4 put an empty thought there).
  A row's `reasoning_content` is left out when it is read; thoughts written into an answer's text stay where the
  template leaves them (Qwen3: in the last turn; Gemma 4: nowhere). An empty thought that an answer begins with is the
  prompt's, not the answer's: the template is not given it, and it stands once, unsupervised.
* "on": the generation prompt leaves thinking to the target (`enable_thinking=True`: Qwen3's ends with the header,
  Gemma 4 has `<|think|>` in the system turn). Thoughts are part of what the target generates: stored beside the answer
  as `reasoning_content`, and supervised with it from the header on. In turns that are past (before the last user
  message) both templates drop them: the answer that is left there is context, and is not supervised by "serving", for
  the target does not answer without its thought. Where a template drops even the thought of the last answer (Gemma 4),
  it is put in as the target writes it. Answers without a thought are supervised from the header on as they stand.
* "keep": as "on" for conversations in which an answer has a thought, as "off" for the others.

Not here: where conversations come from, generation, and files. Imports neither torch nor transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from deepspec.data.chat.formats import ChatFormat
from deepspec.data.chat.prepared import Prepared, prepare, thought_and_answer
from deepspec.data.chat.supervision import MaskKind, RenderedConversation, Supervision
from deepspec.data.chat.template import ChatTemplate, template_of
from deepspec.data.chat.template_layout import (
    CHANGED,
    MessageForm,
    Skeleton,
    locate,
    placeholder,
    skeleton_of,
    split,
    turn_bounds,
)
from deepspec.data.chat.tokenizer import check_chat_template
from deepspec.data.sources.rows import Message, RowRejected
from deepspec.errors import UnsupportedTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Thinking = Literal["off", "on", "keep"]

_MOST_SKELETONS = 4096  # conversations differ in few ways, but names of tools may be many


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """A conversation as tokens: `input_ids` int32 [T] and `mask` bool [T], true where a token is supervised."""

    input_ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]


class Renderer:
    """Renders and encodes conversations with one tokenizer's template.

    Tools are given as in the data: a JSON list of their declarations, or None.

    Args:
        tokenizer: fast, with a chat template.
        chat: the markers that its template writes.
        thinking: what is done about thoughts.

    Raises:
        UnsupportedTarget: no chat template, or one that does not write the markers of `chat`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", chat: ChatFormat, *, thinking: Thinking = "off") -> None:
        check_chat_template(tokenizer)
        self.tokenizer = tokenizer
        self.chat = chat
        self.thinking = thinking
        self.end_of_turn_ids = chat.end_of_turn_ids(tokenizer)
        self._skeletons: dict[tuple[bool, tuple[MessageForm, ...]], Skeleton] = {}
        self._supplied: dict[tuple[bool, bool], str] = {}
        self._templates: dict[str, ChatTemplate] = {}
        self._supervision = Supervision(chat, self._supplied_behind)

    def thinks(self, messages: Sequence[Message]) -> bool:
        """Whether the target is asked to think in this conversation."""
        if self.thinking == "keep":
            return any(thought_and_answer(message, self.chat)[0] is not None for message in messages)
        return self.thinking == "on"

    def prompt_text(self, messages: Sequence[Message], *, tools: str | None = None, thinks: bool | None = None) -> str:
        """The text of a conversation up to where the assistant's next answer begins.

        Args:
            messages: what was said so far.
            tools: what may be called.
            thinks: whether the target is asked to think; None: as `thinks` says of these messages.

        Raises:
            RowRejected: the template refuses the conversation.
            UnsupportedTarget: the template's generation prompt is not the format's.
        """
        thinks = self.thinks(messages) if thinks is None else thinks
        prepared = prepare(messages, tools, self.chat, thinks=thinks)
        text = self._apply(prepared.messages, prepared.tools, thinking=thinks, add_generation_prompt=True)
        self._supplied_in(text, thinking=thinks)
        return text

    def prompt_ids(
        self, messages: Sequence[Message], *, tools: str | None = None, thinks: bool | None = None
    ) -> tuple[int, ...]:
        """Token ids of `prompt_text`; raises what that raises."""
        text = self.prompt_text(messages, tools=tools, thinks=thinks)
        encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return tuple(encoding["input_ids"])

    def answer_text(self, output_ids: Sequence[int]) -> str:
        """The text of a generated answer, without its special tokens."""
        text: str = self.tokenizer.decode(output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, special tokens included: to be read by people."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def answer(self, output_ids: Sequence[int], *, thinks: bool = False, has_tools: bool = False) -> Message:
        """The message that a generated answer is.

        Tool calls stay in its text as they were written. An answer that was cut off within its thought has no text.

        Args:
            output_ids: what was generated.
            thinks: whether the target was asked to think: its thought is then told apart.
            has_tools: whether it might call tools: the markers of calls are then kept.
        """
        if not thinks and not has_tools:
            return {"role": "assistant", "content": self.answer_text(output_ids)}
        # Markers of thoughts and calls may be special tokens: only what ends the answer is taken away.
        ends = {*self.end_of_turn_ids, *self._ids(self.chat.end_of_call_tokens), self.tokenizer.eos_token_id}
        kept = list(output_ids)
        while kept and kept[-1] in ends:
            kept.pop()
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not thinks:
            return {"role": "assistant", "content": text}
        text = self._supplied_behind(thinking=True, after_result=False) + text
        if text.lstrip().startswith(self.chat.thought_open) and self.chat.thought_close not in text:
            thought = text.lstrip().removeprefix(self.chat.thought_open)
            return {"role": "assistant", "content": "", "reasoning_content": thought.lstrip("\n")}
        found, rest = thought_and_answer({"role": "assistant", "content": text}, self.chat)
        message = {"role": "assistant", "content": rest}
        return message if found is None else message | {"reasoning_content": found}

    def calls_a_tool(self, answer: Message) -> bool:
        """Whether a generated answer calls a tool in its text."""
        return bool(self.chat.call_open) and self.chat.call_open in answer["content"]

    def render(
        self,
        messages: Sequence[Message],
        *,
        mask: MaskKind,
        complete: bool = True,
        tools: str | None = None,
    ) -> RenderedConversation:
        """Render a conversation once and find what is supervised in it.

        Args:
            messages: a conversation with at least one assistant message.
            mask: which of the two masks.
            complete: False for a last answer that was cut off: the text then ends with it, without an end of turn.
            tools: what may be called.

        Raises:
            RowRejected: the template refuses the conversation, or changes its contents beyond recognition.
            UnsupportedTarget: the template does not write the markers of the chat format.
        """
        thinks = self.thinks(messages)
        messages, primed = self._without_primers(messages, thinks=thinks)
        prepared = replace(prepare(messages, tools, self.chat, thinks=thinks), primed=primed)
        if not complete and messages[-1].get("reasoning_content") and not messages[-1]["content"]:
            raise RowRejected("the answer was cut off within its thought")
        text = self._apply(prepared.messages, prepared.tools, thinking=prepared.thinking, add_generation_prompt=False)
        for forms in self._forms(messages, prepared):
            skeleton = self._skeleton(forms, thinking=prepared.thinking)
            literals = self._literals(skeleton, forms, prepared)
            contents = [
                self._contents(messages[index], prepared, index, has_thought=form.has_thought)
                for index, form in enumerate(forms)
            ]
            found = locate(skeleton, literals, text, contents)
            if found is not None:
                bounds = [turn_bounds(turn, text, found, self.chat) for turn in skeleton.turns]
                if not complete:
                    text = text[: bounds[-1].last]
                return self._supervision.marked(
                    text, list(zip(skeleton.turns, bounds, strict=True)), prepared, mask, complete=complete
                )
        raise RowRejected(CHANGED)

    def encode(self, rendered: Sequence[RenderedConversation]) -> list[EncodedConversation]:
        """Tokenise texts, each once, and mask them by character offsets.

        A token is supervised if all of its characters are: one that reaches over the edge of an answer is not what
        the target generates.

        Returns:
            One `EncodedConversation` for each text, not truncated.
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
            EncodedConversation(np.asarray(ids, dtype=np.int32), _offsets_mask(offsets, row.spans))
            for row, ids, offsets in rows
        ]

    def _apply(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, *, thinking: bool, add_generation_prompt: bool
    ) -> str:
        text = self.tokenizer.get_chat_template(tools=tools)
        template = self._templates.get(text)
        if template is None:
            template = self._templates[text] = template_of(self.tokenizer, text)
        return template.render(messages, tools, add_generation_prompt=add_generation_prompt, enable_thinking=thinking)

    def _ids(self, tokens: Sequence[str]) -> list[int]:
        vocabulary = self.tokenizer.get_vocab()
        return [int(vocabulary[token]) for token in tokens if token in vocabulary]

    def _without_primers(
        self, messages: Sequence[Message], *, thinks: bool
    ) -> tuple[Sequence[Message], tuple[bool, ...]]:
        """The messages without the empty thoughts that their prompts end with, and which of them had one."""
        given: list[Message] = []
        for index, message in enumerate(messages):
            answer = message["content"]
            if message["role"] == "assistant" and not thinks and self.chat.begins_with_empty_thought(answer):
                after_result = index > 0 and messages[index - 1]["role"] == "tool"
                if self._supplied_behind(thinking=False, after_result=after_result) == self.chat.empty_thought:
                    answer = self.chat.without_empty_thought(answer)
            given.append(message if answer == message["content"] else {**message, "content": answer})
        return given, tuple(one is not message for one, message in zip(given, messages, strict=True))

    def _forms(self, messages: Sequence[Message], prepared: Prepared) -> list[tuple[MessageForm, ...]]:
        """Variants of the messages' forms: the template may take a thought apart that no message declares."""
        close = self.chat.thought_close

        def form(index: int, *, divided: bool) -> MessageForm:
            role = messages[index]["role"]
            names = tuple(call["function"]["name"] for call in prepared.calls[index])
            is_empty = not prepared.answers[index] and (bool(names) or role == "tool")
            has_thought = prepared.thoughts[index] is not None
            if divided and role == "assistant" and close and close in prepared.messages[index]["content"]:
                has_thought = True
            return MessageForm(role, has_thought, is_empty, names)

        variants = [tuple(form(index, divided=divided) for index in range(len(messages))) for divided in (False, True)]
        return variants[:1] if variants[0] == variants[1] else variants

    def _contents(self, message: Message, prepared: Prepared, index: int, *, has_thought: bool) -> dict[str, str]:
        """What may stand in a message's gaps."""
        thought = prepared.thoughts[index]
        if thought is not None:
            return {"thought": thought, "answer": prepared.answers[index]}
        if not has_thought:
            return {"answer": message["content"]}
        inside, _, answer = message["content"].rpartition(self.chat.thought_close)
        return {"thought": inside.rpartition(self.chat.thought_open)[2], "answer": answer}

    def _skeleton(self, forms: tuple[MessageForm, ...], *, thinking: bool) -> Skeleton:
        known = self._skeletons.get((thinking, forms))
        if known is not None:
            return known
        calls = [
            [
                {"id": f"{index}-{number}", "type": "function", "function": {"name": name, "arguments": argument}}
                for number, name in enumerate(form.calls)
            ]
            for index, form in enumerate(forms)
            for argument in ({"q7": placeholder(index, "call")},)
        ]
        text = self._with_placeholders(forms, calls, None, thinking=thinking)
        skeleton = skeleton_of(text, forms, self.chat)
        if len(self._skeletons) == _MOST_SKELETONS:
            self._skeletons.clear()
        self._skeletons[thinking, forms] = skeleton
        return skeleton

    def _literals(self, skeleton: Skeleton, forms: tuple[MessageForm, ...], prepared: Prepared) -> tuple[str, ...]:
        """The texts around the gaps, with the conversation's own calls and tools in them."""
        if prepared.tools is None and not any(prepared.calls):
            return skeleton.literals
        text = self._with_placeholders(forms, prepared.calls, prepared.tools, thinking=prepared.thinking)
        literals, gaps = split(text)
        if gaps != skeleton.gaps:
            raise RowRejected(CHANGED)
        return literals

    def _with_placeholders(
        self, forms: Sequence[MessageForm], calls: Sequence[Sequence[Any]], tools: Any, *, thinking: bool
    ) -> str:
        chat = self.chat
        messages: list[dict[str, Any]] = []
        waiting: list[Any] = []
        for index, form in enumerate(forms):
            content = "" if form.is_empty else placeholder(index, "answer")
            message: dict[str, Any] = {"role": form.role, "content": content}
            if form.has_thought and chat.thoughts_in_content:
                message["content"] = chat.written_thought(placeholder(index, "thought")) + content
            elif form.has_thought:
                message["reasoning_content"] = placeholder(index, "thought")
            if calls[index]:
                message["tool_calls"] = list(calls[index])
                waiting = list(calls[index])
            if form.role == "tool":
                call = waiting.pop(0)
                message |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
            messages.append(message)
        return self._apply(messages, tools, thinking=thinking, add_generation_prompt=False)

    def _supplied_in(self, prompt: str, *, thinking: bool) -> str:
        """What a generation prompt has behind the last header.

        Raises:
            UnsupportedTarget: it does not end as the format says.
        """
        chat = self.chat
        endings = ["", chat.empty_thought]
        if thinking and chat.thought_open:
            endings += [chat.thought_open, chat.thought_open + "\n"]  # such a target cannot but think
        for ending in endings:
            if prompt.endswith(tuple(header + ending for header in chat.turn_starts)):
                return ending
        raise UnsupportedTarget(
            f"the chat template's generation prompt ends with {prompt[-40:]!r}, not with a header of the chat format"
            f" {chat.name!r} ({', '.join(map(repr, chat.turn_starts))}).",
            remedy="Use the template that belongs to the target, or another data.thinking.",
        )

    def _supplied_behind(self, *, thinking: bool, after_result: bool) -> str:
        """What generation prompts have behind the header of an answer to the user, or to a tool's result."""
        known = self._supplied.get((thinking, after_result))
        if known is None:
            messages: list[dict[str, Any]] = [{"role": "user", "content": "q"}]
            if after_result:
                call = {"id": "0", "type": "function", "function": {"name": "q", "arguments": {"q": "q"}}}
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
                messages.append({"role": "tool", "content": "q", "tool_call_id": "0", "name": "q"})
            prompt = self._apply(messages, None, thinking=thinking, add_generation_prompt=True)
            known = self._supplied_in(prompt, thinking=thinking)
            self._supplied[thinking, after_result] = known
        return known


def _offsets_mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Tokens that lie within one of the spans, from their [start, end) characters; bool [T]."""
    bounds_T2 = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    mask_T = np.zeros(len(bounds_T2), dtype=np.bool_)
    for start, end in spans:
        mask_T |= (bounds_T2[:, 0] >= start) & (bounds_T2[:, 1] <= end) & (bounds_T2[:, 0] < end)
    return mask_T
