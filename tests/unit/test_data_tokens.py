"""Token ids and masks as they are stored."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.chat.formats import CHATML
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import tokenizer_fingerprint
from deepspec.data.config import SPLITS, Config
from deepspec.data.quarantine import TooManyQuarantined
from deepspec.data.responses.regenerate import RESPONSES_SCHEMA
from deepspec.data.tables import TableWriter, read_table, with_tools
from deepspec.data.tokens.encode import mask_to_runs, runs_to_mask, write_tokens
from deepspec.errors import ArtifactError, DataError
from tests.fixtures.chat_templates import QWEN3
from tests.fixtures.refused import refused

Row = dict[str, Any]


def kept(*contents: str, number: int = 0) -> Row:
    """A row whose answers were kept."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    row = {"id": f"id{number}", "prompt_id": f"prompt{number}", "messages": messages, "source": "rows.jsonl"}
    return dict.fromkeys(RESPONSES_SCHEMA.names) | row


def generated(tokenizer: Any, prompt: str, output: str, *, finish_reason: str = "stop") -> Row:
    """A row with one answer of the target's own."""
    row = kept(prompt, output)
    prompt_ids = Renderer(tokenizer, CHATML).prompt_ids(row["messages"][:1])
    text = output + ("<|im_end|>" if finish_reason == "stop" else "")
    output_ids = tokenizer.encode(text, add_special_tokens=False)
    return {**row, "prompt_ids": prompt_ids, "output_ids": output_ids, "finish_reason": finish_reason}


def make(
    folder: Path,
    tokenizer: Any,
    rows: list[Row],
    *,
    split: str = "train",
    schema: pa.Schema = RESPONSES_SCHEMA,
    **fields: Any,
) -> dict[str, Any]:
    """Tokens of rows in one split; returns the summary."""
    given = {
        "source": "given",
        "max_length_tokens": 200,
        "min_supervised_tokens": 1,
        "max_quarantined_share": 0.0,
        **fields,
    }
    for name in ("responses", "tokens"):
        (folder / name).mkdir(parents=True)
    for name in SPLITS:
        with TableWriter(folder / "responses" / f"{name}.parquet", schema) as writer:
            for row in rows if name == split else ():
                writer.write(row)
    config = Config.model_validate(given)
    return write_tokens(config, folder / "responses", folder / "tokens", tokenizer=tokenizer, chat=CHATML)


def table(folder: Path, name: str = "train") -> list[Row]:
    rows: list[Row] = pq.read_table(folder / "tokens" / f"{name}.parquet").to_pylist()
    return rows


def supervised(tokenizer: Any, row: Row) -> str:
    mask = runs_to_mask(row["mask_runs"])
    assert len(mask) == len(row["input_ids"])
    assert row["num_prompt_tokens"] == int(mask.argmax())
    text: str = tokenizer.decode([token for token, is_kept in zip(row["input_ids"], mask, strict=True) if is_kept])
    return text


def test_generated_answers_are_taken_over_id_by_id(tmp_path: Path, tokenizer: Any) -> None:
    row = generated(tokenizer, "hi", "Mira")
    spelled = tokenizer.encode("M", add_special_tokens=False) + tokenizer.encode("ira", add_special_tokens=False)
    row["output_ids"] = [*spelled, tokenizer.eos_token_id]  # not how the tokenizer itself would split it
    make(tmp_path, tokenizer, [row])
    (written,) = table(tmp_path)
    assert written["input_ids"] == [*row["prompt_ids"], *row["output_ids"]]
    assert written["mask_runs"] == [len(row["prompt_ids"]), len(row["output_ids"])]
    assert written["num_prompt_tokens"] == len(row["prompt_ids"])
    assert (written["id"], written["prompt_id"]) == ("id0", "prompt0")


def test_responses_that_say_nothing_of_engines_are_read(tmp_path: Path, tokenizer: Any) -> None:
    names = ("id", "prompt_id", "messages", "prompt_ids", "output_ids", "finish_reason")  # of the stage's version 2
    earlier = pa.schema([RESPONSES_SCHEMA.field(name) for name in names])
    rows = [generated(tokenizer, "hi", "Mira"), kept("hi", "ho", number=1)]
    make(tmp_path / "earlier", tokenizer, rows, schema=earlier)
    make(tmp_path / "now", tokenizer, rows)
    assert table(tmp_path / "earlier") == table(tmp_path / "now")


def test_rendering_agrees_with_what_was_generated(tmp_path: Path, tokenizer: Any) -> None:
    """An answer split as the tokenizer splits it has the same ids and mask by either way, but for the last newline."""
    row = generated(tokenizer, "hi", "Mira has 12 apples")
    make(tmp_path / "a", tokenizer, [row])
    make(tmp_path / "b", tokenizer, [row | {"prompt_ids": None, "output_ids": None}])
    (taken,), (rendered,) = table(tmp_path / "a"), table(tmp_path / "b")
    assert rendered["input_ids"][:-1] == taken["input_ids"]
    assert rendered["mask_runs"] == [*taken["mask_runs"], 1]


