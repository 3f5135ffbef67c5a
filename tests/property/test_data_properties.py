"""Properties of the data room: masks, conversations as a function of a set of rows, answers found in any text."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepspec.data.chat.formats import CHATML, GEMMA4
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.config import SPLITS, Config
from deepspec.data.conversations.build import write_conversations
from deepspec.data.conversations.decontamination import BenchmarkPrompt, Benchmarks
from deepspec.data.sources.forms import FORMS, ROLES, read_conversation
from deepspec.data.sources.parsing import prompt_hash
from deepspec.data.sources.rows import Message, RowRejected
from deepspec.data.tokens.encode import mask_to_runs, runs_to_mask
from tests.fixtures.chat_templates import readable_tokenizer

# Small pieces that templates, trimming and searching trip over, beside arbitrary text.
PIECES = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "assistant",
        "user",
        "\n",
        "\n\n",
        " ",
        "<think>",
        "hi",
        "é🌊",
    ]
)
CONTENTS = st.one_of(
    st.lists(PIECES, min_size=1, max_size=5).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12),
).filter(lambda text: bool(text.strip()))


_SAID = st.sampled_from(
    ["", "hi", '<tool_call>{"name": "a"}</tool_call>', "<tool_call>{</tool_call>", "<tool_response>x</tool_response>",
     "[]", '{"name": "a", "arguments": "{}"}', "\ud800", "\0"]
)  # fmt: skip
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _SAID,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "name", "arguments", "function", "id"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(list(ROLES)), "content": _SAID | _ANY},
    optional=dict.fromkeys(("from", "tool_calls", "function_call", "tool_call_id", "weight", "name", "other"), _ANY),
)
_COLUMN = {
    "messages": st.lists(_MESSAGE | _ANY, max_size=4),
    "texts": st.lists(_SAID, max_size=3) | _ANY,
    "text": _SAID | _ANY,
    "prompt": _SAID | st.lists(_MESSAGE, max_size=3),
}
_ROWS = st.sampled_from(FORMS).flatmap(
    lambda form: st.fixed_dictionaries(
        {form.column: _COLUMN[form.holds]}, optional=dict.fromkeys((*form.fields[1:], "other"), _ANY)
    )
)


@settings(deadline=None, max_examples=150)
@given(row=_ROWS | _ANY)
def test_a_row_is_a_conversation_or_is_refused(row: Any) -> None:
    """Whatever stands in it: no other error, and a conversation has texts only, which can be written."""
    try:
        found = read_conversation(row, thoughts=True)
    except RowRejected:
        return
    assert all(isinstance(text, str) and text.encode() is not None for one in found.messages for text in one.values())
    assert isinstance(row, dict)
    held = {name for name, value in row.items() if value not in (None, "", [], {})}
    read = {name for form in FORMS if form.column in row for name in form.fields}
    assert held - read <= found.unread


@given(st.lists(st.booleans(), max_size=200))
def test_runs_round_trip(values: list[bool]) -> None:
    mask = np.array(values, dtype=np.bool_)
    runs = mask_to_runs(mask)
    assert runs_to_mask(runs).tolist() == values
    assert int(runs.sum()) == len(values)
    assert all(runs[1:] > 0)  # only the first may be 0: the shortest form


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=2, max_size=5), system=st.none() | CONTENTS)
def test_answers_are_found_whatever_the_contents(tokenizer: Any, contents: list[str], system: str | None) -> None:
    """The supervised text is the template's own form of each answer, at the place where the template put it.

    The reference builds ChatML by hand, piece by piece, and so knows where each answer starts.
    """
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text, spans = "", []
    for index, message in enumerate(messages):
        text += f"<|im_start|>{message['role']}\n"
        content = message["content"]
        if message["role"] == "assistant":
            if index == len(messages) - 1:
                text += "<think>\n\n</think>\n\n"
                content = content.lstrip("\n")
            spans.append((len(text), len(text) + len(content) + len("<|im_end|>")))
        text += f"{content}<|im_end|>\n"
    rendered = Renderer(tokenizer, CHATML).render(messages, mask="serving")
    assert rendered.text == text
    assert list(rendered.spans) == spans


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tokenizers with the families' templates for thoughts and tools."""
    return {
        family: load_tokenizer(readable_tokenizer(tmp_path_factory.mktemp(family), family, ["a"]))
        for family in ("qwen3", "gemma4")
    }


