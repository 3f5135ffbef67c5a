"""The history of runs in a store: what has ended is there once, in order, and damage of one hides no other."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deepspec import history
from deepspec.record import FORMAT, Cost, RunRecord
from deepspec.store import open_store
from deepspec.store.backends.contract import Backend
from deepspec.store.copy_store import copy_store
from deepspec.store.gc import collect
from deepspec.store.records import seal


def record(run_id: str, **fields: Any) -> RunRecord:
    empty: dict[str, Any] = {"recipe": "tiny", "seconds": 90.0, "peak_rss_bytes": 1, "stages": (), "report": None}
    return RunRecord(**{"run_id": run_id, "status": "refused", "cost": Cost(cpu_seconds=1.0), **empty, **fields})


NOVEMBER, DECEMBER, NEW_YEAR = (record(f"{day}-020000-{day[-2:]}aaaa") for day in ("20261130", "20261201", "20270101"))


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    found = open_store(str(tmp_path / "store")).backend
    for one in (NEW_YEAR, NOVEMBER, DECEMBER):
        history.publish(found, one)
    return found


def test_runs_come_back_oldest_first_as_they_were(backend: Backend) -> None:
    assert history.records(backend) == [NOVEMBER, DECEMBER, NEW_YEAR]
    assert {path.split("/")[1] for path in backend.list("history")} == {"2026-11", "2026-12", "2027-01"}


def test_a_span_has_its_first_moment_and_not_its_last(backend: Backend) -> None:
    began = history.started_at(DECEMBER)
    assert began == datetime(2026, 12, 1, 2, tzinfo=UTC)
    assert history.ended_at(DECEMBER) - began == timedelta(seconds=90)
    assert history.records(backend, since=began, until=history.started_at(NEW_YEAR)) == [DECEMBER]


def test_what_was_published_stays(backend: Backend) -> None:
    history.publish(backend, DECEMBER.model_copy(update={"status": "promoted"}))
    assert history.records(backend)[1].status == "refused"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"checksum": "x"}', seal({"format": FORMAT + 1}), seal({"a": 1})])
def test_a_record_that_cannot_be_read_is_said_and_hides_no_other(
    backend: Backend, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    backend.create("history/2026-12/20261202-020000-bbbbbb.json", content)
    backend.create("history/2026-12/no time.json", content)
    with caplog.at_level(logging.WARNING):
        assert history.records(backend) == [NOVEMBER, DECEMBER, NEW_YEAR]
    assert "1 records of runs cannot be read" in caplog.text


def test_a_store_that_refuses_fails_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "history").write_text("in the way")
    history.publish(open_store(str(tmp_path / "store")).backend, DECEMBER)
    assert DECEMBER.run_id in caplog.text


def test_collectors_leave_it_and_copies_have_it(backend: Backend, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    collect(store, list, grace_seconds=0.0)
    other = open_store(str(tmp_path / "other"))
    copy_store(store, other)
    assert history.records(other.backend) == history.records(backend) == [NOVEMBER, DECEMBER, NEW_YEAR]
