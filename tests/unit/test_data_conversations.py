"""From rows to conversations: validation, quarantine, duplicates, benchmark prompts, splits, sampling."""

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deepspec.data.config import SPLITS, Config
from deepspec.data.conversations.build import write_conversations
from deepspec.data.conversations.decontamination import NO_BENCHMARKS, BenchmarkPrompt, Benchmarks
from deepspec.data.conversations.splits import split_of
from deepspec.data.provenance import Positions
from deepspec.data.quarantine import TooManyQuarantined
from deepspec.data.sources.parsing import conversation_hash, parse_row, prompt_hash, prompt_hashes
from deepspec.data.sources.rows import Position, RowRejected
from deepspec.errors import DataError
from tests.fixtures.refused import refused

NO_SPLITS = {"validation": 0, "calibration": 0, "gate": 0}


def chat(*contents: str) -> dict[str, Any]:
    """An OpenAI row, user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]}


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def make(
    tmp_path: Path, rows: list[Any], *, name: str = "out", benchmarks: Benchmarks = NO_BENCHMARKS, **fields: Any
) -> Path:
    """Write rows to a file and make conversations of them; returns the folder."""
    config = Config.model_validate({"source": "given", "splits": NO_SPLITS, **fields})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / name
    out.mkdir()
    write_conversations(config, [source], out, benchmarks=benchmarks)
    return out


def holding_out(*rows: dict[str, Any], num_words: int | None = None) -> Benchmarks:
    """A benchmark of these rows."""
    prompts = []
    for number, row in enumerate(rows, start=1):
        messages = parse_row(row, max_row_bytes=10_000)
        turns = tuple(message["content"] for message in messages if message["role"] == "user")
        prompts.append(BenchmarkPrompt("b", number, prompt_hashes(messages), turns))
    return Benchmarks(prompts, num_words=num_words)


def table(out: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / f"{name}.parquet").to_pylist()
    return rows


def summary(out: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return counts


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "id": 7},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"messages": None, "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {
            "messages": [
                {"role": "user", "content": "hi", "from": None, "value": None},
                {"role": None, "content": None, "from": "gpt", "value": "ho"},
            ]
        },
    ],
)
def test_the_forms_a_row_may_have(row: dict[str, Any]) -> None:
    assert parse_row(row, max_row_bytes=100) == chat("hi", "ho")["messages"]


def test_turns_hold_user_messages_only() -> None:
    users = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert parse_row({"turns": ["one", "two"]}, max_row_bytes=100) == users


def test_system_prompt_is_put_before_conversations_that_have_none() -> None:
    given = parse_row(chat("hi"), max_row_bytes=100, system_prompt="Be kind.")
    assert given == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    own = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]}
    assert parse_row(own, max_row_bytes=100, system_prompt="Be kind.") == own["messages"]


TURNS = chat("a", "b")["messages"]
BAD_ROWS: list[tuple[Any, str]] = [
    ("not json", "malformed JSON"),
    ([1], "row is not an object"),
    ("null", "row is not an object"),
    ({}, "row without messages"),
    ({"messages": None}, "row without messages"),
    ({"messages": []}, "row without messages"),
    ({"turns": []}, "row without messages"),
    ({"messages": "hi"}, "messages is not a list"),
    ({"conversations": {"from": ["human"]}}, "conversations is not a list"),
    ({"messages": ["hi"]}, "message is not an object"),
    ({"messages": [{"content": "hi"}]}, "message without a role"),
    ({"messages": [{"role": 3, "content": "hi"}]}, "message without a role"),
    ({"messages": [{"role": "critic", "content": "hi"}]}, "unknown role 'critic'"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "tool result without a tool call"),
    ({"messages": [{"role": "user"}]}, "content is not a string"),
    ({"messages": [{"role": "user", "content": None}]}, "content is not a string"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content is not a string"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "content has a part of the type 'image_url', not text",
    ),
    (
        {"question": "hi", "answer": "ho"},
        "row has the fields answer, question, but none of messages, conversations, turns, instruction, prompt",
    ),
    ({"turns": [3]}, "content is not a string"),
    ({"messages": [{"role": "user", "content": ""}]}, "content is empty"),
    ({"turns": ["hi", " \n\t"]}, "content is empty"),
    (chat("hi", ""), "content is empty"),
    (chat("a\0b"), "content holds a NUL character"),
    ('{"turns": ["\\ud800"]}', "content is not valid Unicode"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, "conversation starts with the assistant"),
    (
        {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "hi"}]},
        "conversation starts with the assistant",
    ),
    ({"messages": [{"role": "system", "content": "s"}]}, "conversation without a user message"),
    ({"messages": [*TURNS, {"role": "system", "content": "s"}]}, "system message after the first message"),
    ({"messages": [{"role": "user", "content": "a"}] * 2}, "two user messages in a row"),
    ({"messages": [*TURNS, {"role": "assistant", "content": "c"}]}, "two assistant messages in a row"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [{}]}]},
        "tool call without a name",
    ),
    (chat("x" * 3000), "longer than data.max_row_bytes"),
]


def test_bad_rows_are_quarantined_with_position_and_reason(tmp_path: Path) -> None:
    rows = [chat("hi", "ho"), *(row for row, _ in BAD_ROWS)]
    out = make(tmp_path, rows, max_quarantined_share=1.0, max_row_bytes=2000)
    found = [(row["source"], row["row"], row["reason"]) for row in table(out, "quarantine")]
    assert found == [("rows.jsonl", number, reason) for number, (_, reason) in enumerate(BAD_ROWS, start=2)]
    assert all(row["excerpt"].isprintable() and len(row["excerpt"]) < 400 for row in table(out, "quarantine"))
    counts = summary(out)
    assert (counts["rows"], counts["quarantined"], counts["conversations"]) == (len(rows), len(BAD_ROWS), 1)
    assert sum(counts["quarantine_reasons"].values()) == len(BAD_ROWS)


def test_contents_longer_than_a_row_may_be_are_refused_in_any_format() -> None:
    assert parse_row({"turns": ["é" * 5]}, max_row_bytes=10)
    with pytest.raises(RowRejected, match=r"longer than data\.max_row_bytes"):
        parse_row({"turns": ["é" * 5, "x"]}, max_row_bytes=10)


def test_row_nested_too_deep_to_be_shown(tmp_path: Path) -> None:
    depth = 900
    out = make(tmp_path, [chat("hi"), '{"x": ' + "[" * depth + "]" * depth + "}"], max_quarantined_share=1.0)
    assert [row["row"] for row in table(out, "quarantine")] == [2]


def test_too_many_bad_rows_fail_the_stage_and_are_written_all_the_same(tmp_path: Path) -> None:
    bad: list[Any] = ["no"] * 3 + [{}] * 4 + [chat("")] * 2 + [{"turns": [1]}]
    with pytest.raises(TooManyQuarantined) as caught:
        make(tmp_path, [chat(str(n)) for n in range(89)] + bad, max_quarantined_share=0.1)
    text = str(caught.value)
    assert "10 of 99 rows (10.10%)" in text
    assert "allows 10.00%" in text
    assert "row without messages (4), malformed JSON (3), content is empty (2)" in text
    assert "content is not a string" not in text
    assert f"{tmp_path}/rows.jsonl:90 (malformed JSON)" in text
    assert "data.max_quarantined_share" in text
    assert caught.value.exit_code == 2
    written = pq.read_table(caught.value.quarantine_path).to_pylist()
    assert [row["row"] for row in written] == list(range(90, 100))
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own error, as it travels between processes
    assert (str(again), again.samples, again.reasons) == (text, caught.value.samples, caught.value.reasons)


def test_exactly_the_allowed_share_passes(tmp_path: Path) -> None:
    out = make(tmp_path, [chat(str(n)) for n in range(90)] + ["no"] * 10, max_quarantined_share=0.1)
    assert summary(out)["quarantined"] == 10


def test_no_rows_at_all(tmp_path: Path) -> None:
    with refused(DataError, "row", where="rows.jsonl"):
        make(tmp_path, [])


def test_nothing_but_the_result_is_left_behind(tmp_path: Path) -> None:
    out = make(tmp_path, [chat("hi")])
    assert {file.name for file in out.iterdir()} == {
        *(f"{split}.parquet" for split in SPLITS),
        "quarantine.parquet",
        "summary.json",
        "about",
    }


def test_columns_and_hashes(tmp_path: Path) -> None:
    row = chat("hi", "ho", "and?", "so")
    (written,) = table(make(tmp_path, [row]), "train")
    assert written == {
        "id": conversation_hash(row["messages"]),
        "prompt_id": prompt_hash(row["messages"]),
        "messages": row["messages"],
    }
    assert len(written["id"]) == 32
    assert prompt_hash(row["messages"]) == prompt_hash(parse_row({"turns": ["hi", "and?"]}, max_row_bytes=99))
    assert prompt_hash(row["messages"]) != prompt_hash(chat("hi", "ho")["messages"])
    # Contents cannot run into each other.
    assert prompt_hash(parse_row({"turns": ["a", "b"]}, max_row_bytes=99)) != prompt_hash(
        parse_row({"turns": ["ab"]}, max_row_bytes=99)
    )


def test_exact_duplicates_are_counted_and_several_answers_stay(tmp_path: Path) -> None:
    rows = [chat("hi", "one"), chat("hi", "two"), chat("hi", "one"), {"turns": ["hi"]}, chat("hi", "one ")]
    out = make(tmp_path, rows)
    assert sorted(row["messages"][-1]["content"] for row in table(out, "train")) == ["hi", "one", "one ", "two"]
    counts = summary(out)
    assert (counts["duplicates"], counts["conversations"], counts["prompts"]) == (1, 4, 1)


def test_benchmark_prompts_are_excluded(tmp_path: Path) -> None:
    system = {"role": "system", "content": "s"}
    rows = [
        chat("secret", "x"),
        {"messages": [system, *chat("secret", "y")["messages"]]},
        chat("secret", "x", "more"),
        chat("open", "x", "Secret! "),
        chat("two", "x", "turns", "y"),
        chat("two", "x"),
        chat("open", "x", "turns"),
    ]
    benchmark = [{"turns": ["secret"]}, {"turns": ["two", "turns"]}]
    out = make(tmp_path, rows, benchmarks=holding_out(*benchmark))
    assert [row["messages"][-1]["content"] for row in table(out, "train")] == ["turns"]
    assert summary(out)["excluded"] == 6


def test_splits_are_disjoint_by_prompt_and_as_large_as_asked(tmp_path: Path) -> None:
    shares = {"validation": 0.1, "calibration": 0.2, "gate": 0.05}
    rows = [chat(f"prompt {n // 2}", f"answer {n}") for n in range(4000)]
    out = make(tmp_path, rows, splits=shares, seed=3)
    prompts = {split: {row["prompt_id"] for row in table(out, split)} for split in SPLITS}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 2000
    for split, share in shares.items():
        # Five standard deviations of a binomial count.
        assert abs(len(prompts[split]) - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    config = Config.model_validate({"source": "x", "seed": 3, "splits": shares})
    assert all(split_of(prompt, config) == split for split in SPLITS for prompt in prompts[split])


def test_a_prompt_stays_in_its_split_whatever_else_is_there(tmp_path: Path) -> None:
    shares = {"validation": 0.2, "calibration": 0.2, "gate": 0.2}
    few = make(tmp_path, [chat(str(n)) for n in range(100)], name="few", splits=shares)
    many = make(tmp_path, [chat(str(n)) for n in range(300)], name="many", splits=shares)
    for split in SPLITS:
        assert {row["id"] for row in table(few, split)} <= {row["id"] for row in table(many, split)}


def test_the_seed_changes_the_splits(tmp_path: Path) -> None:
    shares = {"validation": 0.2, "calibration": 0.2, "gate": 0.2}
    rows = [chat(str(n)) for n in range(100)]
    outs = [make(tmp_path, rows, name=str(seed), splits=shares, seed=seed) for seed in (0, 1)]
    gates = [{row["id"] for row in table(out, "gate")} for out in outs]
    assert gates[0] != gates[1]


def test_an_empty_split_is_an_error_that_names_its_field(tmp_path: Path) -> None:
    with refused(DataError, "split validation", where="data.splits.validation"):
        make(tmp_path, [chat("hi")], splits={"validation": 0.001, "calibration": 0, "gate": 0})


def test_everything_excluded(tmp_path: Path) -> None:
    with refused(DataError, "none of 0", "split train", where="data.source"):
        make(
            tmp_path,
            [chat("hi")],
            benchmarks=holding_out(chat("hi")),
        )


def test_max_rows_is_a_sample_by_prompt(tmp_path: Path) -> None:
    rows = [chat(f"prompt {n}", f"answer {n}") for n in range(50)]
    some = make(tmp_path, rows + rows[:7], name="some", max_rows=20)
    assert summary(some)["conversations"] == 20
    assert summary(some)["left_out_by_max_rows"] == 30
    assert summary(some)["duplicates"] == 7
    more = make(tmp_path, rows, name="more", max_rows=30)
    assert {row["id"] for row in table(some, "train")} < {row["id"] for row in table(more, "train")}
    edited = [chat(f"prompt {n}", f"edited {n}") for n in range(50)]
    same = make(tmp_path, edited, name="same", max_rows=20)
    assert {row["prompt_id"] for row in table(same, "train")} == {row["prompt_id"] for row in table(some, "train")}
    other = make(tmp_path, rows, name="other", max_rows=20, seed=1)
    assert {row["id"] for row in table(other, "train")} != {row["id"] for row in table(some, "train")}
    assert summary(make(tmp_path, rows, name="all", max_rows=1000))["conversations"] == 50


def test_output_is_sorted_and_locations_do_not_show(tmp_path: Path) -> None:
    rows = [chat(str(n), "x") for n in range(200)]
    config = Config.model_validate({"source": "given", "splits": NO_SPLITS})
    outputs = []
    for folder, name, given in (("here", "rows.jsonl", rows), ("there/deep", "others.jsonl", rows[::-1])):
        (tmp_path / folder).mkdir(parents=True)
        write_rows(tmp_path / folder / name, [*given, "broken"])
        out = tmp_path / folder / "out"
        out.mkdir()
        write_conversations(config, [tmp_path / folder / name], out)
        outputs.append({file.name: file.read_bytes() for file in out.iterdir() if file.is_file()})
    assert outputs[0]["train.parquet"] == outputs[1]["train.parquet"]
    assert outputs[0] == outputs[1] | {"quarantine.parquet": outputs[0]["quarantine.parquet"]}
    ids = [(row["prompt_id"], row["id"]) for row in table(tmp_path / "here" / "out", "train")]
    assert ids == sorted(ids)
    assert str(tmp_path).encode() not in b"".join(outputs[0].values())


def test_duplicates_over_files_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [chat("hi"), chat("ho")])
    second = write_rows(tmp_path / "b.jsonl", [chat("hi"), chat("hu")])
    written = []
    for name, sources in (("ab", [first, second]), ("ba", [second, first])):
        (tmp_path / name).mkdir()
        config = Config.model_validate({"source": "given", "splits": NO_SPLITS})
        counts = write_conversations(config, sources, tmp_path / name)
        assert counts["rows_by_source"] == {"a.jsonl": 2, "b.jsonl": 2}
        written.append({file: (tmp_path / name / file).read_bytes() for file in ("train.parquet", "summary.json")})
    assert written[0] == written[1]


def test_where_each_row_came_from_is_noted_apart(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [chat("hi", "one"), "broken", chat("ho")])
    second = write_rows(tmp_path / "b.jsonl", [chat("hi", "two"), chat("hi", "one")])
    (tmp_path / "out").mkdir()
    config = Config.model_validate({"source": "given", "splits": NO_SPLITS, "max_quarantined_share": 1.0})
    write_conversations(config, [first, second], tmp_path / "out")
    positions = Positions(tmp_path / "out")
    unknown = Position("train.parquet", 9)
    rows = table(tmp_path / "out", "train")
    found = {}
    for prompt, group in itertools.groupby(rows, key=lambda row: row["prompt_id"]):
        for index, row in enumerate(group):
            found[row["messages"][-1]["content"]] = positions.of(prompt, index, unknown)
    assert found["one"] == Position(str(first), 1)  # of duplicates the first
    assert found["two"] == Position(str(second), 1)
    assert positions.of("nobody", 0, unknown) == unknown
    (tmp_path / "next").mkdir()
    positions.copy_to(tmp_path / "next")
    assert Positions(tmp_path / "next").of(rows[0]["prompt_id"], 0, unknown) != unknown


PROMPT = "Explain to a class of ten-year-olds why the moon seems to change its shape over the month, please"


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    rows = [
        chat("secret", "x"),
        chat(f"My homework says: {PROMPT}", "x"),
        chat("What is a good name for a cat that likes to sleep in the sun all day long?", "x"),
        chat("what is a good name for a cat that likes to sleep in the sun all day long", "y"),
        chat("What is a good name for a cat that likes to sleep in the sun all day long?", "z"),
    ]
    benchmarks = holding_out({"turns": ["secret"]}, {"turns": [PROMPT]}, num_words=13)
    out = make(tmp_path, rows, benchmarks=benchmarks)
    place = {"source": str(tmp_path / "rows.jsonl"), "benchmark": "b"}
    assert table(out / "about", "decontaminated") == [
        place | {"row": 1, "benchmark_row": 1, "shared": ""},
        place | {"row": 2, "benchmark_row": 2, "shared": "explain to a class of ten year olds why the moon seems to"},
    ]
    kept = table(out, "train")
    listed = table(out / "about", "near_duplicates")
    assert {row["kept_prompt_id"] for row in listed} == {row["prompt_id"] for row in kept}
    assert all(row["similarity"] == 1 for row in listed)
    counts = summary(out)
    assert len(listed) == counts["near_duplicates"]
    assert (counts["excluded"], counts["decontaminated"], counts["conversations"]) == (1, 1, len(kept))
    assert len(listed) + len(kept) == 3  # all answers of a prompt stay or go together
    assert len({row["prompt_id"] for row in kept}) == 1


def test_of_near_duplicates_the_same_one_stays_whatever_the_order(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(40)]
    rows = [chat(" ".join([*words[:n], "instead", *words[n + 1 :]]), str(n)) for n in range(12)]
    outs = [make(tmp_path, given, name=str(n)) for n, given in enumerate((rows, rows[::-1], rows[5:] + rows[:5]))]
    written = [[(out / name).read_bytes() for name in ("train.parquet", "summary.json")] for out in outs]
    assert written[0] == written[1] == written[2]
    assert summary(outs[0])["near_duplicates"] > 0


def test_what_is_switched_off_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    """Old artifacts keep their keys for these values: nothing that a stage behind this one reads may be new."""
    rows = [chat("Hi!", "a"), chat("hi", "b"), chat(f"My homework says: {PROMPT}", "x")]
    off = {"near_duplicates": None, "decontamination_words": None}
    out = make(tmp_path, rows, benchmarks=holding_out({"turns": [PROMPT]}), **off)
    assert len(table(out, "train")) == 3
    assert set(summary(out)) == {
        *("rows", "conversations", "prompts", "splits", "duplicates", "excluded", "left_out_by_max_rows"),
        *("quarantined", "quarantine_reasons"),
    }


def test_statistics_and_the_page_are_about_the_rows(tmp_path: Path) -> None:
    code = write_rows(tmp_path / "c.jsonl", [chat("<script>alert(1)</script>", "1 < 2"), chat("x" * 700), "bad"])
    talk = write_rows(tmp_path / "t.jsonl", [chat(f"question {n}", "yes", "why?", "so") for n in range(40)])
    given = [
        {"path": str(code), "name": "c & d", "domain": "code", "licence": "MIT", "retention": "90 days"},
        {"path": str(talk)},
    ]
    written = []
    for name in ("one", "two"):
        config = Config.model_validate({"source": given, "splits": NO_SPLITS, "max_quarantined_share": 1.0})
        (tmp_path / name).mkdir()
        counts = write_conversations(config, config.source, tmp_path / name)
        about = tmp_path / name / "about"
        written.append([(about / file).read_bytes() for file in ("statistics.json", "sample.html")])
    assert written[0] == written[1]
    statistics = json.loads(written[0][0])
    first, second = statistics["sources"]
    assert (first["name"], first["licence"], first["retention"]) == ("c & d", "MIT", "90 days")
    assert (first["rows"], first["quarantined"], first["conversations"]) == (3, 1, 2)
    assert second["name"] == "t.jsonl"
    assert statistics["domains"]["unknown"]["conversations"] == second["conversations"] == 40
    assert first["lengths"]["characters"] == [[16, 31, 1], [512, 1023, 1]]  # 30 and 700
    assert first["lengths"]["messages"] == [[1, 1, 1], [2, 2, 1]]
    assert statistics["lengths"]["messages"] == [[1, 1, 1], [2, 2, 1], [4, 4, 40]]
    assert counts["sources"][0]["splits"]["train"] == 2
    page = written[0][1].decode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "c &amp; d" in page
    assert "(700 characters)" in page
    assert page.count("<article>") == 2 + 12


def test_progress_is_told_every_byte_and_row(tmp_path: Path) -> None:
    class Told:
        def __init__(self) -> None:
            self.totals: list[list[Any]] = []

        def start(self, total: int, unit: str) -> None:
            self.totals.append([unit, total, 0])

        def advance(self, amount: int = 1) -> None:
            self.totals[-1][2] += amount

    told = Told()
    source = write_rows(tmp_path / "rows.jsonl", [chat("hi"), "bad", chat("ho")])
    (tmp_path / "out").mkdir()
    config = Config.model_validate({"source": "given", "splits": NO_SPLITS, "max_quarantined_share": 0.5})
    write_conversations(config, [source], tmp_path / "out", progress=told)
    compared = written = ["conversations", 2, 2]
    assert told.totals == [["bytes", source.stat().st_size, source.stat().st_size], compared, written]
