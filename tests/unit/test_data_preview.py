"""Previews: the same tokens as the stages make, and how people see what is supervised."""

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deepspec.data.chat.formats import CHATML, GEMMA4, ChatFormat
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.config import SPLITS, Config
from deepspec.data.conversations.build import write_conversations
from deepspec.data.responses.regenerate import write_responses
from deepspec.data.sources.account import Account, lines
from deepspec.data.tokens.encode import write_tokens
from deepspec.data.tokens.preview import rendered, stored, with_put_in
from deepspec.errors import DataError
from flows.cli.commands import preview as preview_command
from flows.cli.commands.preview import PreviewDocument
from tests.fixtures.command import call
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_qwen3
from tests.fixtures.tokenizers import tiny_gemma4_tokenizer, tiny_tokenizer

ROWS: list[Any] = [
    {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]}
    for n in range(40)
]


def source(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(path: Path, **fields: Any) -> Config:
    given = {
        "source": str(path),
        "min_supervised_tokens": 1,
        "responses": {"mode": "keep"},
        "max_quarantined_share": 1.0,
    }
    shares = {"validation": 0.3, "calibration": 0, "gate": 0}
    return Config.model_validate({**given, "splits": shares, **fields})


def shown_of(config: Config, split: str, num_rows: int, folder: Path, tokenizer: Any) -> Any:
    """The preview of what the first stage makes of the sources."""
    (folder / "made").mkdir()
    write_conversations(config, config.source, folder / "made")
    return rendered(config, split, num_rows, conversations=folder / "made", tokenizer=tokenizer, chat=CHATML)


def made(config: Config, tmp_path: Path, tokenizer: Any, chat: ChatFormat = CHATML) -> Path:
    """The folder of the tokens that the stages make."""
    for name in ("conversations", "responses", "tokens"):
        (tmp_path / name).mkdir()
    write_conversations(config, config.source, tmp_path / "conversations")
    folders = (tmp_path / "conversations", tmp_path / "responses")
    write_responses(config, *folders, generate=None, tokenizer=tokenizer, chat=chat)
    write_tokens(config, tmp_path / "responses", tmp_path / "tokens", tokenizer=tokenizer, chat=chat)
    return tmp_path / "tokens"


def test_a_preview_of_the_sources_has_the_tokens_that_the_stages_make(tmp_path: Path, tokenizer: Any) -> None:
    config = config_of(source(tmp_path, [*ROWS, "no row"]), max_length_tokens=60)
    tokens = made(config, tmp_path, tokenizer)
    for split in SPLITS[:2]:
        shown, passed = rendered(
            config, split, 100, conversations=tmp_path / "conversations", tokenizer=tokenizer, chat=CHATML
        )
        written = {row.id: row for row in stored(tokens / f"{split}.parquet", 100)}
        assert {row.id for row in shown} == set(written)
        for row in shown:
            assert row.input_ids.tolist() == written[row.id].input_ids.tolist()
            assert row.mask.tolist() == written[row.id].mask.tolist()
        assert passed == {"row is not an object": 1}


@pytest.mark.parametrize("mask", ["serving", "deepspec"])
def test_an_answer_of_no_weight_is_read_and_not_supervised(tmp_path: Path, tokenizer: Any, mask: str) -> None:
    weighted = {"messages": [*ROWS[0]["messages"], *ROWS[1]["messages"]]}
    weighted["messages"][1] = {**weighted["messages"][1], "weight": 0}
    config = config_of(source(tmp_path, [weighted, ROWS[2]]), mask=mask, splits={"validation": 0, "calibration": 0})
    config = config.model_copy(update={"splits": config.splits.model_copy(update={"gate": 0.0})})
    tokens = made(config, tmp_path, tokenizer)
    shown, _ = shown_of(config, "train", 9, tmp_path, tokenizer)
    for rows in (shown, stored(tokens / "train.parquet", 9)):
        (row,) = (row for row in rows if len(row.mask) == max(len(other.mask) for other in rows))
        parts = list(row.stretches(tokenizer))
        assert "answer 0" in "".join(text for supervised, _, text in parts if not supervised)
        supervised = [text for supervised, _, text in parts if supervised]
        assert len(supervised) == 1
        assert "answer 1<|im_end|>" in supervised[0]


def test_stretches_are_the_whole_row_in_order(tmp_path: Path, tokenizer: Any) -> None:
    config = config_of(source(tmp_path, ROWS))
    ((row,), _) = shown_of(config, "train", 1, tmp_path, tokenizer)
    stretches = list(row.stretches(tokenizer))
    assert [supervised for supervised, _, _ in stretches] == [False, True, False]
    assert [token for _, ids, _ in stretches for token in ids] == row.input_ids.tolist()
    assert stretches[1][2].startswith("answer ")
    assert stretches[1][2].endswith("<|im_end|>")


def test_every_source_is_accounted_for(tmp_path: Path, tokenizer: Any) -> None:
    """As the conversations' statistics have it; of a large source the beginning, and no source is left unopened."""
    (tmp_path / "one").mkdir()
    source(tmp_path / "one", [{**row, "id": 7} for row in ROWS[:20]])
    (tmp_path / "one" / "test.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "one" / "notes.csv").write_text("x")
    other = source(tmp_path, [*ROWS[20:], {"dialog": ["hi"]}, "no row", {**ROWS[0], "tags": ["a"], "empty": []}])
    config = config_of(tmp_path / "one", near_duplicates=None)
    entries = [{"path": str(tmp_path / "one"), "name": "first"}, {"path": str(other)}]
    config = Config.model_validate({**config.model_dump(), "source": entries})
    (tmp_path / "made").mkdir()
    write_conversations(config, config.source, tmp_path / "made")
    statistics = json.loads((tmp_path / "made" / "about" / "statistics.json").read_text())
    first, second = (item["input"] for item in statistics["sources"])
    assert (first["rows"], first["unread_fields"], first["refused"]) == (20, {"id": 20}, {})
    assert first["splits"] == {"test": False, "train": True}
    assert {item["file"] for item in first["files_not_read"]} == {"test.jsonl", "notes.csv"}
    assert (second["rows"], second["unread_fields"], second["splits"]) == (23, {"tags": 1}, {})
    assert sorted(second["refused"].values()) == [1, 1]
    assert any("dialog" in reason for reason in second["refused"])
    page = (tmp_path / "made" / "about" / "sample.html").read_text()
    assert all(line in page for line in lines("first", first))


def test_an_account_is_bounded() -> None:
    account = Account("x")
    for number in range(1000):
        account.count({f"field {number}"})
        account.refuse(f"reason {number}")
    assert account.rows == 2000
    assert sum(account.unread.values()) == sum(account.refused.values()) == 1000
    assert max(len(account.unread), len(account.refused)) <= 101


def test_what_would_be_generated_is_said_to_be_the_rows_own(tmp_path: Path, tokenizer: Any) -> None:
    config = config_of(source(tmp_path, [{"turns": ["alone"]}, ROWS[0]]), responses={"mode": "regenerate"})
    config = config.model_copy(update={"splits": config.splits.model_copy(update={"validation": 0.0})})
    (rows, _) = shown_of(config, "train", 2, tmp_path, tokenizer)
    alone, answered = sorted(rows, key=lambda row: row.position)
    assert alone.note == "the prompt; the target will answer"
    assert not alone.mask.any()
    assert answered.note == "the row's own answers stand in for the target's"


def test_no_row_that_can_be_shown(tmp_path: Path, tokenizer: Any) -> None:
    config = config_of(source(tmp_path, [{"turns": ["alone"]}, "bad"]))
    config = config.model_copy(update={"splits": config.splits.model_copy(update={"validation": 0.0})})
    with refused(DataError, "split train", "no answer to keep", "row is not an object (1)", where="data.source"):
        shown_of(config, "train", 3, tmp_path, tokenizer)


DOCUMENT = {
    "recipe": "r", "from": "source", "split": "train", "mask": "serving", "thinking": "off", "passed_over": {"bad": 2},
    "rows": [
        {"id": "a", "place": "x:1", "num_tokens": 3, "supervised_tokens": 1, "note": "", "stretches": [
            {"supervised": False, "text": "ask [bold]\n", "input_ids": [1]},
            {"supervised": True, "text": "\x1b[31mred", "input_ids": [2]},
        ]}
    ],
    "sources": [{"name": "rows\x1b", "input": {
        "rows": 1200, "unread_fields": {"id": 1200}, "refused": {"bad": 2}, "num_files_not_read": 7,
        "splits": {"test": False, "train": True}, "files_not_read": [{"file": "a.csv", "why": "the suffix .csv"}] * 7,
    }}],
}  # fmt: skip


def test_colours_on_a_terminal_and_marks_elsewhere() -> None:
    shown = {}
    for is_terminal in (False, True):
        file = io.StringIO()
        preview_command.show(
            PreviewDocument.model_validate(DOCUMENT),
            Console(file=file, force_terminal=is_terminal, color_system="standard", width=80),
        )
        shown[is_terminal] = file.getvalue()
    assert "ask [bold]\n[[\\x1b[31mred]]\n" in shown[False]
    assert "x:1: 1 of 3 tokens are supervised" in shown[False]
    assert "passed over: 2 rows, bad" in shown[False]
    for told in (
        "1,200 rows read, 2 refused: bad (2)",
        "1,200 rows have a field `id`",
        "test (left out)",
        "2 more",
    ):
        assert "rows\\x1b: " in shown[False]
        assert told in shown[False]
    assert "\x1b[1;32m\\x1b[31mred" in shown[True]
    assert "[[" not in shown[True]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_qwen3(tmp_path_factory.mktemp("target") / "tiny", vocab_size=401)
    return tiny_tokenizer(folder)


def preview(
    tmp_path: Path, target: Path, *arguments: str, rows: list[Any] | None = None
) -> "subprocess.CompletedProcess[str]":
    settings = [
        f"target.path={target}",
        f"data.source={source(tmp_path, ROWS if rows is None else rows)}",
        "evaluate.benchmarks={}",
    ]
    settings += ["data.responses.mode=keep", "data.min_supervised_tokens=1", "data.thinking=off"]
    settings += ["draft.mask_token_id=400", "draft.target_layer_ids=[0]"]
    sets = [word for setting in settings for word in ("--set", setting)]
    environment = {**os.environ, "DEEPSPEC_HOME": str(tmp_path / "home")}
    return call(["data", "preview", "dspark-qwen3-4b", *sets, *arguments], environment)


def test_the_command(tmp_path: Path, target: Path) -> None:
    done = preview(tmp_path, target, "--rows", "2", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["from"], document["split"], len(document["rows"])) == ("source", "train", 2)
    assert document["rows"][0]["stretches"][1]["text"].endswith("<|im_end|>")
    (read,) = document["sources"]
    assert (read["name"], read["input"]["rows"]) == ("rows.jsonl", 40)
    assert not (tmp_path / "home" / "store").exists()


def test_wrong_usage_is_told_in_a_sentence(tmp_path: Path, target: Path) -> None:
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "bare" / name).write_bytes((target / name).read_bytes())
    for arguments, told in (
        (("--split", "test"), "there is no split 'test'. Name one of train, validation, calibration, gate."),
        (("--set", f"target.path={tmp_path / 'bare'}"), "no chat template"),
    ):
        done = preview(tmp_path, target, *arguments)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr


def test_what_a_run_leaves_out_is_not_shown_and_counted(tmp_path: Path, target: Path) -> None:
    """A benchmark's prompt, in other words around it too, a copy, and a near copy."""
    words = " ".join(f"word{n}" for n in range(40))
    asked = [words, f"{words} again", "what is asked of all models, word by word, in the benchmark of today?"]
    more = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]}
        for text in [*asked, ROWS[0]["messages"][0]["content"]]
    ]
    more[-1] = ROWS[0]
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"turns": [asked[2]]}) + "\n")
    settings = [f"evaluate.benchmarks={{math: {{path: '{benchmark}', num_prompts: 1}}}}", "data.near_duplicates=0.8"]
    sets = [word for setting in settings for word in ("--set", setting)]
    done = preview(tmp_path, target, "--rows", "100", "--json", *sets, rows=[*ROWS, *more, "no row"])
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    texts = [stretch["text"] for row in document["rows"] for stretch in row["stretches"]]
    assert not any("benchmark of today" in text for text in texts)
    assert sorted(document["passed_over"].values()) == [1, 1, 1, 1]
    assert len(document["passed_over"]) == 4


