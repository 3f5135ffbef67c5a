"""What one row must contain to be a conversation, and the hashes by which conversations and prompts are known.

Not here: reading (readers.py), and what is done with the rows (conversations/build.py). Standard library only.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepspec.data.config import Config
from deepspec.data.sources.readers import COLUMNS, TOO_LONG
from deepspec.data.sources.rows import Message, RowRejected, excerpt_of
from deepspec.data.sources.tool_calls import linked, parse_calls, parse_tools

_ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
_ID_CHARACTERS = 32  # 128 bits of SHA-256: no two of a billion conversations collide


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


def parse_conversation(value: object, config: Config) -> tuple[list[Message], str | None]:
    """The conversation in a row as a recipe's data section wants it, and its tools; see `parse_row`.

    Raises:
        RowRejected: saying why it is not a conversation that can be used.
    """
    messages = parse_row(
        value,
        max_row_bytes=config.max_row_bytes,
        system_prompt=config.system_prompt,
        thoughts=config.thinking != "off",
    )
    tools = parse_tools(value)
    if tools is not None and len(tools.encode()) > config.max_row_bytes:
        raise RowRejected(TOO_LONG)
    return messages, tools


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

    Two conversations that open with the same question share one, also under different system messages.
    """
    users = [message for message in messages if message["role"] == "user"]
    openings = (conversation_hash(users[: count + 1]) for count in range(len(users)))
    return frozenset((prompt_hash(messages), *openings))


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
