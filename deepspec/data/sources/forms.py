"""The forms in which a row may hold a conversation: one table, and the fields that each form reads.

What a form does not read of a row is known by difference, so that nothing is left out in silence: `Conversation.unread`
names it. Nothing else knows forms: a new one is an entry of `FORMS`. OpenAI's and ShareGPT's names may be mixed in one
message, as they are in Parquet columns of mixed origin.

Not here: declarations, calls and results of tools (tool_calls.py); sizes and hashes (parsing.py); files (readers.py).
Standard library only.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from deepspec.data.sources.rows import Message, RowRejected, excerpt_of
from deepspec.data.sources.tool_calls import (
    calls_in_text,
    has_calls_in_text,
    linked,
    parse_calls,
    parse_tools,
    results_in_text,
)

ROLES = MappingProxyType(
    {
        **dict.fromkeys(("system", "developer"), "system"),
        **dict.fromkeys(("user", "human"), "user"),
        **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
        **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
        **dict.fromkeys(("function_call", "tool_call"), "call"),
    }
)
"""Role in a row -> "system", "user", "assistant", "tool", or "call": a message of the assistant that is a call."""

_ROW_FIELDS = ("system", "tools", "functions")
_MESSAGE_FIELDS = frozenset(
    {
        "role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "reasoning_content",
        "reasoning", "weight",
    }
)  # fmt: skip
_MOST_NAMED = 8
_NAME_CHARACTERS = 60


class Conversation(NamedTuple):
    """What a row says.

    Attributes:
        messages: in OpenAI's form, in an order that chat templates accept.
        tools: what may be called, as a JSON list, or None.
        unread: fields of the row, and of its messages (`messages[].name`), that hold something and are not read.
    """

    messages: list[Message]
    tools: str | None
    unread: frozenset[str]


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a row.

    Attributes:
        column: the field by which a row of this form is recognised.
        holds: what stands in it: messages, texts (a list of them), or one text; a "prompt" is either.
        fields: all that is read of a row.
        read: the row's messages, from the row, whether thoughts are wanted, and a set that unread fields are added to.
        example: a row, for people.
    """

    column: str
    holds: Literal["messages", "texts", "text", "prompt"]
    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any], bool, set[str]], list[Message]]
    example: str


def read_conversation(row: object, *, thoughts: bool = False) -> Conversation:
    """The conversation in a row.

    Args:
        row: of one of `FORMS`.
        thoughts: whether an answer's `reasoning_content` (or `reasoning`) is kept; else it is left out.

    Raises:
        RowRejected: saying why it is not a conversation that can be used; where it is of no form, naming its fields
            and what is accepted.
    """
    if not isinstance(row, Mapping):
        raise RowRejected("row is not an object")
    form = next((form for form in FORMS if not _is_empty(row.get(form.column))), None)
    if form is None:
        raise RowRejected(_formless(row), plain="row without messages")
    unread = {_named(name) for name, value in row.items() if name not in form.fields and not _is_empty(value)}
    messages = form.read(row, thoughts, unread)
    system = row.get("system")
    if not _is_empty(system):
        if messages[0]["role"] == "system":
            unread.add("system")  # the conversation has its own
        else:
            messages.insert(0, {"role": "system", "content": _checked_content(system)})
    if not (_is_empty(row.get("tools")) or _is_empty(row.get("functions"))):
        unread.add("functions")
    return Conversation(messages, parse_tools(row), frozenset(unread))


def instruction_with_input(instruction: str, given: str) -> str:
    """The user's turn that an instruction and its input are."""
    return f"{instruction}\n\nInput:\n{given}" if given else instruction


def _formless(row: Mapping[str, Any]) -> str:
    """Why a row of no form is refused."""
    names = [_named(name) for name, value in row.items() if not _is_empty(value)]
    if not names or any(form.column in row for form in FORMS):
        return "row without messages"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    accepted = ", ".join(form.column for form in FORMS)
    return f"row has the fields {', '.join(sorted(names)[:_MOST_NAMED])}{more}, but none of {accepted}"


def _named(name: object) -> str:
    return excerpt_of(str(name))[:_NAME_CHARACTERS]


