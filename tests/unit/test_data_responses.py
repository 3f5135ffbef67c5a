"""Answers: requests, seeds, turns, and an output that depends on prompts alone."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import deepspec.data.responses.regenerate
from deepspec.data.chat.formats import CHATML
from deepspec.data.chat.renderer import Renderer
from deepspec.data.config import SPLITS, Config
from deepspec.data.conversations.build import write_conversations
from deepspec.data.quarantine import TooManyQuarantined
from deepspec.data.responses.conversation import answer_seed
from deepspec.data.responses.regenerate import write_responses
from deepspec.data.responses.requests import Generate, GenerationRequest, GenerationResult, NextRequest
from deepspec.data.sources.parsing import prompt_hash
from deepspec.errors import DataError, DeepspecError
from tests.fixtures.refused import refused

NO_SPLITS = {"validation": 0, "calibration": 0, "gate": 0}
LIMITS = {"max_length_tokens": 120, "min_supervised_tokens": 2}


class Engine:
    """Answers by rule, last request first: counts, and the beginning of the request's seed."""

    def __init__(self, tokenizer: Any, answer: Callable[[GenerationRequest, str], str] | None = None) -> None:
        self.tokenizer = tokenizer
        self.calls: list[list[GenerationRequest]] = []
        self._answer = answer or (lambda request, prompt: f"answer {request.seed % 10_000}")

    def __call__(self, next_request: NextRequest) -> Iterator[GenerationResult]:
        while requests := list(iter(next_request, None)):
            self.calls.append(requests)
            for request in reversed(requests):
                text = self._answer(request, self.tokenizer.decode(request.prompt_ids)) + "<|im_end|>"
                ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
                cut = ids[: request.max_new_tokens]
                yield GenerationResult(request.id, cut, "stop" if cut == ids else "length")


def chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]}


def make(
    folder: Path, tokenizer: Any, rows: list[dict[str, Any]], generate: Generate | None, **fields: Any
) -> dict[str, Any]:
    """Conversations and responses of rows; returns the summary."""
    config = Config.model_validate({"source": "given", "splits": NO_SPLITS, **LIMITS, **fields})
    for name in ("conversations", "responses"):
        (folder / name).mkdir(parents=True)
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = config.source[0].model_copy(update={"path": str(source)})
    write_conversations(config, [entry], folder / "conversations")
    return write_responses(
        config, folder / "conversations", folder / "responses", generate=generate, tokenizer=tokenizer, chat=CHATML
    )


def table(folder: Path, name: str = "train") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "responses" / f"{name}.parquet").to_pylist()
    return rows


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "responses").iterdir() if file.is_file()}


def test_one_turn(tmp_path: Path, tokenizer: Any) -> None:
    engine = Engine(tokenizer, lambda request, prompt: "seven apples")
    summary = make(tmp_path, tokenizer, [chat("how many?", "old")], engine)
    (row,) = table(tmp_path)
    ((request,),) = engine.calls
    prompt = [{"role": "user", "content": "how many?"}]
    assert row["messages"] == [*prompt, {"role": "assistant", "content": "seven apples"}]
    assert tuple(row["prompt_ids"]) == request.prompt_ids == Renderer(tokenizer, CHATML).prompt_ids(prompt)
    assert tokenizer.decode(row["output_ids"]) == "seven apples<|im_end|>"
    assert (row["finish_reason"], row["prompt_id"]) == ("stop", prompt_hash(prompt))
    assert request.seed == answer_seed(0, row["prompt_id"], 0, 0)
    assert (summary["answers"], summary["truncated"], summary["output_tokens"]) == (1, 0, len(row["output_ids"]))
    assert set(files(tmp_path)) == {
        *(f"{split}.parquet" for split in SPLITS), "quarantine.parquet", "summary.json"
    }  # fmt: skip


