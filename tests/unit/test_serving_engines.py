"""Servers whose draft changes: by their own calls, by a restart, or not at all, and what the store then says of them.

The servers are stand-ins (`tests/fixtures/engines/stand_in.py`), started, asked and ended as engines are; a real vLLM
does the same in `tests/integration/test_serve.py`.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepspec.errors import TransientError
from deepspec.registry.draft_names import RegisteredName
from deepspec.serving.errors import EngineEnded, NotUpdatable
from deepspec.serving.follow import Following, Settings
from deepspec.serving.followers import followers
from deepspec.serving.launch import Launch, Server
from deepspec.serving.live import Sglang, Vllm
from deepspec.serving.names import Draft
from deepspec.serving.prepare import Prepared
from deepspec.serving.process import EngineProcess
from deepspec.serving.pull import Pulled, pull
from deepspec.serving.serving import Endpoint, OwnServer, version_of
from deepspec.serving.swap import Place
from deepspec.store import Store, open_store
from tests.fixtures import engines
from tests.fixtures.refused import refused
from tests.fixtures.serving import MODEL, promote
from tests.fixtures.store import ingredients, put

STAND_IN = Path(engines.__file__).parent / "stand_in.py"
NAME = RegisteredName(MODEL, None, "champion")


class Host:
    """A host with a store, a server of one engine, and what was said there."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.store: Store = open_store(str(folder / "store"))
        self.place = Place(folder / "serving")
        self.log = folder / "engine.log"
        self.said: list[str] = []
        self._engine = engine
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
        python.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = Server(str(python), folder, "target", "127.0.0.1", port, live=True)
        self.url = f"http://127.0.0.1:{port}"
        self.own = OwnServer(self.server, self.prepare, self.log, self.said.append)

    def prepare(self, _held: Pulled, folder: Path) -> Prepared:
        """What is pulled is in the stand-in's format already."""
        return Prepared(self._engine, folder, "eagle3", 5)

    def champion(self, name: str, **config: Any) -> Draft:
        """Make a draft the champion."""
        files = {"draft/config.json": json.dumps({"architectures": ["draft"], "name": name, **config}).encode()}
        return promote(self.store, put(self.store, ingredients("train", name=name), files), name)

    def hold(self, draft: Draft) -> bool:
        outcome = pull(draft, self.store, self.place)
        return self.own.hold(outcome.held, outcome.folder)

    def runs(self) -> str:
        """The name of the draft that the server has loaded, and what it says of it."""
        state = httpx.get(f"{self.url}/stand_in").json()
        config = json.loads((Path(state["directory"]) / "config.json").read_text())
        return f"{config['name']}, {state['version']}"

    @property
    def process(self) -> EngineProcess:
        assert self.own._process is not None
        return self.own._process


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """Makes hosts; what they started is ended."""
    with ExitStack() as stack:

        def make(engine: str) -> Host:
            found = Host(tmp_path, engine)
            stack.enter_context(found.own)
            return found

        yield make


def says(draft: Draft) -> str:
    """What a server says of a draft that it was given."""
    return f"{draft.version}, {MODEL}/{draft.version} {draft.digest[:12]}"


def test_a_new_draft_is_given_to_the_server_that_runs(host: Callable[[str], Host]) -> None:
    there = host("vllm")
    first = there.champion("1")
    assert there.hold(first)
    assert there.runs() == says(first)
    pid = there.process.pid
    second = there.champion("2")
    assert there.hold(second)
    assert not there.hold(second)
    assert there.runs() == says(second)
    assert there.process.pid == pid
    assert there.said == []


def test_a_draft_of_another_shape_takes_a_restart(host: Callable[[str], Host]) -> None:
    there = host("vllm")
    there.hold(there.champion("1"))
    pid = there.process.pid
    other = there.champion("2", architectures=["another"])
    assert there.hold(other)
    assert there.process.pid != pid
    assert there.runs() == says(other)
    assert "architectures" in there.said[0]


def test_sglang_is_restarted_since_its_call_would_change_the_target(host: Callable[[str], Host]) -> None:
    there = host("sglang")
    there.hold(there.champion("1"))
    pid = there.process.pid
    assert there.hold(there.champion("2"))
    assert there.process.pid != pid
    assert there.runs() == "2, default"
    assert "the target, too" in there.said[0]