# What a template trims is for other tests: here contents begin and end with a letter.
MARKED = st.lists(st.sampled_from(["<|im_end|>", "<turn|>", "<|tool_response>", "</tool_call>", "\n", " ", '"', "é"]))
ARGUMENTS = MARKED.map(lambda pieces: "x" + "".join(pieces) + "x")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.lists(ARGUMENTS, min_size=1, max_size=3), results=st.data(), answer=ARGUMENTS)
def test_calls_are_supervised_whatever_they_say(
    readable: dict[str, Any], arguments: list[str], results: st.DataObject, answer: str
) -> None:
    """Calls with their end, and the answer with its own, are supervised; the tools' results never are."""
    said = [results.draw(ARGUMENTS) for _ in arguments]
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": {"a": argument}}}
        for n, argument in enumerate(arguments)
    ]
    messages: list[Message] = [
        {"role": "user", "content": said[0]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps(calls)},
        *({"role": "tool", "content": text, "tool_call_id": f"call_{n}"} for n, text in enumerate(said)),
        {"role": "assistant", "content": answer},
    ]
    written = {
        "qwen3": "\n".join(
            '<tool_call>\n{"name": "f", "arguments": ' + json.dumps({"a": one}, ensure_ascii=False) + "}\n</tool_call>"
            for one in arguments
        )
        + "<|im_end|>",
        "gemma4": "".join(f'<|tool_call>call:f{{a:<|"|>{one}<|"|>}}<tool_call|>' for one in arguments)
        + "<|tool_response>",
    }
    for family, chat, end in (("qwen3", CHATML, "<|im_end|>"), ("gemma4", GEMMA4, "<turn|>")):
        found = Renderer(readable[family], chat).render(messages, mask="serving", tools="[]")
        assert [found.text[start:stop] for start, stop in found.spans] == [written[family], answer + end]


ROWS = st.lists(
    st.one_of(
        st.builds(lambda q, a: json.dumps({"turns": [q]} if a is None else {"messages": [
            {"role": "user", "content": q}, {"role": "assistant", "content": a}]}),
            st.sampled_from("abcdefgh"), st.none() | st.sampled_from("xyz")),
        st.sampled_from(["broken", "{}", '{"turns": [1]}']),
    ),
    max_size=40,
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(rows=ROWS, data=st.data(), max_rows=st.none() | st.integers(1, 20))
def test_conversations_are_a_function_of_the_set_of_rows(
    rows: list[str], data: st.DataObject, max_rows: int | None
) -> None:
    """Every row is accounted for, splits share no prompt, and order changes nothing but the quarantine."""
    rows = [json.dumps({"turns": ["always there"]}), *rows]
    config = Config.model_validate(
        {"source": "given", "max_quarantined_share": 1.0, "max_rows": max_rows,
         "splits": {"validation": 0, "calibration": 0, "gate": 0}}
    )  # fmt: skip
    excluded = frozenset([prompt_hash([{"role": "user", "content": "a"}])])
    benchmarks = Benchmarks([BenchmarkPrompt("b", 1, excluded)])
    outputs = []
    for order in (rows, data.draw(st.permutations(rows))):
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "rows.jsonl"), Path(folder, "out")
            out.mkdir()
            source.write_text("".join(row + "\n" for row in order))
            counts = write_conversations(config, [source], out, benchmarks=benchmarks)
            written = [row for split in SPLITS for row in pq.read_table(out / f"{split}.parquet").to_pylist()]
            outputs.append(((out / "train.parquet").read_bytes(), (out / "summary.json").read_bytes()))
    assert outputs[0] == outputs[1]
    parts = (
        "conversations",
        "duplicates",
        "near_duplicates",
        "excluded",
        "decontaminated",
        "left_out_by_max_rows",
        "quarantined",
    )
    assert counts["rows"] == len(rows) == sum(counts[part] for part in parts)
    assert counts["conversations"] == len(written) == len({row["id"] for row in written})
    assert not excluded & {row["prompt_id"] for row in written}
    assert max_rows is None or len(written) <= max_rows