def test_an_edited_answer_in_the_input_changes_no_byte(tmp_path: Path, tokenizer: Any) -> None:
    rows = [chat(f"question {n % 7}", f"answer {n}") for n in range(20)]
    make(tmp_path / "a", tokenizer, rows, Engine(tokenizer))
    edited = [chat(row["messages"][0]["content"], row["messages"][1]["content"] + " edited") for row in rows]
    make(tmp_path / "b", tokenizer, edited[::-1], Engine(tokenizer))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_answers_of_equal_prompts_from_several_sources_do_not_show(tmp_path: Path, tokenizer: Any) -> None:
    config = Config.model_validate({"source": "given", "splits": NO_SPLITS, **LIMITS})
    written = []
    for name, answers in (("a", ("one", "two")), ("b", ("two", "one"))):
        folder = tmp_path / name
        for part in ("conversations", "responses"):
            (folder / part).mkdir(parents=True)
        for source, answer in zip(("x.jsonl", "y.jsonl"), answers, strict=True):
            (folder / source).write_text(json.dumps(chat("hi", answer)) + "\n")
        write_conversations(config, [folder / "x.jsonl", folder / "y.jsonl"], folder / "conversations")
        write_responses(
            config, folder / "conversations", folder / "responses",
            generate=Engine(tokenizer), tokenizer=tokenizer, chat=CHATML,
        )  # fmt: skip
        written.append(files(folder))
    assert written[0] == written[1]


def test_equal_prompts_are_answered_with_seeds_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    engine = Engine(tokenizer)
    make(tmp_path, tokenizer, [chat("hi", str(n)) for n in range(5)], engine)
    rows = table(tmp_path)
    assert len({request.seed for request in engine.calls[0]}) == 5
    assert len({row["id"] for row in rows}) == 5
    assert {row["prompt_id"] for row in rows} == {prompt_hash(chat("hi")["messages"])}


def test_rows_stand_sorted_however_they_complete(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat(f"question {n}") for n in range(30)]
    make(tmp_path / "whole", tokenizer, rows, Engine(tokenizer))
    prompts = [row["prompt_id"] for row in table(tmp_path / "whole")]
    assert prompts == sorted(prompts)
    monkeypatch.setattr(deepspec.data.responses.regenerate, "_CHUNK_ROWS", 7)
    engine = Engine(tokenizer)
    make(tmp_path / "chunks", tokenizer, rows, engine)
    assert [len(call) for call in engine.calls] == [7, 7, 7, 7, 2]
    assert files(tmp_path / "chunks") == files(tmp_path / "whole")


