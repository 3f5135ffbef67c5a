"""Parquet files are read by a process that they may end: each is then named, and the reading process goes on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.data.sources.columnar import frames, process
from deepspec.data.sources.columnar.process import end_processes, parquet_rows, table_size
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


def children() -> list[int]:
    """Processes that read for this one."""
    import psutil

    return [child.pid for child in psutil.Process().children() if process.worker.__name__ in child.cmdline()]
