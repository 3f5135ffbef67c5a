"""A conversation as the template is given it: thoughts taken apart from answers, tool calls read from their JSON.

Not here: what the template writes of it (renderer.py), and what of that is supervised (supervision.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepspec.data.chat.formats import ChatFormat
from deepspec.data.sources.rows import Message


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation on its way to the template.

    Attributes:
        messages: as the template is given them.
        thoughts: of each message, or None.
        answers: of each message: its text without its thought.
        calls: of each message: its tool calls, as the template is given them.
        tools: what may be called, or None.
        thinking: whether the target is asked to think.
        weighted: of each message: whether it is supervised if it is an answer.
        primed: of each message: whether it came with the empty thought that its prompt ends with.
    """

    messages: tuple[dict[str, Any], ...]
    thoughts: tuple[str | None, ...]
    answers: tuple[str, ...]
    calls: tuple[tuple[Any, ...], ...]
    tools: list[Any] | None
    thinking: bool
    weighted: tuple[bool, ...]
    primed: tuple[bool, ...] = ()


def prepare(messages: Sequence[Message], tools: str | None, chat: ChatFormat, *, thinks: bool) -> Prepared:
    """Messages as the template is given them."""
    given, thoughts, answers, calls = [], [], [], []
    names: dict[str, str] = {}
    for message in messages:
        thought, answer = thought_and_answer(message, chat) if thinks else (None, message["content"])
        one: dict[str, Any] = {"role": message["role"], "content": answer}
        if thought is not None and chat.thoughts_in_content:
            one["content"] = chat.written_thought(thought) + answer
        elif thought is not None:
            one["reasoning_content"] = thought
        own = json.loads(message["tool_calls"]) if message.get("tool_calls") else []
        if own:
            one["tool_calls"] = own
            names |= {call["id"]: call["function"]["name"] for call in own}
        if message["role"] == "tool":
            one |= {"tool_call_id": message["tool_call_id"], "name": names.get(message["tool_call_id"], "")}
        given.append(one)
        thoughts.append(thought)
        answers.append(answer)
        calls.append(tuple(own))
    declared = json.loads(tools) if tools is not None else None
    weighted = tuple(message.get("weight") != "0" for message in messages)
    return Prepared(tuple(given), tuple(thoughts), tuple(answers), tuple(calls), declared, thinks, weighted)


def thought_and_answer(message: Message, chat: ChatFormat) -> tuple[str | None, str]:
    """A message's thought, or None, and its answer."""
    content = message["content"]
    if message["role"] != "assistant" or not chat.thought_close:
        return None, content
    if message.get("reasoning_content"):
        return message["reasoning_content"], content
    inside, close, answer = content.partition(chat.thought_close)
    if not close or not inside.lstrip().startswith(chat.thought_open):
        return None, content
    thought = inside.lstrip().removeprefix(chat.thought_open).strip("\n")
    # Between a thought and its answer a format may have empty lines; they are the format's.
    return thought, answer.lstrip("\n") if chat.thoughts_in_content else answer
