"""Tools, calls and results as rows have them, in one form."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.config import Config
from deepspec.data.conversations.build import write_conversations
from deepspec.data.sources.parsing import conversation_hash, parse_row, prompt_hash
from deepspec.data.sources.rows import RowRejected
from deepspec.data.sources.tool_calls import parse_tools
from deepspec.data.tables import has_tools, read_conversations

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


def call(arguments: Any, *, name: str = "add", known_as: str | None = "x1") -> dict[str, Any]:
    return {"id": known_as, "type": "function", "function": {"name": name, "arguments": arguments}}


def row(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "2 + 2?"}, *messages], **fields}


def calls(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(items), **fields}


def result(content: Any = "4", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **fields}


ANSWER = {"role": "assistant", "content": "Four."}


def parsed(value: dict[str, Any], **arguments: Any) -> list[Any]:
    return list(parse_row(value, max_row_bytes=10_000, **arguments))


def test_one_form_for_equal_conversations() -> None:
    written = json.dumps([{"id": "call_0", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}])
    expected = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": written},
        {"role": "tool", "content": "4", "tool_call_id": "call_0"},
        {"role": "assistant", "content": "Four."},
    ]
    older = {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a": 2}'}}
    rows = [
        row(calls(call('{"a": 2}')), result(tool_call_id="x1"), ANSWER),
        row(calls(call({"a": 2}, known_as="y"), content=""), result(tool_call_id="y"), ANSWER),
        row(calls(call({"a": 2}, known_as=None)), result(name="add"), ANSWER),
        row(older, result(), ANSWER),
    ]
    assert [parsed(one) for one in rows] == [expected] * 4


def test_results_stand_in_the_order_of_the_calls() -> None:
    both = calls(call({"a": 1}, known_as="p"), call({"a": 2}, known_as="q"))
    found = parsed(row(both, result("second", tool_call_id="q"), result("first", tool_call_id="p"), ANSWER))
    assert [message["content"] for message in found[2:4]] == ["first", "second"]
    assert [message["tool_call_id"] for message in found[2:4]] == ["call_0", "call_1"]


def test_calls_at_the_end_need_no_result_and_results_may_be_empty() -> None:
    assert "tool_calls" in parsed(row(calls(call({}))))[-1]
    assert parsed(row(calls(call({})), result("")))[-1] == {"role": "tool", "content": "", "tool_call_id": "call_0"}


BAD: list[tuple[dict[str, Any], str]] = [
    (row(ANSWER, result()), "tool result without a tool call"),
    (row(result()), "tool result without a tool call"),
    (row(calls(call({})), result(), result()), "tool result without a tool call"),
    (row(calls(call({})), result(tool_call_id="other")), "tool result without a tool call"),
    (row(calls(call({})), {"role": "user", "content": "well?"}), "tool call without a result"),
    (row(calls(call({}), call({}, known_as="x2")), result()), "tool call without a result"),
    (row(calls(call({})), result(), {"role": "user", "content": "well?"}), "user message behind a tool result"),
    (row(calls("add")), "tool call is not an object"),
    (row(calls(call({}, name="a b"))), "tool call whose name is no identifier"),
    (row(calls(call("{"))), "tool call's arguments are not valid JSON"),
    (row(calls(call("[1]"))), "tool call's arguments are not an object"),
    (row(calls(call({"a": "\0"}))), "NUL"),
    (row(calls(call({"a": "\ud800"}))), "not valid JSON"),
    (row(calls(call({})), result([1])), "content is not a string"),
    ({"messages": [{"role": "user", "content": "hi", "tool_calls": [call({})]}]}, "tool calls of the user"),
    (row({"role": "assistant", "content": "", "tool_calls": [call({"a": "x" * 20_000})]}), "max_row_bytes"),
]


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_bad_rows(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowRejected, match=reason):
        parsed(value)


def test_declarations() -> None:
    written = json.dumps([TOOL])
    bare = TOOL["function"]
    for tools in ([TOOL], [bare], json.dumps([bare]), [{**TOOL, "strict": None}]):
        assert parse_tools({"tools": tools}) == written
    for tools in (None, [], "", "[]"):
        assert parse_tools({"tools": tools}) is None
    assert parse_tools({}) is None
    for tools, reason in (("{", "not valid JSON"), ({"a": 1}, "not a list"), ([1], "no"), ([{"name": "a b"}], "name")):
        with pytest.raises(RowRejected, match=reason):
            parse_tools({"tools": tools})


def test_thoughts_are_read_only_where_they_are_wanted() -> None:
    thought = {**ANSWER, "reasoning_content": "Easy.\n"}
    assert parsed(row(thought)) == parsed(row(ANSWER))
    assert parsed(row(thought), thoughts=True)[-1] == {**ANSWER, "reasoning_content": "Easy."}
    assert parsed(row({**ANSWER, "reasoning": "Easy."}), thoughts=True)[-1] == {**ANSWER, "reasoning_content": "Easy."}


def test_what_is_said_with_tools_is_part_of_what_is_said() -> None:
    base = parsed(row(calls(call({"a": 2})), result(), ANSWER))
    other = parsed(row(calls(call({"a": 3})), result(), ANSWER))
    assert conversation_hash(base) != conversation_hash(other)
    assert prompt_hash(base) == prompt_hash(other)
    assert conversation_hash(base, "[]") != conversation_hash(base)
    assert prompt_hash(base, "[]") != prompt_hash(base)


def make(folder: Path, rows: list[dict[str, Any]], *, parquet: bool = False, **fields: Any) -> Path:
    out = folder / "out"
    out.mkdir(parents=True)
    source = folder / ("rows.parquet" if parquet else "rows.jsonl")
    if parquet:
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        source.write_text("".join(json.dumps(one) + "\n" for one in rows))
    shares = {"validation": 0, "calibration": 0, "gate": 0}
    write_conversations(Config.model_validate({"source": "x", "splits": shares, **fields}), [source], out)
    return out


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("parquet", [False, True])
def test_a_null_is_kept_where_a_row_says_it(tmp_path: Path, *, parquet: bool, as_text: bool) -> None:
    """A struct of Parquet has every field of the column, so there a null is no field; a JSON text says what it says."""
    parameters = {"type": "object", "properties": {"a": {"default": None}}, "required": None}
    function = {"name": "add", "strict": None, "parameters": parameters}
    tools: Any = [{"type": "function", "function": function}]
    arguments: Any = {"a": 2, "b": None}
    given = row(calls(call(json.dumps(arguments) if as_text else arguments)), result(), ANSWER)
    given["tools"] = json.dumps(tools) if as_text else tools
    out = make(tmp_path, [given], parquet=parquet)
    (found,) = read_conversations(out / "train.parquet", ("messages",))
    (declared,) = json.loads(found["tools"])
    (called,) = json.loads(found["messages"][1]["tool_calls"])
    if parquet and not as_text:
        function = {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}
        arguments = {"a": 2}
    assert declared["function"] == function
    assert called["function"]["arguments"] == arguments


@pytest.mark.parametrize("parquet", [False, True])
def test_they_come_through_files(tmp_path: Path, parquet: bool) -> None:
    given = row(calls(call('{"a": 2}')), result(tool_call_id="x1"), ANSWER, tools=json.dumps([TOOL]))
    plain = {"messages": [{"role": "user", "content": "hi"}, {**ANSWER, "reasoning_content": "Easy."}], "tools": None}
    out = make(tmp_path, [given, plain], parquet=parquet, thinking="keep")
    found = {row["id"]: row for row in read_conversations(out / "train.parquet", ("id", "messages"))}
    assert has_tools(out / "train.parquet")
    tools = json.dumps([TOOL])
    assert found[conversation_hash(parsed(given), tools)]["messages"] == parsed(given)
    assert found[conversation_hash(parsed(given), tools)]["tools"] == tools
    thought = parsed(plain, thoughts=True)
    assert found[conversation_hash(thought)] == {"id": conversation_hash(thought), "messages": thought, "tools": None}


def test_where_nobody_calls_a_tool_files_are_as_they_were(tmp_path: Path) -> None:
    plain = {"messages": [{"role": "user", "content": "hi"}, {**ANSWER, "reasoning_content": "Easy."}], "tools": []}
    out = make(tmp_path, [plain])
    assert pq.read_schema(out / "train.parquet").names == ["id", "prompt_id", "messages"]
    (found,) = pq.read_table(out / "train.parquet")["messages"].to_pylist()
    assert found == [{"role": "user", "content": "hi"}, ANSWER]
    (read,) = read_conversations(out / "train.parquet", ("messages",))
    assert read == {"messages": found, "tools": None}
