"""Benchmarks: reading, holding out, choosing, encoding, and what is said of bad rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.conversations.decontamination import Benchmarks
from deepspec.data.sources.rows import Message, RowRejected
from deepspec.errors import DataError
from deepspec.evaluation.config import Benchmark, Config
from deepspec.evaluation.prompts.selection import (
    encode,
    held_out,
    held_out_prompts,
    read_benchmark,
    select,
    select_split,
)
from tests.fixtures.refused import refused


class Letters:
    """Renders one token per character, and one for the answer to come."""

    def prompt_ids(self, messages: Sequence[Message], **_: Any) -> tuple[int, ...]:
        if "refused" in messages[-1]["content"]:
            raise RowRejected("the chat template refuses the conversation")
        return (*(ord(letter) for message in messages for letter in message["content"]), 0)


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows: list[object] = [{"turns": [f"question {index}", "and then?"]} for index in range(200)]
    return write_lines(tmp_path / "questions.jsonl", rows)


def test_rows_in_either_layout(tmp_path: Path) -> None:
    rows = [
        {"turns": ["one", "two"]},
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "three"}]},
    ]
    prompts = read_benchmark("b", str(write_lines(tmp_path / "b.jsonl", rows)))
    assert [message["content"] for message in prompts[0].messages] == ["one"]
    assert [message["content"] for message in prompts[1].messages] == ["be brief", "three"]
    assert prompts[0].place.endswith("b.jsonl:1")


def test_parquet_gives_the_same_prompts(tmp_path: Path, questions: Path) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    by_lines, by_columns = read_benchmark("b", str(questions)), read_benchmark("b", str(tmp_path / "questions.parquet"))
    assert [prompt.id for prompt in by_lines] == [prompt.id for prompt in by_columns]


def test_equal_questions_are_one_prompt(tmp_path: Path) -> None:
    rows = [{"turns": ["same", "x"]}, {"turns": ["same"]}, {"turns": ["other"]}]
    assert len(read_benchmark("b", str(write_lines(tmp_path / "b.jsonl", rows)))) == 2


def test_a_system_prompt_stands_before_rows_without_one(questions: Path) -> None:
    prompt = read_benchmark("b", str(questions), system_prompt="be kind")[0]
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert prompt.id == read_benchmark("b", str(questions))[0].id


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"turns": ["a"]', "malformed JSON"),
        ('{"question": "a"}', "row has the fields question"),
        ('{"turns": []}', "row without messages"),
        ('{"turns": [3]}', "content is not a string"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "starts with the assistant"),
    ],
)
def test_a_malformed_row_names_benchmark_and_row(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "math.jsonl"
    path.write_text('{"turns": ["fine"]}\n' + line + "\n")
    with refused(DataError, named, where=f"benchmark math, {path}:2"):
        read_benchmark("math", str(path))


def test_an_empty_benchmark_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [])
    with refused(DataError, "empty", where=f"benchmark b, {path}"):
        read_benchmark("b", str(path))
    with refused(DataError, "file", where="missing.jsonl"):
        read_benchmark("b", str(tmp_path / "missing.jsonl"))


def test_the_share_is_decided_by_content(tmp_path: Path, questions: Path) -> None:
    half = Benchmark(path=str(questions), share=0.5)
    prompts = read_benchmark("b", half.path)
    kept = {prompt.id for prompt in held_out(prompts, "b", half, 0)}
    assert 70 < len(kept) < 130
    assert {prompt.id for prompt in held_out(prompts[:50], "b", half, 0)} == {p.id for p in prompts[:50]} & kept
    assert {prompt.id for prompt in held_out(prompts, "b", half, 1)} != kept
    with refused(DataError, "share", where="benchmark b"):
        held_out(prompts[:1], "b", Benchmark(path="x", share=1e-9), 0)


def test_evaluating_fewer_prompts_changes_nothing_in_training(questions: Path) -> None:
    all_of_it = Config(benchmarks={"b": Benchmark(path=str(questions), share=0.5)})
    few = Config(benchmarks={"b": Benchmark(path=str(questions), share=0.5, num_prompts=5)})
    assert held_out_prompts(all_of_it) == held_out_prompts(few)
    chosen = select("b", few.benchmarks["b"], seed=0)
    assert [prompt.id for prompt in chosen] == [p.id for p in select("b", all_of_it.benchmarks["b"], seed=0)][:5]
    assert len(chosen) == 5


def test_held_out_questions_are_recognised_in_conversations(questions: Path) -> None:
    config = Config(benchmarks={"b": Benchmark(path=str(questions), share=0.5)})
    benchmarks = Benchmarks(held_out_prompts(config))
    held = {prompt.messages[-1]["content"] for prompt in select("b", config.benchmarks["b"], seed=config.seed)}
    for index in range(200):
        asked: list[Message] = [{"role": "user", "content": f"question {index}"}]
        going_on: list[Message] = [
            *asked,
            {"role": "assistant", "content": "…"},
            {"role": "user", "content": "something else"},
        ]
        for conversation in (asked, going_on):
            found = benchmarks.find(conversation)
            assert (found is not None) == (f"question {index}" in held)
    whole: list[Message] = [{"role": "user", "content": text} for text in ("question 0", "and then?")]
    assert (benchmarks.find(whole) is not None) == ("question 0" in held)


def test_split_prompts_are_different_ones(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{index % 7}"}, {"role": "assistant", "content": f"a{index}"}]}
        for index in range(20)
    ]
    file = tmp_path / "gate.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    prompts = select_split(file, num_prompts=5, seed=0)
    assert len({prompt.id for prompt in prompts}) == 5
    assert prompts == select_split(file, num_prompts=100, seed=0)[:5]
    assert len(select_split(file, num_prompts=100, seed=0)) == 7
    assert select_split(file, num_prompts=100, seed=1) != select_split(file, num_prompts=100, seed=0)
    pq.write_table(pa.Table.from_pylist(rows[:0], schema=pa.Table.from_pylist(rows).schema), file)
    with refused(DataError, "split gate", where="data.splits.gate"):
        select_split(file, num_prompts=5, seed=0)


def test_prompts_that_do_not_fit_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    rows = [{"turns": ["x" * length]} for length in (5, 30, 6, 7)]
    prompts = read_benchmark("b", str(write_lines(tmp_path / "b.jsonl", rows)))
    encoded = encode("b", prompts, Letters(), context=31, max_skipped_share=0.25)
    assert [len(prompt.prompt_ids) for prompt in encoded.prompts] == [6, 7, 8]
    assert [lost.reason for lost in encoded.skipped] == ["31 tokens, but the target's context holds 31"]
    with refused(DataError, "1 of 4 prompts", where="benchmark b"):
        encode("b", prompts, Letters(), context=31, max_skipped_share=0.24)
    with refused(DataError, "4 of 4 prompts", where="benchmark b"):
        encode("b", prompts, Letters(), context=2, max_skipped_share=1.0)


def test_a_prompt_that_the_template_refuses_names_its_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [{"turns": ["ok"]}, {"turns": ["refused"]}])
    prompts = read_benchmark("b", str(path))
    with refused(DataError, "template", where=f"benchmark b, {path}:2"):
        encode("b", prompts, Letters(), context=100, max_skipped_share=0.5)