@pytest.mark.parametrize("draft", ["draft={algorithm: nothing}", "draft.mask_token_id=5000000", "draft.no_field=1"])
def test_a_draft_that_cannot_be_is_no_reason_to_show_nothing(tmp_path: Path, target: Path, draft: str) -> None:
    done = preview(tmp_path, target, "--rows", "1", "--json", "--set", draft)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 1
    wrong = preview(tmp_path, target, "--set", draft, "--set", "data.no_field=1")
    assert wrong.returncode == 2, "what it says of its data counts"


def test_a_recipe_without_a_draft_has_data_to_show(tmp_path: Path, target: Path) -> None:
    recipe = tmp_path / "data.yaml"
    data = {"source": str(source(tmp_path, ROWS)), "responses": {"mode": "keep"}, "min_supervised_tokens": 1}
    recipe.write_text(json.dumps({"name": "mine", "target": {"path": str(target)}, "data": data}))
    environment = {**os.environ, "DEEPSPEC_HOME": str(tmp_path / "home")}
    done = call(["data", "preview", str(recipe), "--json"], environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]


def test_it_says_where_an_empty_thought_was_put_in(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_gemma4_tokenizer(tmp_path / "tokenizer"))
    config = config_of(source(tmp_path, ROWS), splits={"validation": 0, "calibration": 0, "gate": 0})
    (tmp_path / "made").mkdir()
    write_conversations(config, config.source, tmp_path / "made")
    ((row,), _) = rendered(config, "train", 1, conversations=tmp_path / "made", tokenizer=tokenizer, chat=GEMMA4)
    ((token, text),) = row.put_in
    assert text == GEMMA4.empty_thought
    assert tokenizer.decode(row.input_ids[token:]).startswith(GEMMA4.empty_thought)


