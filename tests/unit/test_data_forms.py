"""The forms of a row: each gives the same conversation, and what it does not read is named."""

import json
from typing import Any

import pytest

from deepspec.data.sources.forms import FORMS, ROLES, read_conversation
from deepspec.data.sources.parsing import conversation_hash
from deepspec.data.sources.rows import Message, RowRejected

ASK = {"role": "user", "content": "How far is it?"}
SAY = {"role": "assistant", "content": "Nine miles."}
RULES = {"role": "system", "content": "Use miles."}
PLAIN = [ASK, SAY]
WITH_SYSTEM = [RULES, ASK, SAY]
CALL = {"name": "measure", "arguments": {"to": "sea"}}


def said(row: Any, **arguments: Any) -> list[Message]:
    return read_conversation(row, **arguments).messages


def openai(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


def sharegpt(*pairs: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs], **fields}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (openai(ASK, SAY), PLAIN),
        (openai({"role": "developer", "content": "Use miles."}, ASK, SAY), WITH_SYSTEM),
        (openai({**ASK, "content": [{"type": "text", "text": "How far is it?"}]}, SAY), PLAIN),
        (openai({**ASK, "content": [{"type": "input_text", "text": "How far is it?"}]}, SAY), PLAIN),
        (openai(ASK, SAY, system="Use miles."), WITH_SYSTEM),
        (openai(*WITH_SYSTEM, system="Use feet."), WITH_SYSTEM),
        (sharegpt(("human", "How far is it?"), ("gpt", "Nine miles.")), PLAIN),
        (sharegpt(("human", "How far is it?"), ("gpt", "Nine miles."), system="Use miles."), WITH_SYSTEM),
        (sharegpt(("human", "How far is it?"), ("gpt", "Nine miles."), system=""), PLAIN),
        (sharegpt(("user", "How far is it?"), ("bing", "Nine miles.")), PLAIN),
        ({"turns": ["How far is it?"]}, [ASK]),
        ({"turns": ["How far is it?"], "system": "Use miles."}, [RULES, ASK]),
        ({"instruction": "How far is it?", "input": "", "output": "Nine miles."}, PLAIN),
        ({"instruction": "How far is it?", "output": "Nine miles.", "system": "Use miles."}, WITH_SYSTEM),
        ({"instruction": "How far is it?"}, [ASK]),
        (
            {"instruction": "And back?", "output": "The same.", "history": [["How far is it?", "Nine miles."]]},
            [*PLAIN, {"role": "user", "content": "And back?"}, {"role": "assistant", "content": "The same."}],
        ),
        (
            {"instruction": "Add.", "input": "2, 3", "output": "5"},
            [{"role": "user", "content": "Add.\n\nInput:\n2, 3"}, {"role": "assistant", "content": "5"}],
        ),
        ({"prompt": "How far is it?", "completion": "Nine miles."}, PLAIN),
        ({"prompt": [RULES, ASK], "completion": [SAY]}, WITH_SYSTEM),
    ],
)
def test_every_form_gives_the_same_conversation(row: dict[str, Any], expected: list[Message]) -> None:
    found = read_conversation(row)
    assert found.messages == expected
    assert conversation_hash(found.messages) == conversation_hash(expected)


def test_the_examples_of_the_table_are_rows() -> None:
    assert all(read_conversation(json.loads(form.example)) for form in FORMS)
    assert {form.column for form in FORMS} <= {name for form in FORMS for name in form.fields}


CALLED = [
    ASK,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": json.dumps([{"id": "call_0", "type": "function", "function": CALL}]),
    },
    {"role": "tool", "content": "9", "tool_call_id": "call_0"},
    SAY,
]