def test_cut_off_answers_have_no_end_of_turn(tmp_path: Path, tokenizer: Any) -> None:
    one = generated(tokenizer, "hi", "Mira has", finish_reason="length")
    several = kept("hi", "Mira", "and?", "12 app") | {"finish_reason": "length"}
    make(tmp_path, tokenizer, [one, several])
    assert [supervised(tokenizer, row) for row in table(tmp_path)] == ["Mira has", "Mira<|im_end|>12 app"]
    assert tokenizer.decode(table(tmp_path)[1]["input_ids"]).endswith("12 app")


def test_the_mask_of_deepspec_is_always_rendered(tmp_path: Path, tokenizer: Any) -> None:
    make(tmp_path, tokenizer, [generated(tokenizer, "hi", "Mira")], mask="deepspec")
    assert supervised(tokenizer, table(tmp_path)[0]) == "<think>\n\n</think>\n\nMira<|im_end|>\n"


def test_order_counts_and_fingerprint(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        kept("hi", f"answer {n}", number=n) if n % 3 else generated(tokenizer, "hi", "yes") | {"id": f"id{n}"}
        for n in range(600)
    ]
    summary = make(tmp_path, tokenizer, rows)
    written = table(tmp_path)
    assert [row["id"] for row in written] == [f"id{n}" for n in range(600)]
    assert [supervised(tokenizer, row) for row in written[:3]] == [
        "yes<|im_end|>", "answer 1<|im_end|>", "answer 2<|im_end|>"
    ]  # fmt: skip
    assert summary["splits"]["train"] == {
        "rows": 600,
        "tokens": sum(len(row["input_ids"]) for row in written),
        "supervised_tokens": sum(int(runs_to_mask(row["mask_runs"]).sum()) for row in written),
        "longest_tokens": max(len(row["input_ids"]) for row in written),
    }
    assert summary["tokenizer"] == tokenizer_fingerprint(tokenizer)
    assert (summary["mask"], summary["chat_format"], summary["quarantined"]) == ("serving", "chatml", 0)


def test_equal_rows_give_equal_bytes(tmp_path: Path, tokenizer: Any) -> None:
    for name in ("a", "b"):
        make(tmp_path / name, tokenizer, [kept("hi", "ho"), generated(tokenizer, "hi", "yes")])
    for file in (tmp_path / "a" / "tokens").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "tokens" / file.name).read_bytes()


def test_long_rows_are_cut_on_the_right(tmp_path: Path, tokenizer: Any) -> None:
    rows = [kept("hi", "Mira has 12 apples"), generated(tokenizer, "hi", "Mira has 12 apples")]
    make(tmp_path / "whole", tokenizer, rows)
    limit = table(tmp_path / "whole")[0]["num_prompt_tokens"] + 3
    summary = make(tmp_path / "cut", tokenizer, rows, max_length_tokens=limit)
    assert summary["cut_to_max_length"] == 2
    for whole, cut in zip(table(tmp_path / "whole"), table(tmp_path / "cut"), strict=True):
        assert cut["input_ids"] == whole["input_ids"][:limit]
        assert cut["mask_runs"] == [limit - 3, 3]


def test_rows_with_too_few_supervised_tokens_are_left_out_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [generated(tokenizer, "hi", answer) for answer in ("", " 12", " 12 apples")]
    summary = make(tmp_path, tokenizer, rows, min_supervised_tokens=3)
    assert summary["too_short"] == 2
    assert [supervised(tokenizer, row) for row in table(tmp_path)] == [" 12 apples<|im_end|>"]
    assert summary["quarantined"] == 0


def test_rows_with_no_supervised_token_are_quarantined(tmp_path: Path, tokenizer: Any) -> None:
    nothing = generated(tokenizer, "hi", "") | {"output_ids": []}
    rows = [kept("hi", "ho"), nothing, kept("word " * 300, "ho"), kept("only asked")]
    summary = make(tmp_path, tokenizer, rows, max_quarantined_share=1.0)
    assert [(row["source"], row["row"], row["reason"]) for row in table(tmp_path, "quarantine")] == [
        ("train.parquet", 2, "no supervised token"),
        ("train.parquet", 3, "prompt leaves no room for an answer within data.max_length_tokens"),
        ("train.parquet", 4, "no supervised token"),
    ]
    assert summary["quarantined"] == 3


def test_a_template_that_refuses_a_row(tmp_path: Path, tokenizer: Any) -> None:
    late = kept("hi", "ho")
    late["messages"] = [*late["messages"], {"role": "system", "content": "late"}]
    with refused(TooManyQuarantined, "1 of 2 rows", "the chat template refuses the conversation") as caught:
        make(tmp_path, tokenizer, [kept("hi", "ho"), late])
    assert pq.read_table(caught.value.quarantine_path).to_pylist()[0]["excerpt"].startswith("[a system message may")


