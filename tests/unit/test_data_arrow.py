"""Folders of the `datasets` library: the rows that it gives itself, and nothing that a damaged file asks for."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from deepspec.data.sources.columnar.arrow import file_rows, schema_of
from deepspec.data.sources.columnar.columns import without_nulls
from deepspec.data.sources.finding import Source
from deepspec.data.sources.readers import read_rows
from deepspec.data.sources.rows import RawRow
from deepspec.data.sources.saved import read_saved
from deepspec.errors import DataError
from tests.fixtures.refused import refused

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "é", "weight": 1}]


def read(folder: Path, max_row_bytes: int = 1000, columns: Sequence[str] = ()) -> list[RawRow]:
    return list(read_rows(Source(str(folder), "folder"), max_row_bytes=max_row_bytes, columns=columns))


def saved(folder: Path, batch: pa.RecordBatch, compression: str | None = None) -> Path:
    """A folder as `save_to_disk` writes it, of one batch; returns its Arrow file."""
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(folder / "data.arrow", batch.schema, options=options) as file:
        file.write_batch(batch)
    return folder / "data.arrow"


def patched(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of a file that stand in it once or more."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


SETS = {
    "messages": lambda: datasets.Dataset.from_list([{"messages": MESSAGES, "n": 1}, {"messages": None, "n": 2}] * 700),
    "turns and tools": lambda: datasets.Dataset.from_list([{"turns": ["a", ""], "tools": "x"}, {"turns": []}]),
    "json": lambda: datasets.Dataset.from_list(
        [
            {"turns": ["a"], "tools": [{"name": "f", "required": None, "more": [1, None, {"x": None}]}]},
            {"turns": ["b"]},
        ],
        features=datasets.Features(
            {"turns": datasets.List(datasets.Value("string")), "tools": datasets.List(datasets.Json())}
        ),
    ),
    "large text": lambda: datasets.Dataset.from_dict(
        {"turns": [["a"], ["b", "c"]]},
        features=datasets.Features({"turns": datasets.LargeList(datasets.Value("large_string"))}),
    ),
    "a class": lambda: datasets.Dataset.from_dict(
        {"turns": [["a"], ["b"]], "system": [0, 1]},
        features=datasets.Features(
            {"turns": datasets.List(datasets.Value("string")), "system": datasets.ClassLabel(names=["x", "y"])}
        ),
    ),
    "one format column": lambda: datasets.Dataset.from_list([{"turns": ["a"], "tools": "x"}] * 2).with_format(
        None, columns=["turns"]
    ),
    "all format columns": lambda: datasets.Dataset.from_list([{"turns": ["a"], "tools": "x"}] * 2).with_format(
        None, columns=["turns"], output_all_columns=True
    ),
    "chosen rows": lambda: datasets.Dataset.from_list([{"turns": [str(n)]} for n in range(50)]).select([7, 3, 3]),
    "none": lambda: datasets.Dataset.from_list([{"turns": ["a"]}]).select([]),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_shards", [1, 2])
def test_rows_are_those_that_the_library_gives(tmp_path: Path, name: str, num_shards: int) -> None:
    SETS[name]().save_to_disk(tmp_path / "set", num_shards=num_shards)
    loaded = datasets.load_from_disk(tmp_path / "set")
    fields = {"messages", "turns", "tools", "system"}
    expected = [without_nulls({key: row[key] for key in row if key in fields}) for row in loaded]
    found = read(tmp_path / "set")
    assert [row.value for row in found] == expected
    assert [str(row.position) for row in found] == [f"{tmp_path}/set:{number + 1}" for number in range(len(expected))]
    assert {row.unread for row in found} <= {frozenset(set(loaded.features) - fields)}
    assert {row.num_bytes for row in found} <= {0}


def test_columns_that_are_asked_for(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"question": "a", "answer": "b"}]).save_to_disk(tmp_path / "set")
    (row,) = read(tmp_path / "set", columns=("question", "problem"))
    assert (row.value, row.unread) == ({"question": "a"}, {"answer"})
    with refused(DataError, "question, answer", "messages", where=str(tmp_path / "set")):
        read(tmp_path / "set")


def test_a_format_that_hides_the_conversations_is_one_error(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"turns": ["a"], "n": 1}]).with_format(None, columns=["n"]).save_to_disk(tmp_path / "x")
    with refused(DataError, "n", where=str(tmp_path / "x")):
        read(tmp_path / "x")


def test_a_text_that_is_no_text_is_its_rows_flaw(tmp_path: Path) -> None:
    words = pa.array([b"fine", b"\xff\xfe", b"good"]).view(pa.string())
    turns = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), words)
    saved(tmp_path / "set", pa.record_batch({"turns": turns}))
    rows = read(tmp_path / "set")
    assert [row.rejection and row.rejection.reason for row in rows] == [None, "not valid UTF-8", None]
    assert rows[2].value == {"turns": ["good"]}


def test_json_that_is_none_is_its_rows_flaw(tmp_path: Path) -> None:
    tools = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[1]", "{", "[" * 1000, None]))
    saved(tmp_path / "set", pa.record_batch({"turns": [["a"]] * 4, "tools": tools}))
    rows = read(tmp_path / "set")
    assert [row.rejection and row.rejection.reason for row in rows] == [None, "malformed JSON", "malformed JSON", None]
    assert rows[0].value == {"turns": ["a"], "tools": [1]}


def test_rows_that_are_much_too_long_are_rejected_unread(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"turns": ["a"]}, {"turns": ["x" * 90_000]}, {"turns": ["b"]}]).save_to_disk(
        tmp_path / "set"
    )
    rows = read(tmp_path / "set")
    assert [row.position.row for row in rows] == [1, 2, 3]
    assert [row.value for row in rows] == [{"turns": ["a"]}, None, {"turns": ["b"]}]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("make", ["rows", "values"])
def test_what_takes_no_bytes_is_bounded(tmp_path: Path, make: str, compression: str | None) -> None:
    """An array of nulls is a length and nothing else."""
    batch = pa.record_batch({"turns": pa.nulls(3_000_017) if make == "rows" else [["a"]]})
    if make == "values":
        batch = batch.append_column("n", pa.StructArray.from_arrays([pa.nulls(1)], ["x"]))
    file = saved(tmp_path / "set", batch, compression)
    if make == "values":
        header = file.read_bytes().rindex((1).to_bytes(8, "little") * 2)  # a node: of the struct's only field
        content = bytearray(file.read_bytes())
        content[header : header + 8] = (3_000_017).to_bytes(8, "little")
        file.write_bytes(content)
    with refused(DataError, "3,000,017 values", where=f"{file}, batch 0"):
        read(tmp_path / "set")


@pytest.mark.parametrize(
    ("said", "shown"), [(1 << 40, "1,099,511,627,"), (65 << 20, "68,157,4"), (-7, "negative")], ids=str
)
def test_a_buffer_that_claims_an_absurd_size_gets_no_memory(tmp_path: Path, said: int, shown: str) -> None:
    file = saved(tmp_path / "set", pa.record_batch({"turns": [["a" * 5_000]] * 3}), "zstd")
    patched(file, (15_000).to_bytes(8, "little"), said.to_bytes(8, "little", signed=True))
    with refused(DataError, shown, where=str(file)):
        read(tmp_path / "set")


def test_compressed_buffers_are_read(tmp_path: Path) -> None:
    saved(tmp_path / "set", pa.record_batch({"turns": [["a" * 500]] * 3}), "lz4")
    assert [row.value for row in read(tmp_path / "set")] == [{"turns": ["a" * 500]}] * 3


def test_a_text_that_all_rows_share_is_unpacked_few_at_once(tmp_path: Path) -> None:
    """Memory is bounded by a few rows: these stand for 2 GB."""
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, np.int32)), pa.array(["a" * 40_000]))
    turns = pa.ListArray.from_arrays(pa.array(np.arange(50_001, dtype=np.int32)), words)
    file = saved(tmp_path / "set", pa.record_batch({"turns": turns}))
    pool, most, num_rows = pa.default_memory_pool(), 0, 0
    before = pool.bytes_allocated()
    assert schema_of(str(file)).names == ["turns"]
    tracemalloc.start()
    for rows in file_rows(str(file), ["turns"], 50_000):
        assert isinstance(rows, list)
        num_rows += len(rows)
        most = max(most, pool.bytes_allocated() - before)
        if num_rows > 2000:
            break
    assert most + tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        {"_data_files": []},
        {"_data_files": "data.arrow"},
        {"_data_files": ["data.arrow"]},
        {"_data_files": [{"filename": 1}]},
        {"_data_files": [{"filename": "../other/data.arrow"}]},
        {"_data_files": [{"filename": "/etc/passwd"}]},
        {"_data_files": [{"filename": ".."}]},
        {"_data_files": [{"filename": "a\0b"}]},
    ],
    ids=str,
)
def test_a_description_that_leads_elsewhere_or_nowhere(tmp_path: Path, state: Any) -> None:
    saved(tmp_path / "other", pa.record_batch({"turns": [["a"]]}))
    saved(tmp_path / "set", pa.record_batch({"turns": [["a"]]}))
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with refused(DataError, "`datasets`", where=str(tmp_path / "set" / "state.json")):
        read(tmp_path / "set")


@pytest.mark.parametrize("names", [None, "train", [1], ["train", "../set"], ["train/x"], [".."]], ids=str)
def test_parts_that_lead_elsewhere(tmp_path: Path, names: Any) -> None:
    (tmp_path / "dict").mkdir()
    saved(tmp_path / "dict" / "train", pa.record_batch({"turns": [["a"]]}))
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": names}))
    with refused(DataError, "`datasets`", where="dataset_dict.json"):
        read(tmp_path / "dict")
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["test", "train"]}))
    assert read_saved(str(tmp_path / "dict"), any_split=False).parts == ("train", ("test",))


def test_files_that_do_not_agree(tmp_path: Path) -> None:
    saved(tmp_path / "set", pa.record_batch({"turns": [["a"]]}))
    file = saved(tmp_path / "other", pa.record_batch({"turns": [1]}))
    file.rename(tmp_path / "set" / "more.arrow")
    names = [{"filename": "data.arrow"}, {"filename": "more.arrow"}]
    (tmp_path / "set" / "state.json").write_text(json.dumps({"_data_files": names}))
    with refused(DataError, "turns", where=str(tmp_path / "set")):
        read(tmp_path / "set")


@pytest.mark.parametrize("left", [0, 3, 100, 0.5])
def test_a_file_that_is_cut(tmp_path: Path, left: float) -> None:
    datasets.Dataset.from_list([{"turns": ["a" * 100]}] * 100).save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content)) if left < 1 else int(left)])
    with refused(DataError, "Arrow", where=str(file)):
        read(tmp_path / "set")
    file.unlink()
    with refused(DataError, "No such file", where=str(tmp_path / "set")):
        read(tmp_path / "set")