@pytest.mark.parametrize("seed", range(4))
def test_answers_one_by_one_in_any_order_change_no_byte(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rows = [{"turns": [f"question {n}", "more?", "and more?"][: 1 + n % 3]} for n in range(30)]
    make(tmp_path / "batches", tokenizer, rows, Engine(tokenizer))
    monkeypatch.setattr(deepspec.data.responses.regenerate, "_CHUNK_ROWS", 5)
    engine, drawn, most = Engine(tokenizer), random.Random(seed), 0

    def generate(next_request: NextRequest) -> Iterator[GenerationResult]:
        nonlocal most
        under_way: list[GenerationRequest] = []
        while True:
            while len(under_way) < 8 and (request := next_request()) is not None:
                under_way.append(request)
            if not under_way:
                return
            most = max(most, len(under_way))
            chosen = iter([under_way.pop(drawn.randrange(len(under_way)))])
            yield from engine(lambda chosen=chosen: next(chosen, None))

    make(tmp_path / "one", tokenizer, rows, generate)
    assert files(tmp_path / "one") == files(tmp_path / "batches")
    assert most == 5  # never more than the window


def test_all_splits_are_answered_together(tmp_path: Path, tokenizer: Any) -> None:
    engine = Engine(tokenizer)
    shares = {"validation": 0.2, "calibration": 0.2, "gate": 0.2}
    summary = make(tmp_path, tokenizer, [chat(f"question {n}") for n in range(60)], engine, splits=shares)
    assert [len(call) for call in engine.calls] == [60]
    assert {split: len(table(tmp_path, split)) for split in SPLITS} == summary["splits"]
    assert sum(summary["splits"].values()) == 60
    assert all(summary["splits"].values())


def test_turn_by_turn(tmp_path: Path, tokenizer: Any) -> None:
    def answer(request: GenerationRequest, prompt: str) -> str:
        return f"reply {prompt.count('user')}"

    engine = Engine(tokenizer, answer)
    summary = make(tmp_path, tokenizer, [{"turns": ["one", "two"]}, chat("three", "old")], engine)
    assert [len(call) for call in engine.calls] == [2, 1]
    by_length = {len(row["messages"]): row for row in table(tmp_path)}
    assert [message["content"] for message in by_length[4]["messages"]] == ["one", "reply 1", "two", "reply 2"]
    assert (by_length[4]["prompt_ids"], by_length[4]["output_ids"]) == (None, None)
    assert by_length[2]["output_ids"] is not None
    second = engine.calls[1][0]
    asked = Renderer(tokenizer, CHATML).prompt_ids(by_length[4]["messages"][:3])
    assert second.prompt_ids == asked
    assert second.seed not in {request.seed for request in engine.calls[0]}
    assert (summary["answers"], summary["turns_left_out"]) == (3, 0)


@pytest.mark.parametrize(("first", "reason", "contents"), [("x" * 200, "length", None), (" ", "stop", ["one", " "])])
def test_a_conversation_ends_with_an_answer_that_is_cut_off_or_empty(
    tmp_path: Path, tokenizer: Any, first: str, reason: str, contents: list[str] | None
) -> None:
    engine = Engine(tokenizer, lambda request, prompt: first)
    summary = make(tmp_path, tokenizer, [{"turns": ["one", "two"]}], engine, responses={"max_new_tokens": 9})
    (row,) = table(tmp_path)
    assert len(engine.calls) == 1
    assert (row["finish_reason"], len(row["messages"])) == (reason, 2)
    assert contents is None or [message["content"] for message in row["messages"]] == contents
    assert row["output_ids"] is not None
    assert (summary["turns_left_out"], summary["truncated"]) == (1, int(reason == "length"))


def test_a_prompt_that_leaves_no_room_is_quarantined(tmp_path: Path, tokenizer: Any) -> None:
    rows = [chat("word " * 100), *(chat(f"question {n}") for n in range(9))]
    summary = make(tmp_path, tokenizer, rows, Engine(tokenizer), max_quarantined_share=0.1)
    (bad,) = table(tmp_path, "quarantine")
    assert bad["reason"] == "prompt leaves no room for an answer within data.max_length_tokens"
    assert bad["source"] == "rows.jsonl"
    assert bad["row"] == 1
    assert bad["excerpt"].startswith("[")
    assert (summary["quarantined"], summary["conversations"]) == (1, 9)
    with refused(TooManyQuarantined, "1 of 10 rows", "prompt leaves no room"):
        make(tmp_path / "strict", tokenizer, rows, Engine(tokenizer), max_quarantined_share=0.05)
    assert len(table(tmp_path / "strict", "quarantine")) == 1


@pytest.mark.parametrize(("room", "is_answered"), [(2, True), (1, False)])
def test_the_least_room_is_what_must_be_supervised(
    tmp_path: Path, tokenizer: Any, room: int, is_answered: bool
) -> None:
    prompt_ids = Renderer(tokenizer, CHATML).prompt_ids(chat("word word")["messages"])
    limits = {"max_length_tokens": len(prompt_ids) + room, "min_supervised_tokens": 2, "max_quarantined_share": 0.5}
    make(tmp_path, tokenizer, [chat("word word"), chat("hi")], Engine(tokenizer), **limits)
    assert len(table(tmp_path)) == 1 + is_answered
    assert len(table(tmp_path, "quarantine")) == 1 - is_answered


def test_a_later_turn_without_room_ends_the_conversation(tmp_path: Path, tokenizer: Any) -> None:
    summary = make(tmp_path, tokenizer, [{"turns": ["one", "word " * 100]}], Engine(tokenizer))
    (row,) = table(tmp_path)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["output_ids"] is not None
    assert (summary["turns_left_out"], summary["quarantined"]) == (1, 0)


def test_an_answer_gets_no_more_room_than_the_row_has(tmp_path: Path, tokenizer: Any) -> None:
    engine = Engine(tokenizer)
    make(tmp_path, tokenizer, [chat("hi")], engine)
    (request,) = engine.calls[0]
    assert request.max_new_tokens == 120 - len(request.prompt_ids)


def test_system_messages_are_kept(tmp_path: Path, tokenizer: Any) -> None:
    make(tmp_path, tokenizer, [{"turns": ["one", "two"]}], Engine(tokenizer), system_prompt="Be kind.")
    assert [message["role"] for message in table(tmp_path)[0]["messages"]] == [
        "system", "user", "assistant", "user", "assistant"
    ]  # fmt: skip


def test_kept_answers(tmp_path: Path, tokenizer: Any) -> None:
    rows = [chat("hi", "ho"), chat("one", "two", "three"), {"turns": ["alone"]}]
    summary = make(tmp_path, tokenizer, rows, None, responses={"mode": "keep"}, max_quarantined_share=0.5)
    written = {len(row["messages"]): row for row in table(tmp_path)}
    assert [message["content"] for message in written[2]["messages"]] == ["hi", "ho"]
    assert set(written) == {2, 3}
    assert all(row[name] is None for row in written.values() for name in ("prompt_ids", "output_ids", "finish_reason"))
    (bad,) = table(tmp_path, "quarantine")
    assert (bad["reason"], bad["excerpt"]) == ("no answer to keep (data.responses.mode is keep)", "alone")
    assert (summary["mode"], summary["answers"], summary["quarantined"]) == ("keep", 0, 1)


ADD = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
LONG = {"max_length_tokens": 400}


def thought(content: str, reasoning: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


def test_a_target_that_thinks_is_asked_openly_and_its_thought_is_told_apart(tmp_path: Path, tokenizer: Any) -> None:
    engine = Engine(tokenizer, lambda request, prompt: "<think>\nwell\n</think>\n\nMira")
    make(tmp_path, tokenizer, [{"turns": ["one", "two"]}, chat("hi", "ho")], engine, thinking="on", **LONG)
    assert all(tokenizer.decode(one.prompt_ids).endswith("assistant\n") for call in engine.calls for one in call)
    by_length = {len(row["messages"]): row for row in table(tmp_path)}
    for answer in by_length[4]["messages"][1::2]:
        assert (answer["content"], answer["reasoning_content"]) == ("Mira", "well")
    # Of the last turn: what the target read then has no thought of the turn before.
    read = tokenizer.decode(by_length[4]["prompt_ids"])
    assert "well" not in read
    assert read.count("Mira") == 1
    assert tokenizer.decode(by_length[4]["output_ids"]) == "<think>\nwell\n</think>\n\nMira<|im_end|>"


def test_a_thought_that_is_cut_off_ends_the_conversation(tmp_path: Path, tokenizer: Any) -> None:
    engine = Engine(tokenizer, lambda request, prompt: "<think>\n" + "apples " * 50)
    rows = [{"turns": ["one", "two"]}]
    summary = make(tmp_path, tokenizer, rows, engine, thinking="on", responses={"max_new_tokens": 9}, **LONG)
    (row,) = table(tmp_path)
    assert (row["messages"][1]["content"], row["finish_reason"]) == ("", "length")
    assert row["messages"][1]["reasoning_content"].startswith("apples")
    assert (summary["turns_left_out"], summary["truncated"]) == (1, 1)


def test_thinking_is_kept_where_a_row_has_thoughts(tmp_path: Path, tokenizer: Any) -> None:
    with_thought = {"messages": [{"role": "user", "content": "one"}, thought("old", "hm")]}
    engine = Engine(tokenizer)
    make(tmp_path, tokenizer, [with_thought, chat("two", "old")], engine, thinking="keep")
    prompts = [tokenizer.decode(request.prompt_ids) for request in engine.calls[0]]
    assert {("one" in prompt, prompt.endswith("</think>\n\n")) for prompt in prompts} == {(True, False), (False, True)}


def test_an_answer_that_calls_a_tool_is_the_last(tmp_path: Path, tokenizer: Any) -> None:
    called = '<tool_call>\n{"name": "add"}\n</tool_call>'
    engine = Engine(tokenizer, lambda request, prompt: called if "two" in prompt else "plain")
    rows = [{"messages": chat("one", "a", "two", "b", "three", "c")["messages"], "tools": TOOLS}]
    summary = make(tmp_path, tokenizer, rows, engine, **LONG)
    (row,) = table(tmp_path)
    assert [message["content"] for message in row["messages"]] == ["one", "plain", "two", called]
    assert json.loads(row["tools"]) == TOOLS
    assert (summary["answers"], summary["turns_left_out"]) == (2, 1)


def test_turns_behind_a_tool_result_are_not_asked(tmp_path: Path, tokenizer: Any) -> None:
    used = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [ADD]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "sure?"},
    ]
    engine = Engine(tokenizer)
    summary = make(tmp_path / "a", tokenizer, [{"messages": used, "tools": TOOLS}], engine, **LONG)
    (row,) = table(tmp_path / "a")
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["output_ids"] is not None
    assert (len(engine.calls), summary["turns_left_out"]) == (1, 1)
    make(tmp_path / "b", tokenizer, [{"messages": used, "tools": TOOLS}], None, responses={"mode": "keep"})
    (row,) = table(tmp_path / "b")
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant", "user"]


