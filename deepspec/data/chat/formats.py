"""What chat templates write around the assistant's turns, one format for each family's templates.

A format only finds the answers in a text; the text itself is written by the target's own template (renderer.py).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepspec.errors import UnsupportedTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The markers that a family's chat templates write around the assistant's turns.

    Attributes:
        name: what the format is called.
        assistant_headers: texts after which the assistant's turn begins.
        end_of_turn_tokens: tokens that end it; the target generates them.
        empty_thought: what the template puts before an answer that has no thoughts; "" if nothing.
        thought_open, thought_close: around the thoughts of an answer; "" if the format has none.
        thoughts_in_content: whether templates are given a thought within the answer's text, which they take apart; else
            they are given it as `reasoning_content`.
        call_open: what a tool call begins with; "" if the format has none.
        end_of_call_tokens: tokens that end a turn behind a tool call, besides the end-of-turn tokens.
        result_close: behind it the assistant goes on in the same turn; "" if a tool's result ends a turn of its own.
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
    thoughts_in_content: bool = True
    call_open: str = ""
    end_of_call_tokens: tuple[str, ...] = ()
    result_close: str = ""
    primed_turns: bool = False
    deepspec_supervises_empty_thought: bool = True

    @property
    def turn_starts(self) -> tuple[str, ...]:
        """Texts behind which the assistant's part begins."""
        return self.assistant_headers + ((self.result_close,) if self.result_close else ())

    def begins_with_empty_thought(self, answer: str) -> bool:
        """Whether an answer's text begins with a thought that says nothing, however it is spaced."""
        return self.without_empty_thought(answer) != answer

    def without_empty_thought(self, answer: str) -> str:
        """An answer's text without the empty thoughts that it begins with, and the line ends behind them."""
        while self.thought_close:
            inside, close, rest = answer.partition(self.thought_close)
            if not close or inside.strip() != self.thought_open:
                break
            answer = rest.lstrip("\n")
        return answer

    def written_thought(self, thought: str) -> str:
        """A thought as the target writes it before an answer."""
        if not thought:
            return self.empty_thought
        end = "\n\n" if self.thoughts_in_content else ""
        return f"{self.thought_open}\n{thought}\n{self.thought_close}{end}"

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
    call_open="<tool_call>",
)
"""Qwen3's format; a tool's result stands in a turn of the user's."""

GEMMA4 = ChatFormat(
    name="gemma4",
    assistant_headers=("<|turn>model\n",),
    end_of_turn_tokens=("<turn|>",),
    empty_thought="<|channel>thought\n<channel|>",
    thought_open="<|channel>thought",
    thought_close="<channel|>",
    thoughts_in_content=False,
    call_open="<|tool_call>",
    end_of_call_tokens=("<|tool_response>",),
    result_close="<tool_response|>",
    primed_turns=True,
    deepspec_supervises_empty_thought=False,
)
"""Gemma 4's format.

From the models' documented control tokens and from what transformers expects of such an answer; `<|tool_response>` is
one of the end tokens of the released generation configurations. No released template is needed: the text is written by
the target's own template, these markers only find the answers in it, and a template that writes others is refused.
"""
