"""What an error says of Prefect's server: one sentence that names the variable, or nothing; the names of flow runs."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import patch
from uuid import UUID, uuid4

import httpx
import pytest
import yaml

from deepspec.errors import DataError, LaunchError
from deepspec.recipe import read_yaml
from deepspec.record import Cost, Failure, RecordedModel, RunRecord, RunStatus
from tasks.runtime.display import Hidden
from tasks.runtime.prefect import server as prefect_server
from tasks.runtime.prefect.concurrency import free_ended
from tasks.runtime.prefect.flow import STATES
from tests.fixtures.refused import refused

ADDRESS = "http://me:hunter2@prefect.example:4200/api"


def request(address: str = "http://prefect.example:4200/api/flow_runs/") -> httpx.Request:
    return httpx.Request("POST", address)


def status(code: int, asked: httpx.Request | None = None) -> httpx.HTTPStatusError:
    asked = asked or request()
    return httpx.HTTPStatusError("no", request=asked, response=httpx.Response(code, request=asked))


def caused(outer: Exception, inner: Exception) -> Exception:
    """`outer` as it is when raised from `inner`."""
    outer.__cause__ = inner
    return outer


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", ADDRESS)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused", request=request()),
        httpx.ReadTimeout("slow", request=request()),
        httpx.RemoteProtocolError("cut"),
        status(503),
        caused(RuntimeError("Failed to reach API at http://prefect.example:4200/api/"), httpx.ConnectError("refused")),
    ],
)
def test_every_form_of_a_lost_server_is_one_sentence(error: Exception) -> None:
    found = prefect_server.named(error)
    assert isinstance(found, LaunchError)
    assert found.where == "PREFECT_API_URL http://prefect.example:4200"
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_password_names_its_variable(code: int) -> None:
    found = prefect_server.named(status(code))
    assert found is not None
    assert "does not accept the password" in str(found)
    assert "PREFECT_API_AUTH_STRING" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("something else"),
        httpx.ConnectError("refused", request=request("https://hub.example/model")),
        status(401, request("http://prefect.example:9999/other")),
        caused(DataError("bad rows"), httpx.ConnectError("refused")),
    ],
)
def test_what_is_about_other_things_is_left_alone(error: Exception) -> None:
    assert prefect_server.named(error) is None


def test_every_way_a_run_ends_is_a_state_of_its_flow_run() -> None:
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType

    assert STATES.keys() == set(get_args(RunStatus))
    assert {StateType(kind) for _, kind in STATES.values()} <= TERMINAL_STATES
    assert len({name for name, _ in STATES.values()}) == len(STATES)


def test_a_flow_run_is_named_by_its_model_and_day(tmp_path: Path) -> None:
    """Not by where a recipe lies, nor by the day of an approval; of a recipe that cannot be read the file is named."""
    from prefect.runtime import flow_run

    from flows.nightly import name_of

    path = tmp_path / "some file.yaml"
    path.write_text(yaml.safe_dump({**read_yaml("tiny"), "name": "ours"}))
    due = datetime(2026, 12, 1, 23, 30, tzinfo=UTC)
    with (
        patch.object(flow_run, "scheduled_start_time", due, create=True),
        patch.object(flow_run, "name", "brave-owl", create=True),
    ):
        assert name_of("tiny", None) == "tiny · 2026-12-01"
        assert name_of("tiny", [], "Europe/Zurich") == "tiny · 2026-12-02"
        assert name_of(str(path), ["registry.model=theirs"]) == "theirs · 2026-12-01"
        assert name_of(str(path), []) == "ours · 2026-12-01"
        path.write_text("[")
        assert name_of(str(path), None) == "some file · 2026-12-01"
        with patch.object(flow_run, "name", "tiny · 2026-11-29 · awaiting approval v7", create=True):
            assert name_of("tiny", None) == "tiny · 2026-11-29"


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"status": "promoted"}, "promoted v7"),
        ({"status": "awaiting_approval"}, "awaiting approval v7"),
        ({"status": "no_change"}, "no change"),
        ({"status": "failed", "failure": Failure(error="E", message="m", stage="train", at="t")}, "failed in train"),
    ],
)
def test_a_flow_runs_name_ends_with_how_it_ended(changes: dict[str, Any], outcome: str) -> None:
    from flows.nightly import outcome_of

    model = RecordedModel(name="tiny", version="7", uri="models:/tiny/7")
    fields = {"run_id": "r", "recipe": "tiny", "seconds": 1.0, "peak_rss_bytes": 0, "stages": (), "report": None}
    assert outcome_of(RunRecord(**fields, cost=Cost(cpu_seconds=0.0), model=model, **changes)) == outcome


LIMIT = "deepspec-cpu"


class Server:
    """What a Prefect server answers about a limit of two, its holders' notes and their flow runs."""

    def __init__(self, active: int) -> None:
        self.active = active
        self.notes: dict[str, dict[str, Any]] = {}
        self.states: dict[str, tuple[str, float]] = {}

    def holder(
        self, state: str = "RUNNING", since: float = 0.0, slots: int = 1, *, released: float | None = None
    ) -> str:
        """A holder whose flow run has been in a state for some seconds; the name of its note."""
        note, flow_run = f"{LIMIT}-holder-{uuid4().hex}", str(uuid4())
        ended = None if released is None else (datetime.now(UTC) - timedelta(seconds=released)).isoformat()
        self.notes[note] = {"run": "r", "stage": "train", "flow_run": flow_run, "slots": slots, "ended": ended}
        self.states[flow_run] = (state, since)
        return note

    def request(self, method: str, path: str, json: dict[str, Any]) -> httpx.Response:
        assert (method, path) == ("POST", "/variables/filter")
        assert json["variables"]["name"]["like_"].startswith(LIMIT)
        return httpx.Response(200, json=[{"name": name, "value": value} for name, value in self.notes.items()])

    def read_flow_runs(self, flow_run_filter: Any) -> list[Any]:
        from prefect.client.schemas.objects import FlowRun, State, StateType

        now = datetime.now(UTC)
        return [
            FlowRun(
                id=UUID(flow_run),
                flow_id=uuid4(),
                state=State(type=StateType(state), timestamp=now - timedelta(seconds=since)),
            )
            for flow_run, (state, since) in self.states.items()
            if UUID(flow_run) in flow_run_filter.id.any_
        ]

    def read_global_concurrency_limit_by_name(self, name: str) -> Any:
        from prefect.client.schemas.objects import GlobalConcurrencyLimit

        return GlobalConcurrencyLimit(name=name, limit=2, active_slots=self.active)

    def delete_variable_by_name(self, name: str) -> None:
        del self.notes[name]

    def release_concurrency_slots(self, names: list[str], slots: int, occupancy_seconds: float) -> None:
        assert names == [LIMIT]
        assert occupancy_seconds > 0
        self.active -= slots