@pytest.mark.parametrize(
    "row",
    [
        openai(
            ASK,
            {"role": "assistant", "content": None, "function_call": {"name": "measure", "arguments": '{"to": "sea"}'}},
            {"role": "function", "name": "measure", "content": "9"},
            SAY,
        ),
        sharegpt(
            *(("human", ASK["content"]), ("function_call", json.dumps(CALL))),
            *(("observation", "9"), ("gpt", SAY["content"])),
        ),
        sharegpt(
            *(("human", ASK["content"]), ("gpt", f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>")),
            *(("tool", "<tool_response>\n9\n</tool_response>"), ("gpt", SAY["content"])),
        ),
        sharegpt(  # as some of Hermes' rows have it: Python's dictionary
            *(("human", ASK["content"]), ("gpt", f"<tool_call>\n{CALL!r}\n</tool_call>")),
            *(("tool", "9"), ("gpt", SAY["content"])),
        ),
    ],
)
def test_calls_in_every_form(row: dict[str, Any]) -> None:
    found = read_conversation(row)
    assert found.messages == CALLED
    assert not found.unread


def test_several_calls_and_results_in_one_text() -> None:
    calls = "".join(f"<tool_call>{json.dumps({**CALL, 'arguments': {'n': n}})}</tool_call>" for n in range(2))
    results = "<tool_response>one</tool_response>\n<tool_response>two</tool_response>"
    found = said(sharegpt(("human", "go"), ("gpt", f"I measure.\n{calls}"), ("tool", results), ("gpt", "done")))
    assert [message["content"] for message in found] == ["go", "I measure.", "one", "two", "done"]
    assert [call["function"]["arguments"]["n"] for call in json.loads(found[1]["tool_calls"])] == [0, 1]


def test_a_text_that_shows_a_call_and_has_no_result_stays_a_text() -> None:
    text = f"<tool_call>{json.dumps(CALL)}</tool_call>"
    assert said(openai(ASK, {**SAY, "content": text})) == [ASK, {**SAY, "content": text}]


def test_older_declarations_are_read() -> None:
    declared = {"name": "measure", "parameters": {"type": "object"}}
    assert read_conversation(openai(ASK, functions=[declared])) == read_conversation(openai(ASK, tools=[declared]))


@pytest.mark.parametrize("weight", [0, 0.0, False])
def test_an_answer_of_no_weight_is_marked(weight: object) -> None:
    assert said(openai(ASK, {**SAY, "weight": weight})) == [ASK, {**SAY, "weight": "0"}]
    assert said(openai(ASK, {**SAY, "weight": 1})) == said(openai(ASK, {**SAY, "weight": None})) == PLAIN


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        (openai(ASK, SAY, id=7, source=None, tags=[], meta={"a": 1}), {"id", "meta"}),
        (openai(ASK, SAY, turns=2, prompt="x"), {"turns", "prompt"}),
        (openai({**ASK, "name": "Ann", "refusal": None}, SAY), {"messages[].name"}),
        (openai(ASK, {**SAY, "weight": 0.5}), {"messages[].weight (neither 0 nor 1)"}),
        (sharegpt(("human", "a"), ("gpt", "b"), system="x", tool_choice="auto"), {"tool_choice"}),
        (openai(RULES, ASK, SAY, system="Use feet."), {"system"}),
        (openai(ASK, tools=[{"name": "a"}], functions=[{"name": "b"}]), {"functions"}),
        (
            openai({**ASK, "content": [{"type": "text", "text": "hi", "cache_control": {"type": "x"}}]}),
            {"messages[].content[].cache_control"},
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"chosen", "rejected"}),
        ({"instruction": "a", "output": "b", "text": "c"}, {"text"}),
    ],
)
def test_what_is_not_read_is_named(row: dict[str, Any], unread: set[str]) -> None:
    assert read_conversation(row).unread == unread


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"dialog": [], "text": "x"}, "text.*messages, conversations"),
        ({f"field {n}": 1 for n in range(20)}, "and 12 more"),
        (openai(ASK, {"role": "tool", "content": "9"}), "tool result without a tool call"),
        (openai(RULES, {"role": "developer", "content": "x"}, ASK), "system message after"),
        (sharegpt(("human", "a"), ("gpt", "<tool_call>{</tool_call>"), ("tool", "9")), "in the text is not valid JSON"),
        (sharegpt(("human", "a"), ("function_call", "no")), "not valid JSON"),
        (sharegpt(("human", "a"), ("gpt", "b"), system=[1]), "content is not a string"),
        ({"instruction": "a", "input": 3}, "input is not a string"),
        ({"instruction": "a", "output": ""}, "content is empty"),
        ({"instruction": "a", "history": [["b"]]}, "history"),
        (openai(ASK, functions={"a": 1}), "functions is not a list"),
    ],
)
def test_what_stays_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowRejected, match=reason):
        read_conversation(row)


def test_an_unknown_role_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RowRejected, match="unknown role 'critic'") as caught:
        read_conversation(openai({"role": "critic", "content": "x"}))
    assert all(role in str(caught.value.detail) for role in ROLES)