def _is_empty(value: object) -> bool:
    """Whether a field says nothing. Parquet columns of mixed origin are full of such."""
    return value is None or (isinstance(value, str | list | Mapping) and not value)


# --- messages -------------------------------------------------------------------------------------------------------


def _read_messages(row: Mapping[str, Any], thoughts: bool, unread: set[str], column: str) -> list[Message]:  # noqa: FBT001
    turns = row[column]
    if not isinstance(turns, list):
        raise RowRejected(f"{column} is not a list")
    return _messages(turns, f"{column}[]", thoughts=thoughts, unread=unread)


def _messages(turns: Sequence[Any], place: str, *, thoughts: bool, unread: set[str]) -> list[Message]:
    """Messages of OpenAI's or ShareGPT's form.

    Args:
        turns: as the row has them.
        place: where they stand, to name what is unread.
        thoughts: whether they are kept.
        unread: added to.
    """
    roles = [_role_of(turn) for turn in turns]
    written_out = _calls_are_written_out(turns, roles)
    messages: list[Message] = []
    calls: list[Sequence[Mapping[str, Any]]] = []
    for turn, role in zip(turns, roles, strict=True):
        for message, own in _parsed(turn, role, f"{place}.content[]", written_out=written_out, unread=unread):
            messages.append(message)
            calls.append(own)
        if role in ("assistant", "call"):
            messages[-1] = {**messages[-1], **_extras(turn, place, thoughts=thoughts, unread=unread)}
        known = _MESSAGE_FIELDS | ({"name"} if role == "tool" else set())
        unread |= {f"{place}.{_named(name)}" for name in turn.keys() - known if not _is_empty(turn[name])}
    _check_order([message["role"] for message in messages])
    return linked(messages, calls)


def _role_of(turn: object) -> str:
    if not isinstance(turn, Mapping):
        raise RowRejected("message is not an object")
    role = _first(turn, "role", "from")
    if not isinstance(role, str):
        raise RowRejected("message without a role")
    if role not in ROLES:
        reason = f"unknown role {excerpt_of(role)[:30]!r}"
        raise RowRejected(reason, detail=f"known are {', '.join(ROLES)}", plain="unknown role")
    return ROLES[role]