def test_a_split_that_is_lost_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    with refused(DataError, "1 rows", "split train"):
        make(tmp_path, tokenizer, [{"turns": ["alone"]}], None, responses={"mode": "keep"}, max_quarantined_share=1.0)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda results: results[1:], "1 prompts"),
        (lambda results: [*results, results[0]], "twice"),
        (lambda results: [GenerationResult("other", (1,), "stop"), *results], "twice"),
    ],
)
def test_an_engine_that_answers_wrongly_is_found_out(
    tmp_path: Path, tokenizer: Any, spoil: Callable[[list[GenerationResult]], list[GenerationResult]], word: str
) -> None:
    engine = Engine(tokenizer)
    with pytest.raises(DeepspecError, match=word):
        make(tmp_path, tokenizer, [chat(str(n)) for n in range(3)], lambda r: iter(spoil(list(engine(r)))))


def test_generate_is_needed(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="generate is needed"):
        make(tmp_path, tokenizer, [chat("hi")], None)


def test_seeds() -> None:
    values = {
        answer_seed(seed, prompt, index, turn)
        for seed in (0, 1)
        for prompt in "ab"
        for index in (0, 1)
        for turn in (0, 1)
    }
    assert len(values) == 16
    assert all(0 <= value < 2**63 for value in values)
    assert answer_seed(0, "prompt", 0, 0) == 4901435874503196829  # the same on every machine and in every version


