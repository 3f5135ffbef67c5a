"""Tables of others are read by a process that they may end: each is then named, and the asking process goes on."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.sources.account import Account
from deepspec.data.sources.columnar import frames, process
from deepspec.data.sources.columnar.process import end_processes, parquet_rows, table_size
from deepspec.data.sources.finding import Source
from deepspec.data.sources.readers import read_rows
from deepspec.errors import DataError
from tests.fixtures.refused import refused


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    end_processes()
    yield
    end_processes()


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"turns": [[f"hello {number}", "you"] for number in range(3000)]}), file, row_group_size=500
    )
    return str(file)


def values(path: str) -> list[object]:
    return [row.value for row in parquet_rows(path, 1, 1000, ())]


def test_one_process_reads_file_after_file(path: str) -> None:
    assert table_size(path).num_groups == 6
    (first,) = process._idle
    assert len(values(path)) == 3000
    assert process._idle == [first]


@pytest.mark.parametrize(("end", "says"), [(signal.SIGABRT, "SIGABRT"), (signal.SIGALRM, "600 s")])
def test_a_file_that_ends_the_process_is_named_and_the_next_one_is_read(
    path: str, end: signal.Signals, says: str
) -> None:
    rows = parquet_rows(path, 1, 1000, ())
    next(rows)
    (reader,) = children()
    os.kill(reader, end)
    with refused(DataError, says, where=path):
        list(rows)
    assert len(values(path)) == 3000


def test_one_that_has_waited_and_ended_is_replaced(path: str) -> None:
    table_size(path)
    (reader,) = children()
    os.kill(reader, signal.SIGKILL)
    assert table_size(path).num_rows == 3000


def test_reading_that_is_broken_off_leaves_no_process(path: str) -> None:
    rows = parquet_rows(path, 1, 1000, ())
    next(rows)
    assert len(children()) == 1
    rows.close()
    assert children() == []


def test_what_json_has_no_form_for_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": [b"\xff", None], "answer": [1.5, float("inf")]}), file)
    first, second = (row.value for row in parquet_rows(str(file), 1, 1000, ("question", "answer")))
    assert isinstance(first, dict)
    assert isinstance(first["question"], frames.Foreign)
    assert (repr(first["question"]), first["answer"]) == ("b'\\xff'", 1.5)
    assert second == {"answer": float("inf")}


def test_a_relative_path_is_one_of_the_folder_that_the_asking_process_is_in(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table_size(path)
    monkeypatch.chdir(Path(path).parent)
    assert table_size("rows.parquet").num_rows == 3000


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0",
        b"\0\0\0\x05\0{",
        b"\0\0\0\x02\0[]",
        b"\xff\xff\xff\xff\0{}",
        b"\0\x01\x00\x00\0" + b"[" * 65536,
        b"\0\0\0\x01\0{",
    ],
)
def test_what_is_no_message_is_not_read(said: bytes, tmp_path: Path) -> None:
    (tmp_path / "said").write_bytes(said)
    with (tmp_path / "said").open("rb") as file, pytest.raises(frames.Broken):
        frames.read(file)


def test_an_arrow_file_that_ends_the_process_is_named(tmp_path: Path) -> None:
    """The file itself, where its folder has several."""
    rows = [{"turns": [f"hello {number}" * 100]} for number in range(3000)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set", num_shards=2)
    source = Source(str(tmp_path / "set"), "folder")
    found = read_rows(source, max_row_bytes=10_000)
    assert [next(found).value for _ in rows[:1501]] == rows[:1501]
    (reader,) = children()
    os.kill(reader, signal.SIGSEGV)
    with refused(DataError, "SIGSEGV", where="set/data-00001-of-00002.arrow"):
        list(found)
    assert len(list(read_rows(source, max_row_bytes=10_000))) == 3000


def test_a_data_set_is_loaded_by_that_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the working directory stands for one on the hub: the library looks there first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(pa.table({"turns": [[split, "you"]] * 3, "n": [1] * 3}), folder / f"{split}.parquet")
    account = Account("name")
    rows = list(read_rows(Source("owner/name", "hub"), max_row_bytes=1000, account=account))
    assert [row.value for row in rows] == [{"turns": ["train", "you"]}] * 3
    assert [str(row.position) for row in rows] == ["owner/name:1", "owner/name:2", "owner/name:3"]
    assert {row.unread for row in rows} == {frozenset({"n"})}
    assert account.to_json()["splits"] == {"test": False, "train": True}
    assert children() == []
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-9])
    with refused(DataError, where="owner/name"):
        list(read_rows(Source("owner/name", "hub"), max_row_bytes=1000))


_OPENS_OTHERS = re.compile(
    r"\b(load_from_disk|load_dataset|open_stream|pa\.memory_map|MessageReader|read_message|read_record_batch|read_feather"
    r"|ParquetDataset|ipc\.open_file|ipc\.read_\w+|pyarrow\.(dataset|feather|ipc))\b"
)
_OPENS_PARQUET = re.compile(r"\b(ParquetFile|parquet\.read_\w+|pq\.read_\w+|from_parquet|read_parquet)\b")
_OWN_PARQUET = {
    "deepspec/data/tables.py", "deepspec/store/reading/tables.py", "deepspec/store/reading/pieces.py",
    "deepspec/states/token_documents.py", "deepspec/states/format/layout.py", "deepspec/evaluation/load_test.py",
    "deepspec/evaluation/kept_answers.py", "deepspec/monitoring/subject.py",
    "deepspec/bench/tokens.py", "deepspec/bench/pair.py", "tasks/gate.py", "flows/seeds.py",
    "flows/cli/commands/compare.py",
}  # fmt: skip
"""What opens Parquet files of artifacts, which this program has written and whose bytes were checked."""


def test_nothing_else_opens_parquet_or_arrow_files_of_others() -> None:
    """Whatever opens one may be ended by it; files that are named here open the store's own."""
    root = Path(__file__).parents[2]
    room = "deepspec/data/sources/columnar/"
    others, parquet = set(), set()
    for top in ("deepspec", "tasks", "flows"):
        for file in (root / top).rglob("*.py"):
            name = file.relative_to(root).as_posix()
            text = file.read_text()
            if not name.startswith(room):
                others |= {name} if _OPENS_OTHERS.search(text) else set()
                parquet |= {name} if _OPENS_PARQUET.search(text) else set()
                opens = r"sources\.columnar(\.| import )(parquet|arrow|hub_tables|worker|batches)\b"
                assert not re.search(opens, text), f"{name} reads tables in its own process"
    assert others == set()
    assert parquet == _OWN_PARQUET
    assert all(_OPENS_OTHERS.search((root / room / name).read_text()) for name in ("arrow.py", "hub_tables.py"))
    assert _OPENS_PARQUET.search((root / room / "parquet.py").read_text())


def children() -> list[int]:
    """Processes that read for this one."""
    import psutil

    return [child.pid for child in psutil.Process().children() if process.worker.__name__ in child.cmdline()]
