"""An alarm as an event of a real Prefect server, and without one."""

import os
import subprocess
import sys
import time

import httpx
import pytest

from tasks.runtime.prefect.events import DRIFT_ALARM, emit_drift_alarm
from tests.fixtures.nights import prefect_server

_EMIT = "from tasks.runtime.prefect.events import emit_drift_alarm as e; print(e('demo', {'number': 1}))"


def test_without_a_server_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert not emit_drift_alarm("demo", {"number": 1})
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert not emit_drift_alarm("demo", {"number": 1})
    assert "not sent" in caplog.text


@pytest.mark.full
def test_an_alarm_is_an_event() -> None:
    """Over ten seconds: Prefect's server starts, and the process that emits ends, which sends what is still waiting."""
    address = prefect_server()
    environment = {**os.environ, "PREFECT_API_URL": address}
    done = subprocess.run([sys.executable, "-c", _EMIT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    wanted = {"filter": {"event": {"name": [DRIFT_ALARM]}}}
    for _ in range(60):
        events = httpx.post(f"{address}/events/filter", json=wanted, timeout=20).json()["events"]
        if events:
            break
        time.sleep(0.5)
    [event] = events
    assert event["resource"]["prefect.resource.id"] == "deepspec.model.demo"
    assert event["payload"] == {"number": 1}
