"""A row's conversation as a recipe wants it, and the hashes by which conversations and prompts are known.

Not here: the forms of a row (forms.py), reading (readers.py), and what is done with the rows (conversations/build.py).
Standard library only.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from deepspec.data.config import Config
from deepspec.data.sources.forms import Conversation, read_conversation
from deepspec.data.sources.rows import TOO_LONG, Message, RowRejected

_ID_CHARACTERS = 32  # 128 bits of SHA-256: no two of a billion conversations collide


def parse_row(
    value: object, *, max_row_bytes: int, system_prompt: str | None = None, thoughts: bool = False
) -> list[Message]:
    """The messages in a row, in OpenAI's form.

    Args:
        value: a row of one of `forms.FORMS`.
        max_row_bytes: most bytes of content, UTF-8.
        system_prompt: put before a conversation that has no system message.
        thoughts: whether an answer's `reasoning_content` (or `reasoning`) is kept; else it is left out.

    Raises:
        RowRejected: saying why it is not a conversation that can be used.
    """
    return _bounded(read_conversation(value, thoughts=thoughts), max_row_bytes, system_prompt).messages


def parse_conversation(value: object, config: Config) -> Conversation:
    """The conversation in a row as a recipe's data section wants it, and its tools; see `parse_row`.

    Raises:
        RowRejected: saying why it is not a conversation that can be used.
    """
    found = read_conversation(value, thoughts=config.thinking != "off")
    found = _bounded(found, config.max_row_bytes, config.system_prompt)
    if found.tools is not None and len(found.tools.encode()) > config.max_row_bytes:
        raise RowRejected(TOO_LONG)
    return found


def _bounded(found: Conversation, max_row_bytes: int, system_prompt: str | None) -> Conversation:
    texts = (text for message in found.messages for name, text in message.items() if name != "role")
    if sum(len(text.encode()) for text in texts) > max_row_bytes:
        raise RowRejected(TOO_LONG)
    if system_prompt is not None and found.messages[0]["role"] != "system":
        found.messages.insert(0, {"role": "system", "content": system_prompt})
    return found


def as_supervised(messages: Iterable[Message], config: Config) -> list[Message]:
    """Messages as a run supervises them: a weight is about the row's own answer, not about the target's new one."""
    if config.responses.mode == "keep":
        return list(messages)
    return [{name: text for name, text in message.items() if name != "weight"} for message in messages]


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
