"""Reading sources: every way in which a file or a row can be broken."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.sources import json_rows
from deepspec.data.sources.account import Account
from deepspec.data.sources.columnar.parquet import opened_table, table_rows
from deepspec.data.sources.finding import Source, find, find_sources
from deepspec.data.sources.hub import commit_of
from deepspec.data.sources.readers import count_rows, read_rows, source_bytes
from deepspec.data.sources.rows import RawRow
from deepspec.errors import DataError
from tests.fixtures.one_process import reading_here
from tests.fixtures.refused import refused

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "é"}]}
LINE = json.dumps(ROW, ensure_ascii=False).encode()


def read(path: Path, *, max_row_bytes: int = 1000) -> list[RawRow]:
    """All rows of what stands at `path`."""
    return [row for source in find_sources([path]) for row in read_rows(source, max_row_bytes=max_row_bytes)]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def reasons(rows: list[RawRow]) -> list[tuple[int, str | None]]:
    return [(row.position.row, row.rejection.reason if row.rejection else None) for row in rows]


@pytest.mark.parametrize(
    "content",
    [
        LINE + b"\n" + LINE + b"\n",
        LINE + b"\n" + LINE,  # no newline at the end
        LINE + b"\r\n" + LINE + b"\r\n",
        b"\xef\xbb\xbf" + LINE + b"\n" + LINE + b"\n",
    ],
    ids=["plain", "open end", "crlf", "bom"],
)
def test_lines(tmp_path: Path, content: bytes) -> None:
    rows = read(write(tmp_path / "rows.jsonl", content))
    assert [row.value for row in rows] == [ROW, ROW]
    assert [str(row.position) for row in rows] == [f"{tmp_path}/rows.jsonl:1", f"{tmp_path}/rows.jsonl:2"]
    assert rows[0].position.name == "rows.jsonl"


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    assert reasons(read(write(tmp_path / "rows.jsonl", b"\n  \n" + LINE + b"\n\n"))) == [(3, None)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "malformed JSON"),
        (b"not json", "malformed JSON"),
        (b"\x00\x00\x00", "malformed JSON"),
        (b'{"messages": "a\x00b"}', "malformed JSON"),
        (b"[" * 900_000, "malformed JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "malformed JSON"),
        (b'{"messages": "\xff\xfe"}', "not valid UTF-8"),
        (b'{"messages": 1, "messages": 2}', "a key stands twice in one JSON object"),
        (b'{"a": {"b": 1, "b": 1}}', "a key stands twice in one JSON object"),
    ],
)
def test_bad_line_between_good_ones(tmp_path: Path, line: bytes, reason: str) -> None:
    rows = read(write(tmp_path / "rows.jsonl", LINE + b"\n" + line + b"\n" + LINE + b"\n"), max_row_bytes=1_000_000)
    assert reasons(rows) == [(1, None), (2, reason), (3, None)]
    assert rows[1].excerpt.isprintable()
    assert len(rows[1].excerpt) <= 200


@pytest.mark.parametrize(
    ("num_bytes", "reason"), [(3, "malformed JSON"), (5, "not valid UTF-8"), (9, "malformed JSON")]
)
def test_truncated_last_line(tmp_path: Path, num_bytes: int, reason: str) -> None:
    rows = read(write(tmp_path / "rows.jsonl", LINE + b"\n" + LINE[:-num_bytes]))
    assert reasons(rows) == [(1, None), (2, f"{reason} in the last line (a truncated file?)")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3, 500, 5000])
def test_over_long_line(tmp_path: Path, extra: int, end: bytes) -> None:
    limit = len(LINE) + 20
    line = LINE + b" " * (limit + extra - len(LINE))
    path = write(tmp_path / "rows.jsonl", LINE + b"\n" + line + end)
    rows = read(path, max_row_bytes=limit)
    assert reasons(rows) == [(1, None), (2, "longer than data.max_row_bytes" if extra > 0 else None)]


def test_rows_after_an_over_long_line_keep_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b"x" * 10_000 + b"\n" + LINE + b"\n" + b"y" * 10_000)
    assert [number for number, reason in reasons(read(path, max_row_bytes=200)) if reason is None] == [2]
    assert [number for number, _ in reasons(read(path, max_row_bytes=200))] == [1, 2, 3]


def test_bytes_for_progress_add_up(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LINE + b"\n" + b"bad\n" + LINE + b"\n")
    assert sum(row.num_bytes for row in read(path)) == source_bytes(Source(str(path), "jsonl")) == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("rows.jsonl.gz", "no gzip", ["unpacked"]),
        ("rows.jsonl.zst", "no zstd", ["unpacked"]),
        ("rows.jsonl", LINE.decode().encode("utf-16").decode("latin-1"), ["UTF-16"]),
        ("rows.csv", "a,b", ["suffix", ".csv"]),
        ("rows.parquet", "PAR1 no", ["Parquet"]),
        ("rows.parquet", "", ["Parquet"]),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str, named: list[str]) -> None:
    path = write(tmp_path / name, content.encode("latin-1"))
    with refused(DataError, *named, where=str(path)):
        read(path)


@pytest.mark.parametrize("pattern", ["nowhere.jsonl", "nowhere/rows.jsonl", "*.jsonl", "/nowhere", "s3://bucket/rows"])
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(DataError, where=pattern):
        find_sources([pattern])


def test_no_source() -> None:
    with refused(DataError, where="data.source"):
        find_sources([])


def test_folder_without_anything_readable(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", b"x")
    write(tmp_path / ".hidden" / "rows.jsonl", LINE)
    with refused(DataError, "read", where=str(tmp_path)):
        find_sources([tmp_path])


def test_file_that_vanishes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LINE)
    (source,) = find_sources([path])
    path.unlink()
    with refused(DataError, "No such file", where=str(path)):
        list(read_rows(source, max_row_bytes=100))


def test_folders_and_globs_are_sorted_and_each_file_is_read_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "d.ndjson", "notes.md"):
        write(tmp_path / name, LINE)
    sources = find_sources([str(tmp_path / "*.jsonl"), tmp_path, tmp_path / "deep" / ".." / "a.jsonl"])
    assert [Path(source.path).name for source in sources] == ["a.jsonl", "b.jsonl", "d.ndjson", "c.jsonl"]
    (nested,) = find_sources([str(tmp_path / "**" / "c.jsonl")])
    assert nested.path == str(tmp_path / "deep" / "c.jsonl")


def split_names(folder: Path, *names: str, held_out_too: bool = False) -> tuple[list[str], dict[str, str | None]]:
    """What is read of a folder with such files, and what is not: name -> its split."""
    for name in names:
        write(folder / name, LINE)
    found = find([folder], held_out_too=held_out_too)
    read_ = sorted(str(Path(source.path).relative_to(folder)) for source in found.sources)
    return read_, {str(Path(item.path).relative_to(folder)): item.split for item in found.not_read}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test-00000-of-00001.jsonl", "test"),
        ("data/test_sft-00000-of-00001.jsonl", "test"),
        ("validation.jsonl", "validation"),
        ("dev.jsonl", "validation"),
        ("my.val.jsonl", "validation"),
        ("chats-valid-2.ndjson", "validation"),
        ("eval.json", "test"),
        ("EVALUATION/part1.jsonl", "test"),
        ("test/part.jsonl.gz", "test"),
        ("test/train-1.jsonl", "test"),
        ("testing 1.jsonl", "test"),
    ],
)
def test_a_split_that_is_held_out_is_named_and_not_read(tmp_path: Path, name: str, split: str) -> None:
    read_, others = split_names(tmp_path, name, "rows.jsonl")
    assert (read_, others) == (["rows.jsonl"], {name: split})
    assert split_names(tmp_path, held_out_too=True) == (sorted([name, "rows.jsonl"]), {})
    assert find([tmp_path]).splits == (frozenset({split, "train"}),)
    assert [source.path for source in find_sources([tmp_path / name])] == [str(tmp_path / name)]  # named itself


@pytest.mark.parametrize(
    "name",
    ["train-00000-of-00001.jsonl", "training.jsonl", "train/test-driven.jsonl", "latest.jsonl", "devices.jsonl",
     "train_test_pairs.jsonl", "attest.jsonl", "evaluations.jsonl"],
)  # fmt: skip
def test_what_is_of_no_other_split_is_read(tmp_path: Path, name: str) -> None:
    assert split_names(tmp_path, name) == ([name], {})


def test_globs_leave_splits_out_unless_they_say_them(tmp_path: Path) -> None:
    folder = tmp_path / "test"  # what is above the pattern says nothing
    for name in ("train-0.jsonl", "test-0.jsonl", "dev-0.jsonl", "sub/x.jsonl"):
        write(folder / name, LINE)
    found = find([f"{folder}/*"])
    assert [Path(source.path).name for source in found.sources] == ["train-0.jsonl"]
    assert {Path(item.path).name: item.split for item in found.not_read} == {
        "sub": None, "test-0.jsonl": "test", "dev-0.jsonl": "validation",
    }  # fmt: skip
    assert [Path(source.path).name for source in find([f"{folder}/test-*"]).sources] == ["test-0.jsonl"]


def test_a_folder_of_nothing_but_a_held_out_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", LINE)
    with refused(DataError, "test", where=str(tmp_path)):
        find([tmp_path])


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("rows.jsonl", LINE), ("more.json", b"[" + LINE + b"]"), ("lines.json", LINE), ("info.json", b'{"rows": 3}'),
        ("long.json", b'{\n "name": "x"\n}'), ("a.csv", b"x"), ("README", b"x"), (".cache/x.jsonl", LINE),
    ):  # fmt: skip
        write(tmp_path / name, content)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    found = find([tmp_path])
    assert [Path(source.path).name for source in found.sources] == ["lines.json", "more.json", "rows.jsonl"]
    names = {Path(item.path).name for item in found.not_read}
    assert names == {"info.json", "long.json", "a.csv", "README", "gone.jsonl"}
    assert all(item.why for item in found.not_read)


def test_linked_folders_are_followed_each_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.jsonl", LINE)
    write(tmp_path / "data" / "b.jsonl", LINE)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert sorted(Path(source.path).name for source in find_sources([tmp_path / "data"])) == ["a.jsonl", "b.jsonl"]


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return pa.compress(content, "zstd", asbytes=True) if name.endswith(".zst") else content


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_every_format_plain_and_packed(tmp_path: Path, name: str, compression: str) -> None:
    content = {"rows.jsonl": (LINE + b"\n") * 3, "rows.json": b"[\n" + b",\n".join([LINE] * 3) + b"]\n"}.get(name)
    if content is None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([ROW] * 3), sink)
        content = sink.getvalue().to_pybytes()
    path = write(tmp_path / (name + compression), packed(compression, content))
    rows = read(tmp_path)
    assert [row.value for row in rows] == [ROW] * 3
    assert [row.position.row for row in rows] == [1, 2, 3]
    assert count_rows(find_sources([path])[0])[0] == 3
    assert sum(row.num_bytes for row in rows) <= path.stat().st_size
    if compression:
        path.write_bytes(path.read_bytes()[:-5])
        with refused(DataError, where=str(path)):
            read(path)


def test_a_packed_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", gzip.compress(LINE + b"\n" + b" " * (1 << 26) + b"x\n" + LINE))
    tracemalloc.start()
    found = reasons(read(path))
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    assert found == [(1, None), (2, "longer than data.max_row_bytes"), (3, None)]


ARRAY_ROWS = [ROW, {"turns": ['a "quoted\\" [text], {x}', "b\\\\"]}, {"n": [[], {}, [1, [2]]]}, ROW]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, chunk: int) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(json_rows, "_HEAD_BYTES", 16)
    path = write(tmp_path / "rows.json", json.dumps(ARRAY_ROWS, indent=indent).encode())
    assert [row.value for row in read(path)] == ARRAY_ROWS
    assert reasons(read(write(path, b" [ ] "))) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[%s, {bad], %s]", "malformed JSON"),
        (b'[%s, {"a": 1 "b"}, %s]', "malformed JSON"),
        (b"[%s, , %s]", "malformed JSON"),
        (b'[%s, {"a": "\xff"}, %s]', "not valid UTF-8"),
        (b'[%s, {"a": "' + b"x" * 2000 + b'"}, %s]', "longer than data.max_row_bytes"),
    ],
)
def test_a_bad_element_between_good_ones(tmp_path: Path, text: bytes, expected: str) -> None:
    found = reasons(read(write(tmp_path / "rows.json", text.replace(b"%s", LINE))))
    assert found == [(1, None), (2, expected), (3, None)]


@pytest.mark.parametrize("num_bytes", [1, 5, 60])
def test_an_array_that_breaks_off(tmp_path: Path, num_bytes: int) -> None:
    text = b"[" + LINE + b"," + LINE + b"]"
    last = reasons(read(write(tmp_path / "rows.json", text[:-num_bytes])))[-1]
    assert last == (2, "malformed JSON in the last row (a truncated file?)" if num_bytes > 1 else None)


def test_text_behind_an_array_is_a_bad_row(tmp_path: Path) -> None:
    found = reasons(read(write(tmp_path / "rows.json", b"[" + LINE + b"]\n" + LINE)))
    assert found == [(1, None), (2, "text behind the JSON array")]


def test_missing_name_in_a_folder_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with refused(DataError, where="data/rows"):
        find_sources(["data/rows"])


def test_data_set_id() -> None:
    assert find_sources(["owner/name", "owner/name@abc123"]) == (
        Source("owner/name", "hub"),
        Source("owner/name@abc123", "hub"),
    )


def test_data_set_id_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("could not reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with reading_here(), refused(DataError, "could not reach it", where="owner/name"):
        list(read_rows(Source("owner/name", "hub"), max_row_bytes=100))


def test_a_hub_that_does_not_answer_is_one_type_of_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client raises the types of whatever HTTP library it is built on."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="openai/gsm8k"):
        commit_of("openai/gsm8k")
    with pytest.raises(OSError, match="no/such/id"):
        commit_of("no/such/id")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**ROW, "other": 1, "empty": None}, {"messages": None, "other": 2}]), path)
    rows = read(path)
    assert [row.value for row in rows] == [ROW, {}]
    assert [row.unread for row in rows] == [{"other"}] * 2
    assert [row.position.row for row in rows] == [1, 2]


def test_parquet_with_columns_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"], "turns": [2]}), path)
    (row,) = read_rows(Source(str(path), "parquet"), max_row_bytes=100, columns=("question", "problem"))
    assert row.value == {"question": "a"}  # not a number of turns, and nothing that nobody asked for
    pq.write_table(pa.table({"question": ["a"], "turns": [["b"]]}), path)
    (row,) = read_rows(Source(str(path), "parquet"), max_row_bytes=100, columns=("question",))
    assert row.value == {"turns": ["b"]}
    pq.write_table(pa.table({"answer": ["b"]}), path)
    with refused(DataError, "answer", "question", where=str(path)):
        list(read_rows(Source(str(path), "parquet"), max_row_bytes=100, columns=("question",)))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "system": "Be kind."},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"instruction": "hi", "input": "this", "output": "ho"},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]},
    ],
)
def test_parquet_has_every_field_that_a_form_reads(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "other": 1}]), path)
    assert [found.value for found in read(path)] == [row]


def test_parquet_without_conversations(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), path)
    with refused(DataError, "question, answer", "messages", where=str(path)):
        read(path)


MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("messages", pa.string()),
        ("messages", MESSAGE),
        ("messages", pa.list_(pa.string())),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))),
        ("messages", pa.list_(pa.struct([("role", pa.int64()), ("content", pa.string())]))),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(pa.string()))]))),
        ("conversations", pa.struct([("from", pa.list_(pa.string())), ("value", pa.list_(pa.string()))])),
        ("conversations", pa.map_(pa.string(), pa.string())),
        ("turns", pa.int64()),
        ("turns", pa.list_(pa.int64())),
        ("turns", pa.list_(MESSAGE)),
        ("turns", pa.binary()),
    ],
)
def test_parquet_with_a_column_of_another_type_is_one_error(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": pa.nulls(3), name: pa.nulls(3, kind)}), path)
    found = pq.read_schema(path).field(name).type
    expected = "list<string>" if name == "turns" else "list<struct<"
    with refused(DataError, name, str(found).partition(" (")[0], expected, where=str(path)):
        read(path)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(MESSAGE),
        pa.large_list(pa.struct([("content", pa.large_string()), ("role", pa.dictionary(pa.int32(), pa.string()))])),
        pa.list_(pa.struct([("from", pa.string()), ("value", pa.string()), ("weight", pa.float64())])),
        pa.null(),
    ],
)
def test_parquet_with_another_way_to_store_the_same(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": pa.nulls(2, kind)}), path)
    assert [row.value for row in read(path)] == [{}] * 2


def test_parquet_where_one_column_of_two_holds_conversations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**ROW, "turns": 2}]), path)
    assert [row.value for row in read(path)] == [ROW]
    assert "the column turns is int64 and is not read" in caplog.text


def test_parquet_with_bytes_that_are_not_text(tmp_path: Path) -> None:
    words = pa.array([b"fine", b"\xff\xfe", b"good"]).view(pa.string())
    turns = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), words)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"turns": turns}), path)
    rows = read(path)
    assert reasons(rows) == [(1, None), (2, "not valid UTF-8"), (3, None)]
    assert rows[2].value == {"turns": ["good"]}


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"turns": [["hi"]] * 100}), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with refused(DataError, "Parquet", where=str(path)):
        read(path)


def repeated(path: Path, text: str, rows: int, per_row: int = 1) -> Path:
    """A Parquet file in which one text stands once, and is each of all values."""
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows * per_row, np.int32)), pa.array([text]))
    turns = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * per_row), values)
    pq.write_table(pa.table({"turns": turns}), path, compression="zstd", store_schema=False, write_statistics=False)
    assert path.stat().st_size < 1000
    return path


def test_a_text_that_a_small_parquet_file_repeats_is_unpacked_row_by_row(tmp_path: Path) -> None:
    """Memory is bounded by a row, whatever the file stands for: 2 GB, or 40 and 400 MB in rows that may be read."""
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    most = 0
    tracemalloc.start()
    with opened_table(str(repeated(tmp_path / "long.parquet", "a" * 2_000_000, 1024))) as file:
        for rows in table_rows(file, ["turns"], 1000, 0):
            assert str(rows) == "longer than data.max_row_bytes"
            most = max(most, pool.bytes_allocated() - before)
    with opened_table(str(repeated(tmp_path / "fits.parquet", "a" * 40_000, 1024))) as file:
        for rows in table_rows(file, ["turns"], 50_000, 0):
            assert isinstance(rows, list)
            assert all(row == {"turns": ["a" * 40_000]} for row in rows)
            most = max(most, pool.bytes_allocated() - before)
    with opened_table(str(repeated(tmp_path / "just fits.parquet", "a" * 1_000_000, 400))) as file:
        for rows in table_rows(file, ["turns"], 1_000_000, 0):
            assert isinstance(rows, list)
            most = max(most, pool.bytes_allocated() - before)
    assert most + tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_a_row_of_parquet_between_long_ones_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    turns = [["x" * 100_000], ["a"], ["b", "c"], ["x" * 30_000] * 4, [], None, ["d"]]
    pq.write_table(pa.table({"turns": turns}), path)
    rows = read(path)
    assert [row.position.row for row in rows] == list(range(1, 8))
    assert [row.value for row in rows] == [
        None, {"turns": ["a"]}, {"turns": ["b", "c"]}, None, {"turns": []}, {}, {"turns": ["d"]},
    ]  # fmt: skip


@pytest.mark.parametrize("make", ["values", "bytes", "rows"])
def test_a_parquet_file_that_stands_for_too_much_is_refused_by_row_group(tmp_path: Path, make: str) -> None:
    path = tmp_path / "rows.parquet"
    if make == "values":
        repeated(path, "a", 1, (1 << 24) + 1)
    elif make == "rows":
        pq.write_table(pa.table({"turns": pa.nulls((1 << 24) + 1, pa.list_(pa.string()))}), path, compression="zstd",
                       row_group_size=1 << 25)  # fmt: skip
    else:
        pq.write_table(pa.table({"turns": [["a" * (65 << 20)]]}), path, compression="zstd", use_dictionary=False)
    for question in (read, lambda given: count_rows(find_sources([given])[0])):
        with refused(DataError, "bytes", where=f"{path}, row group 0"):
            question(path)


def test_row_groups_that_together_stand_for_too_much_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"turns": pa.nulls((1 << 24) + 1)}), path, compression="zstd", row_group_size=1 << 23)
    with refused(DataError, "16,777,217 rows", where=f"{path}, row group 2"):
        read(path)


def test_saved_datasets(tmp_path: Path) -> None:
    import datasets

    single = datasets.Dataset.from_list([{**ROW, "other": 1}] * 2)
    single.save_to_disk(tmp_path / "single")
    datasets.DatasetDict({"test": single, "train": single.select([0])}).save_to_disk(tmp_path / "parts")
    datasets.DatasetDict({"test": single, "other": single}).save_to_disk(tmp_path / "unclear")
    datasets.DatasetDict({"test": single}).save_to_disk(tmp_path / "held out")
    assert [row.value for row in read(tmp_path / "single")] == [ROW, ROW]
    account = Account("parts")
    (parts,) = find_sources([tmp_path / "parts"])
    rows = list(read_rows(parts, max_row_bytes=1000, account=account))
    assert [(str(row.position), row.unread) for row in rows] == [(f"{tmp_path}/parts:1", {"other"})]
    assert account.to_json()["splits"] == {"test": False, "train": True}
    with refused(DataError, "test", where=str(tmp_path / "held out")):
        read(tmp_path / "held out")
    (benchmark,) = find_sources([tmp_path / "held out"], held_out_too=True)
    assert len(list(read_rows(benchmark, max_row_bytes=1000))) == 2
    with refused(DataError, "other, test", "train", where=str(tmp_path / "unclear")):
        read(tmp_path / "unclear")


def test_damaged_saved_dataset(tmp_path: Path) -> None:
    write(tmp_path / "saved" / "state.json", b"{}")
    with refused(DataError, "`datasets`", where=str(tmp_path / "saved")):
        read(tmp_path / "saved")