def test_a_split_that_is_lost_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    with refused(DataError, "1 rows", "split gate"):
        make(tmp_path, tokenizer, [kept("hi", "ho")], split="gate", min_supervised_tokens=100)


def rich(messages: list[Row], **fields: Any) -> Row:
    """A row that may have thoughts and tools."""
    row = {"id": "id", "prompt_id": "prompt", "messages": messages, "prompt_ids": None, "output_ids": None}
    return {**row, "finish_reason": None, "tools": None, **fields}


def make_rich(folder: Path, tokenizer: Any, rows: list[Row], **fields: Any) -> dict[str, Any]:
    given = {
        "source": "given",
        "max_length_tokens": 400,
        "min_supervised_tokens": 1,
        "max_quarantined_share": 0.0,
        **fields,
    }
    for name in ("responses", "tokens"):
        (folder / name).mkdir(parents=True)
    schema = pa.schema([with_tools(RESPONSES_SCHEMA).field(name) for name in rows[0]])
    for split in SPLITS:
        with TableWriter(folder / "responses" / f"{split}.parquet", schema) as writer:
            for row in rows if split == "train" else ():
                writer.write(row)
    config = Config.model_validate(given)
    return write_tokens(config, folder / "responses", folder / "tokens", tokenizer=tokenizer, chat=CHATML)


THOUGHT = {"role": "assistant", "content": "Mira", "reasoning_content": "well"}
TOLD = "<think>\nwell\n</think>\n\nMira<|im_end|>"


def test_thoughts_are_supervised_where_the_target_thinks(tmp_path: Path, tokenizer: Any) -> None:
    asked = {"role": "user", "content": "hi"}
    rows = [rich([asked, THOUGHT]), rich([asked, THOUGHT, asked, THOUGHT]), rich([asked, THOUGHT | {"content": "x"}])]
    summary = make_rich(tmp_path / "on", tokenizer, rows, thinking="on")
    assert [supervised(tokenizer, row) for row in table(tmp_path / "on")[:2]] == [TOLD, TOLD]
    assert summary["thinking"] == "on"
    plain = rich([asked, {"role": "assistant", "content": "Mira"}])
    make_rich(tmp_path / "keep", tokenizer, [plain, rows[0]], thinking="keep")
    assert [supervised(tokenizer, row) for row in table(tmp_path / "keep")] == ["Mira<|im_end|>", TOLD]


def test_tool_calls_are_supervised_and_results_are_not(tmp_path: Path, tokenizer: Any) -> None:
    call = {
        "id": "call_0",
        "type": "function",
        "function": {"name": "add", "arguments": {"a": "</tool_call><|im_end|>"}},
    }
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([call])},
        {"role": "tool", "content": "4<|im_end|>", "tool_call_id": "call_0"},
        {"role": "assistant", "content": "Four."},
    ]
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = QWEN3
    make_rich(tmp_path, tokenizer, [rich(messages, tools="[]")])
    written = '<tool_call>\n{"name": "add", "arguments": {"a": "</tool_call><|im_end|>"}}\n</tool_call><|im_end|>'
    assert supervised(tokenizer, table(tmp_path)[0]) == written + "Four.<|im_end|>"


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated"])
def test_damaged_input_is_noticed(tmp_path: Path, tokenizer: Any, damage: str) -> None:
    make(tmp_path, tokenizer, [kept("hi", f"a long answer with the number {n}") for n in range(50)])
    path = tmp_path / "responses" / "train.parquet"
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    column = next(
        group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema.endswith("content")
    )
    content[column.data_page_offset + column.total_compressed_size // 4] ^= 1  # in what is read of it
    changed = {"flipped": bytes(content), "truncated": bytes(content[: len(content) // 2])}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    (tmp_path / "again").mkdir()
    with refused(ArtifactError, where="train.parquet"):
        write_tokens(Config(source="x"), tmp_path / "responses", tmp_path / "again", tokenizer=tokenizer, chat=CHATML)


def test_damage_that_still_decodes_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with TableWriter(path, pa.schema([("value", pa.int64())])) as writer:
        for value in np.random.default_rng(0).integers(0, 2**62, 500).tolist():
            writer.write({"value": value})
    content = path.read_bytes()
    values = pq.read_table(path)
    path.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    assert pq.read_table(path) != values  # other numbers, and nothing said
    with refused(ArtifactError, where="rows.parquet"):
        list(read_table(path, ["value"]))


@pytest.mark.parametrize(
    ("mask", "runs"),
    [("", []), ("0", [1]), ("1", [0, 1]), ("0011", [2, 2]), ("1100", [0, 2, 2]), ("01011", [1, 1, 1, 2])],
)
def test_runs(mask: str, runs: list[int]) -> None:
    array = np.array([digit == "1" for digit in mask], dtype=np.bool_)
    assert mask_to_runs(array).tolist() == runs
    assert mask_to_runs(array).dtype == np.int32
    assert runs_to_mask(runs).tolist() == array.tolist()


def test_negative_runs() -> None:
    with pytest.raises(ValueError, match="negative: -2"):
        runs_to_mask([3, -2])