def test_sglang_is_asked_where_its_call_says_which_model_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """No release has that field yet; the replies are made from the call's others (0.5.23, io_struct)."""
    sent: list[tuple[str, Any]] = []
    fields = {"model_path": {}, "weight_version": {}, "selector": {}}
    body = {"content": {"application/json": {"schema": {"properties": fields}}}}
    replies = {
        "/openapi.json": {"paths": {"/update_weights_from_disk": {"post": {"requestBody": body}}}},
        "/update_weights_from_disk": {"success": True, "message": "Succeeded to update model weights."},
        "/model_info": {"weight_version": "v"},
    }

    def reply(_: Any, _method: str, path: str, given: Any) -> httpx.Response:
        sent.append((path, given))
        return httpx.Response(200, json=replies[path])

    monkeypatch.setattr("deepspec.serving.live._Calls._reply", reply)
    Sglang("http://there").update(Path("/d"), "v")
    given = {"model_path": "/d", "selector": "draft", "weight_version": "v"}
    assert sent == [("/openapi.json", None), ("/update_weights_from_disk", given), ("/model_info", None)]


@pytest.mark.parametrize("client", [Vllm, Sglang])
def test_a_servers_own_words_are_short_and_without_the_key(
    client: type[Vllm] | type[Sglang], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "the key secret-key is refused\x1b[31m\n" * 100
    reply = httpx.Response(500, json={"error": {"message": words}})
    monkeypatch.setattr("deepspec.serving.live._Calls._reply", lambda *_: reply)
    with pytest.raises(NotUpdatable) as caught:
        client("http://127.0.0.1:9", "secret-key").version()
    said = str(caught.value)
    assert "the key *** is refused" in said
    assert "secret-key" not in said
    assert "\x1b" not in said
    assert len(said) < 500


def test_a_draft_with_which_it_does_not_start_leaves_the_one_before(host: Callable[[str], Host]) -> None:
    there = host("vllm")
    first = there.champion("1")
    there.hold(first)
    broken = there.champion("2", architectures=["another"], broken=True)
    with refused(EngineEnded, "exit code 1", "ValueError: No such draft can be loaded", where=there.url) as caught:
        there.hold(broken)
    assert str(there.log) in str(caught.value.remedy)
    assert "No such draft" in there.log.read_text()
    assert there.runs() == says(first)
    pid = there.process.pid
    with refused(EngineEnded, "ValueError"):
        there.hold(broken)
    assert there.process.pid == pid
    assert there.hold(there.champion("3"))


def test_a_server_that_dies_is_said(host: Callable[[str], Host]) -> None:
    there = host("vllm")
    there.hold(there.champion("1"))
    there.own.wait(0.0)
    os.kill(there.process.pid, signal.SIGKILL)
    with refused(EngineEnded, "signal 9", where=there.url):
        there.own.wait(30.0)


def test_what_was_started_ends_with_the_block(host: Callable[[str], Host]) -> None:
    there = host("vllm")
    with there.own:
        there.hold(there.champion("1"))
    assert there.process.wait(0.0) == 0
    with pytest.raises(httpx.ConnectError):
        there.runs()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("WARNING OSError: many files\nserver.py: error: argument --x: wrong value\n", ": argument --x: wrong value."),
        ("(Worker) ERROR vllm.exceptions.BadError: too long.\nRuntimeError: See root cause above.\n", "BadError: too"),
        ("Loading.\n", "exit code 2."),
    ],
)
def test_the_first_failure_that_it_named_is_the_reason(said: str, why: str, tmp_path: Path) -> None:
    """The lines are as vLLM writes them."""
    script = f"import sys; sys.stderr.write({said!r}); sys.exit(2)"
    draft = Prepared("vllm", tmp_path, "eagle3", 5)
    process = EngineProcess(Launch((sys.executable, "-c", script), {}, draft, "http://127.0.0.1:1"), tmp_path / "log")
    process.wait()
    with refused(EngineEnded, why, where="127.0.0.1") as caught:
        process.refuse_ended()
    assert "many files" not in caught.value.what