@pytest.mark.parametrize(
    ("holder", "freed"),
    [
        ({"state": "RUNNING", "since": 9000.0}, False),
        ({"state": "CRASHED", "since": 20.0}, False),  # Prefect still has time to do it
        ({"state": "CRASHED", "since": 400.0}, True),
        ({"state": "COMPLETED", "since": 400.0}, True),
        ({"state": "CANCELLED", "since": 400.0, "slots": 2}, True),
        ({"state": "RUNNING", "released": 400.0}, True),  # gave them back to a server that had lost the lease
        ({"state": "RUNNING", "released": 20.0}, False),
    ],
    ids=str,
)
def test_a_concurrency_slot_is_freed_once_its_holder_has_ended(holder: dict[str, Any], freed: bool) -> None:
    slots = holder.get("slots", 1)
    lost = Server(active=slots)
    lost.holder(**holder)
    waited_for = free_ended(lost, LIMIT)  # type: ignore[arg-type]
    assert (lost.active, len(lost.notes), len(waited_for)) == ((0, 0, 0) if freed else (slots, 1, 1))

    taken_again = Server(active=1)  # Prefect has freed what the first one held, and a second one holds it
    taken_again.holder(**holder)
    alive = taken_again.holder()
    free_ended(taken_again, LIMIT)  # type: ignore[arg-type]
    assert taken_again.active == 1
    assert alive in taken_again.notes


def test_a_flow_run_waits_for_a_limit_and_says_for_whom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from contextlib import ExitStack, contextmanager

    from prefect.client import orchestration

    from deepspec.recipe import load_recipe
    from deepspec.store import open_store
    from tasks.runtime.prefect import concurrency
    from tasks.runtime.run import Run

    monkeypatch.setattr(concurrency, "_LOOK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(concurrency, "_LONGEST_WAIT_SECONDS", 0.1)
    said: list[str] = []

    class Listening(Hidden):
        def say(self, text: str) -> None:
            said.append(text)

    full = Server(active=2)
    full.holder(slots=2)
    open_clients = 0

    @contextmanager
    def client(*, sync_client: bool) -> Iterator[Server]:
        nonlocal open_clients
        assert sync_client
        open_clients += 1
        yield full
        open_clients -= 1

    def sleep(seconds: float) -> None:
        assert seconds == concurrency._LOOK_AGAIN_SECONDS
        assert not open_clients  # else the server closes the connection meanwhile, and the next look meets that

    monkeypatch.setattr(orchestration, "get_client", client)
    monkeypatch.setattr(concurrency, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    run = Run(load_recipe("tiny"), open_store(str(tmp_path)), tmp_path, display=Listening())
    with refused(LaunchError, LIMIT, "run r (train)"), ExitStack() as held:
        concurrency._take(run, held, "evaluate", LIMIT, 1)
    assert len(said) == 1
    assert "run r (train)" in said[0]
