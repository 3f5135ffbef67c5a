"""Tools in conversations: what may be called, the assistant's calls, and the tools' results.

A row may have `tools` (OpenAI's list of declarations, or that as JSON text; or its older `functions`), assistant
messages with `tool_calls` (or the older `function_call`) or with calls in their text (Hermes), and messages of a tool's
role. They are brought into one form, so that equal conversations are equal: declarations and calls as JSON text,
arguments as objects, calls numbered `call_0`, `call_1`, … through the conversation, results in the order of the calls.
A null is kept as the row has it: a template writes it, and so a server sees it.

Not here: the messages around them (forms.py), how a template writes them (chat/renderer.py).
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.data.sources.rows import Message, RowRejected, excerpt_of

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)


def parse_tools(value: object) -> str | None:
    """A row's declarations of tools as a JSON list of `{"type": "function", "function": {…}}`; None without any.

    Raises:
        RowRejected: saying why they cannot be used.
    """
    if not isinstance(value, Mapping):
        return None
    field = next((name for name in ("tools", "functions") if value.get(name) not in (None, [], "")), None)
    if field is None:
        return None
    found = _decoded(value[field], f"{field} is not valid JSON")
    if not isinstance(found, list):
        raise RowRejected(f"{field} is not a list")
    return _text([_declaration(item) for item in found]) if found else None


def parse_calls(turn: Mapping[str, object]) -> list[dict[str, Any]]:
    """The tool calls of an assistant's message, with the ids that it gives them (or None).

    Raises:
        RowRejected: saying why they cannot be used.
    """
    found = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    found = _decoded(found, "tool_calls is not valid JSON")
    if isinstance(found, Mapping):  # as text, one call may stand alone
        found = [found]
    if not isinstance(found, list):
        raise RowRejected("tool_calls is not a list")
    return [_call(item) for item in found]


def has_calls_in_text(text: str) -> bool:
    """Whether an answer has a call in its text, as Hermes' models write it."""
    return _CALL.search(text) is not None


def calls_in_text(text: str) -> tuple[str, list[dict[str, Any]]]:
    """An answer's text without the calls in it, and those calls.

    Raises:
        RowRejected: saying why they cannot be used.
    """
    calls = [_call(_literal(found.strip())) for found in _CALL.findall(text)]
    return (_CALL.sub("", text).strip() if calls else text), calls


def results_in_text(text: str) -> list[str]:
    """The results in a tool's message, each in Hermes' tags; without any, the whole of it."""
    return [found.strip() for found in _RESULT.findall(text)] or [text]


def _call(item: object) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRejected("tool call is not an object")
    function = item.get("function", item)
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if isinstance(arguments, str):
        arguments = _decoded(arguments.strip() or "{}", "tool call's arguments are not valid JSON")
    elif not arguments:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RowRejected("tool call's arguments are not an object")
    return {"id": item.get("id"), "name": _name(function, "tool call"), "arguments": arguments}


def _literal(text: str) -> Any:
    """A call in a text: JSON or, in some of the published data, a Python dictionary."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RowRejected("tool call in the text is not valid JSON", detail=excerpt_of(str(error))) from error


def linked(messages: Sequence[Message], calls: Sequence[Sequence[Mapping[str, Any]]]) -> list[Message]:
    """Messages with their calls numbered; every result names the call that it answers.

    Args:
        messages: in order; a result may have a `tool_call_id`, as its row had it.
        calls: of each message, from `parse_calls`.

    Raises:
        RowRejected: a result without a call, or a call without a result that others have, or that an answer follows.
    """
    found: list[Message] = []
    waiting: dict[str, Any] = {}  # number -> id in the row, of the calls that have no result yet
    results: list[Message] = []
    number = 0

    def close(*, at_the_end: bool) -> None:
        nonlocal results
        if waiting and (results or not at_the_end):
            raise RowRejected("tool call without a result")
        found.extend(sorted(results, key=lambda result: int(result["tool_call_id"].removeprefix("call_"))))
        results = []

    for message, own in zip(messages, calls, strict=True):
        if message["role"] == "tool":
            results.append({**message, "tool_call_id": _answered(message, waiting)})
            continue
        close(at_the_end=False)
        if not own:
            found.append(message)
            continue
        written = []
        for call in own:
            name = f"call_{number}"
            number += 1
            waiting[name] = call["id"]
            function = {"name": call["name"], "arguments": call["arguments"]}
            written.append({"id": name, "type": "function", "function": function})
        found.append({**message, "tool_calls": _text(written)})
    close(at_the_end=True)
    return found


def _answered(result: Message, waiting: dict[str, Any]) -> str:
    """Remove from the waiting calls the one that a result answers: the one it names, or the first."""
    wanted = result.get("tool_call_id")
    name = next((name for name, given in waiting.items() if wanted is None or given is None or given == wanted), None)
    if name is None:
        raise RowRejected("tool result without a tool call")
    del waiting[name]
    return name


def _declaration(item: object) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRejected("tool is not an object")
    function: Mapping[str, Any] = item["function"] if isinstance(item.get("function"), Mapping) else item
    _name(function, "tool")
    return {"type": "function", "function": {key: inner for key, inner in function.items() if key != "type"}}


def _name(function: object, what: str) -> str:
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RowRejected(f"{what} without a name")
    if not _NAME.fullmatch(name):
        raise RowRejected(f"{what} whose name is no identifier", detail=excerpt_of(name))
    return name


def _decoded(value: Any, reason: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowRejected(reason, detail=excerpt_of(str(error))) from error


def _text(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RowRejected("tools or tool calls are not valid JSON", detail=excerpt_of(str(error))) from error
    if "\\u0000" in text:
        raise RowRejected("content holds a NUL character")
    return text