def test_what_has_not_answered_yet_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM forgets a SIGTERM that comes while it loads, and would be waited for as if it finished answers."""
    monkeypatch.setattr("deepspec.serving.process._STARTING_SECONDS", 0.1)
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    draft = Prepared("vllm", tmp_path, "eagle3", 5)
    process = EngineProcess(Launch((sys.executable, "-c", script), {}, draft, "http://127.0.0.1:1"), tmp_path / "log")
    while "deaf" not in (tmp_path / "log").read_text():
        process.refuse_ended()
    assert process.end() == -signal.SIGKILL


# --- a server that somebody else started -----------------------------------------------------------------------------


@pytest.fixture
def started(host: Callable[[str], Host]) -> Host:
    """A vLLM that was started with a draft."""
    there = host("vllm")
    there.hold(there.champion("1"))
    return there


def follower(there: Host) -> Following:
    server = Endpoint("vllm", there.url, there.prepare)
    return Following(NAME, there.store, there.place, Settings(server=server), say=there.said.append)


def record(there: Host) -> tuple[str, str, str]:
    (seen,) = followers(there.store.backend)
    return seen.follower.version, seen.state, seen.follower.trouble


def test_a_follower_gives_each_champion_to_the_server(started: Host) -> None:
    following = follower(started)
    following.poll()
    assert record(started) == ("1", "healthy", "")
    second = started.champion("2")
    following.poll()
    assert started.runs() == says(second)
    assert record(started) == ("2", "healthy", "")


def test_a_server_that_refuses_is_unhealthy_and_not_asked_again(started: Host) -> None:
    following = follower(started)
    following.poll()
    started.champion("2", architectures=["another"])
    said = len(started.said)
    for _ in range(3):
        following.poll()
    version, state, trouble = record(started)
    assert (version, state) == ("2", "unhealthy")
    assert "another" in trouble
    assert len([line for line in started.said[said:] if "does not run" in line]) == 1
    third = started.champion("3")
    following.poll()
    assert started.runs() == says(third)
    assert record(started) == ("3", "healthy", "")


def test_a_server_that_says_another_version_is_unhealthy(started: Host) -> None:
    following = follower(started)
    started.champion("2", forgets=True)
    following.poll()
    version, state, trouble = record(started)
    assert (version, state) == ("2", "unhealthy")
    assert f"{MODEL}/1" in trouble


def test_a_server_that_is_away_is_asked_again(started: Host) -> None:
    following = follower(started)
    started.process.end()
    second = started.champion("2")
    following.poll()
    assert record(started)[1] == "unhealthy"
    restarted = OwnServer(started.server, started.prepare, started.log, started.said.append)
    with restarted:
        held = following.held
        assert held is not None
        restarted.hold(held.model_copy(update={"version": "0"}), started.place.link.resolve())
        following.poll()
        assert started.runs() == says(second)
        assert record(started) == ("2", "healthy", "")


def test_an_update_that_another_left_open_is_taken_over(started: Host) -> None:
    httpx.post(f"{started.url}/start_draft_weight_update").raise_for_status()
    second = started.champion("2")
    outcome = pull(second, started.store, started.place)
    assert Endpoint("vllm", started.url, started.prepare).hold(outcome.held, outcome.folder)
    assert started.runs() == says(second)


def test_a_server_that_was_not_started_for_it_says_so(tmp_path: Path, host: Callable[[str], Host]) -> None:
    there = host("vllm")
    outcome = pull(there.champion("1"), there.store, there.place)
    there.own._server = Server(**{**vars(there.server), "live": False})
    there.own.hold(outcome.held, outcome.folder)
    with refused(NotUpdatable, "/weight_info", where=there.url):
        Endpoint("vllm", there.url, there.prepare).hold(outcome.held, outcome.folder)
    there.own.end()
    with refused(TransientError, "/weight_info", where=there.url):
        Endpoint("vllm", there.url, there.prepare).hold(outcome.held, outcome.folder)


def test_a_draft_that_is_not_registered_is_named_by_its_key(tmp_path: Path, host: Callable[[str], Host]) -> None:
    there = host("vllm")
    draft = there.champion("1")
    held = pull(Draft("", "", draft.kind, draft.key, draft.digest), there.store, there.place).held
    assert version_of(held) == f"train/{draft.key[:12]} {draft.digest[:12]}"