def test_it_says_of_stored_tokens_where_an_empty_thought_was_put_in(tmp_path: Path) -> None:
    """As of rendered rows: also in several turns, behind a row that is not kept, and where the row is cut."""
    tokenizer = load_tokenizer(tiny_gemma4_tokenizer(tmp_path / "tokenizer"))
    short = {"messages": [{"role": "user", "content": "short"}, {"role": "assistant", "content": "x"}]}
    long = {"messages": [turn for row in ROWS[:12] for turn in row["messages"]]}
    config = config_of(
        source(tmp_path, [short, *ROWS, long]),
        splits={"validation": 0, "calibration": 0, "gate": 0},
        min_supervised_tokens=4,
        max_length_tokens=120,
        near_duplicates=None,
    )
    tokens = made(config, tmp_path, tokenizer, GEMMA4)
    given = {"tokenizer": tokenizer, "chat": GEMMA4}
    wanted, passed = rendered(config, "train", 99, conversations=tmp_path / "conversations", **given)
    assert sum(passed.values()) == 1
    documents = stored(tokens / "train.parquet", 99)
    assert not any(document.put_in for document in documents)
    found = with_put_in(config, documents, tmp_path / "responses" / "train.parquet", **given)
    assert {row.id: row.put_in for row in found} == {row.id: row.put_in for row in wanted}
    assert all(row.put_in for row in found)
    (cut,) = (row for row in found if len(row.input_ids) == 120)
    assert 1 < len(cut.put_in) < 12
    assert all(tokenizer.decode(cut.input_ids[at:]).startswith(text) for at, text in cut.put_in)
