"""`deepspec monitor` on a store with a champion, from a log and from a server's counters."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from deepspec.errors import BadArgument, LeaseHeld
from deepspec.gates.verdict import Reason, Verdict
from deepspec.monitoring.subject import memory_of
from deepspec.registry.entries import DraftReference
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Store, open_store
from deepspec.store.lease import leased
from flows.cli.commands.monitor import Source, look
from flows.cli.main import app
from tests.fixtures.refused import refused
from tests.fixtures.simulated_traffic import answers, tilt_for


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With a champion that has no evaluation."""
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    monkeypatch.setenv("DEEPSPEC_STORE", str(tmp_path / "store"))
    found = open_store(str(tmp_path / "store"))
    reason = Reason(gate="tau_gain", passed=True, measured=2.0, required=1.0, sentence="It is better.")
    draft = DraftReference(kind="train", key="0" * 64, digest="0" * 64, version="1")
    PromotionLog(found.backend).promote("demo", draft, Verdict(accepted=True, reasons=(reason,)), who="test")
    return found


def rows(windows: int, tilt: float = 0.0) -> str:
    """Replies like SGLang's."""
    found = []
    for tokens, rounds in answers(np.random.default_rng(windows), 1, 93 * windows, tilt).astype(int).tolist():
        meta = {
            "finish_reason": {"type": "stop"},
            "completion_tokens": tokens + 1,
            "spec_verify_ct": rounds,
            "spec_num_proposed_drafts": 7 * rounds,
            "spec_num_correct_drafts": tokens - rounds,
        }
        found.append(json.dumps({"response": {"meta_info": meta}, "domain": "code"}) + "\n")
    return "".join(found)


def monitor(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["monitor", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_looks_go_on_where_the_last_ended_and_an_alarm_is_an_exit_code(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(rows(25))
    code, first = monitor("demo", "--log", str(log))
    assert (code, first["alarms"]) == (0, [])
    assert {stream["name"] for stream in first["streams"]} == {"all traffic", "code"}
    with log.open("a") as file:
        file.write(rows(9, tilt_for(1, 0.25)))
    code, second = monitor("demo", "--log", str(log))
    assert code == 3
    assert second["answers"] == 93 * 9
    assert {alarm["finding"]["stream"] for alarm in second["alarms"]} == {"all traffic", "code"}
    assert second["alarms"][0]["causes"][0]["name"] == "unexplained"
    code, third = monitor("models:/demo@champion", "--log", str(log))
    assert (code, third["answers"], third["alarms"], third["earlier_alarms"]) == (0, 0, [], 2)
    assert memory_of("models:/demo/1", store).alarms[0].number == 1


def test_a_second_monitor_of_a_model_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with leased(store.backend, "monitor/demo"), refused(LeaseHeld, where="monitor/demo"):
        look(Source("demo", None, tmp_path / "log", None), store)


def test_what_is_named_wrongly_is_refused(store: Store, tmp_path: Path) -> None:
    with refused(BadArgument, "other", where="MODEL"):
        look(Source("other", None, tmp_path / "log", None), store)
    with refused(BadArgument, "one source", where="monitor"):
        Source("demo", "http://127.0.0.1:1", tmp_path / "log", None)
    with refused(BadArgument, "log", where="--log"):
        look(Source("demo", None, tmp_path / "missing", None), store)


@contextmanager
def server(counts: dict[str, int]) -> Iterator[str]:
    """Counters as vLLM 0.32.0 writes them, its version and its list of models."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            replies = {
                "/version": json.dumps({"version": "0.32.0"}),
                "/v1/models": json.dumps({"data": [{"id": "target", "root": "/t", "owned_by": "vllm"}]}),
                "/metrics": "".join(
                    f'# TYPE vllm:{name} counter\nvllm:{name}_total{{engine="0",model_name="target"}} {count}\n'
                    for name, count in counts.items()
                ),
            }
            body = replies.get(self.path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_servers_counters_are_read_as_differences(store: Store) -> None:
    counts = {
        "spec_decode_num_drafts": 9000,
        "spec_decode_num_accepted_tokens": 20_000,
        "generation_tokens": 29_900,
        "request_success": 900,
    }
    with server(counts) as url:
        source = Source("demo", url, None, None)
        assert look(source, store).answers == 0
        for _ in range(6):
            counts["spec_decode_num_drafts"] += 500
            counts["generation_tokens"] += 2050
            counts["request_success"] += 50
            found = look(source, store)
            assert found.answers == 1
        assert found.streams[0].windows == 3
        assert found.streams[0].tau == pytest.approx(4.0)
        counts.update(dict.fromkeys(counts, 10))
        found = look(source, store)
        assert (found.answers, found.alarms) == (0, ())
        assert any("restarted" in sentence for sentence in found.said)
    says = memory_of("demo", store).says
    assert (says.target, says.engine) == ("target", "vllm 0.32.0")