def served(model: str | None, *contents: str) -> dict[str, Any]:
    return {**chat(*contents), **({} if model is None else {"model": model})}


def test_answers_that_the_target_has_served_are_kept_and_the_others_given_anew(tmp_path: Path, tokenizer: Any) -> None:
    """Of a kept one only the last answer is supervised: who gave those before it the log does not say."""
    rows = [
        served("our-8b", "one", "said", "two", "served"),
        served("another", "three", "foreign"),
        served(None, "four"),
        served("our-8b", "five", "served too"),
    ]
    fields = {"source": {"path": "{date}", "traffic": {"days": 1, "consent_field": None}}}
    wanted = {"mode": "served", "served_by": "our-8b"}
    found = make(tmp_path, tokenizer, rows, Engine(tokenizer), responses=wanted, **fields)
    assert found["served"] == {"kept": 2, "of_other_models": 1, "unanswered": 1}
    by_prompt = {row["messages"][0]["content"]: row for row in table(tmp_path)}
    assert [one["content"] for one in by_prompt["one"]["messages"]] == ["one", "said", "two", "served"]
    assert [one["weight"] for one in by_prompt["one"]["messages"]] == [None, "0", None, None]
    assert by_prompt["five"]["output_ids"] is None
    assert [row["messages"][1]["content"][:7] for row in (by_prompt["three"], by_prompt["four"])] == ["answer "] * 2
    assert by_prompt["three"]["output_ids"] is not None


def test_a_log_of_another_target_has_no_answer_to_keep(tmp_path: Path, tokenizer: Any) -> None:
    fields = {"source": {"path": "{date}", "traffic": {"days": 1, "consent_field": None}}}
    wanted = {"mode": "served", "served_by": ["our-8b", "our-8b-fp8"]}
    with refused(DataError, "our-8b or our-8b-fp8", where="data.responses.served_by"):
        make(tmp_path, tokenizer, [served("another", "one", "two")], Engine(tokenizer), responses=wanted, **fields)
    for wrong in ({"mode": "served"}, {"served_by": "our-8b"}):
        with pytest.raises(ValueError, match="served_by"):
            Config.model_validate({"source": "given", "responses": wrong})