def _calls_are_written_out(turns: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> bool:
    """Whether calls stand in the answers' text, as in Hermes' data: there are results, and no call is declared."""
    if "tool" not in roles or "call" in roles:
        return False
    if any(turn.get("tool_calls") or turn.get("function_call") for turn in turns):
        return False
    answers = (_first(turn, "content", "value") for turn, role in zip(turns, roles, strict=True) if role == "assistant")
    return any(isinstance(text, str) and has_calls_in_text(text) for text in answers)


def _parsed(
    turn: Mapping[str, Any], role: str, place: str, *, written_out: bool, unread: set[str]
) -> Iterable[tuple[Message, list[dict[str, Any]]]]:
    """The messages that a message of the row becomes, each with its calls: several where it holds several results."""
    content = _text_of(_first(turn, "content", "value"), place, unread)
    if role == "call":
        return [({"role": "assistant", "content": ""}, parse_calls({"tool_calls": content}))]
    calls = bool(turn.get("tool_calls") or turn.get("function_call"))
    if calls and role != "assistant":
        raise RowRejected(f"tool calls of the {role}")
    if written_out and role == "assistant" and isinstance(content, str):
        rest, found = calls_in_text(content)
        return [({"role": role, "content": rest if found else _checked_content(rest)}, found)]
    if written_out and role == "tool" and isinstance(content, str):
        return [({"role": role, "content": text and _checked_content(text)}, []) for text in results_in_text(content)]
    # A call needs no words, and a tool may have nothing to say.
    is_optional = calls or role == "tool"
    message = {"role": role, "content": "" if is_optional and not content else _checked_content(content)}
    if role == "tool" and isinstance(turn.get("tool_call_id"), str):
        message["tool_call_id"] = turn["tool_call_id"]
    return [(message, parse_calls(turn))]


def _extras(turn: Mapping[str, Any], place: str, *, thoughts: bool, unread: set[str]) -> dict[str, str]:
    """What an answer has besides its text and calls: its thought, and a weight of 0."""
    extras = {}
    thought = _first(turn, "reasoning_content", "reasoning")
    if thoughts and isinstance(thought, str) and thought.strip():
        extras["reasoning_content"] = _checked_content(thought).strip("\n")
    weight = turn.get("weight")
    if weight in (0, 1):  # numbers or booleans
        return extras if weight else {**extras, "weight": "0"}
    if weight is not None:
        unread.add(f"{place}.weight (neither 0 nor 1)")
    return extras


def _text_of(content: object, place: str, unread: set[str]) -> object:
    """A content's text; one that is a list of text parts is joined, as servers do it for templates of plain texts."""
    if not isinstance(content, list) or not content:
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(part, Mapping) and part.get("type", "text") not in ("text", "input_text", "output_text"):
            reason = f"content has a part of the type {excerpt_of(str(part['type']))[:30]!r}, not text"
            raise RowRejected(reason, plain="content has a part that is not text")
        if not isinstance(text, str):
            raise RowRejected("content is not a string")
        texts.append(text)
        if isinstance(part, Mapping):
            names = part.keys() - {"type", "text"}
            unread |= {f"{place}.{_named(name)}" for name in names if not _is_empty(part[name])}
    return "\n".join(texts)


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


# --- other forms ----------------------------------------------------------------------------------------------------


def _read_turns(row: Mapping[str, Any], thoughts: bool, unread: set[str]) -> list[Message]:  # noqa: FBT001
    del thoughts
    if not isinstance(row["turns"], list):
        raise RowRejected("turns is not a list")
    return [_user(_text_of(turn, "turns[][]", unread)) for turn in row["turns"]]


def _read_instruction(row: Mapping[str, Any], thoughts: bool, unread: set[str]) -> list[Message]:  # noqa: FBT001
    del thoughts, unread
    instruction = _checked_content(row["instruction"])
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise RowRejected("input is not a string")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowRejected("history is not a list of pairs")
    before = [message for asked, said in history for message in (_user(asked), _assistant(said))]
    return [*before, _user(instruction_with_input(instruction, given or "")), *_answered(row.get("output"))]


def _read_prompt(row: Mapping[str, Any], thoughts: bool, unread: set[str]) -> list[Message]:  # noqa: FBT001
    answer = _first(row, "completion", "response")
    if not isinstance(row["prompt"], list):
        return [_user(row["prompt"]), *_answered(answer)]
    more = answer if isinstance(answer, list) else [] if answer is None else [{"role": "assistant", "content": answer}]
    return _messages([*row["prompt"], *more], "prompt[]", thoughts=thoughts, unread=unread)


def _user(content: object) -> Message:
    return {"role": "user", "content": _checked_content(content)}


def _assistant(content: object) -> Message:
    return {"role": "assistant", "content": _checked_content(content)}


def _answered(content: object) -> list[Message]:
    return [] if content is None else [_assistant(content)]


FORMS = (
    Form(
        "messages",
        "messages",
        ("messages", *_ROW_FIELDS),
        lambda row, thoughts, unread: _read_messages(row, thoughts, unread, "messages"),
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    ),
    Form(
        "conversations",
        "messages",
        ("conversations", *_ROW_FIELDS),
        lambda row, thoughts, unread: _read_messages(row, thoughts, unread, "conversations"),
        '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}',
    ),
    Form("turns", "texts", ("turns", *_ROW_FIELDS), _read_turns, '{"turns": ["…", "…"]}'),
    Form(
        "instruction",
        "text",
        ("instruction", "input", "output", "history", *_ROW_FIELDS),
        _read_instruction,
        '{"instruction": "…", "input": "…", "output": "…"}',
    ),
    Form(
        "prompt",
        "prompt",
        ("prompt", "completion", "response", *_ROW_FIELDS),
        _read_prompt,
        '{"prompt": "…", "completion": "…"}',
    ),
)
"""OpenAI's, ShareGPT's, DeepSpec's (user turns only), Alpaca's, and prompt and completion. A row that has the columns
of several is of the first."""

COLUMNS = ("messages", "conversations", "turns")
"""Columns that hold whole conversations; the others' names may mean other things in a benchmark of its own form."""
