"""The proxies of the environment: this machine is asked directly, and what cannot be used is said by name."""

import contextlib
import http.server
import os
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepspec import network
from deepspec.errors import RecipeError
from deepspec.evaluation.server.counters import ServerMetrics
from deepspec.network import ask_this_machine_directly, heeds_proxies, without_socks
from tasks.runtime.prefect import server as prefect_server
from tests.fixtures.refused import refused

SOCKS = "socks5://proxy.example:1080"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def _no_socksio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_spec", lambda name: None)


@contextlib.contextmanager
def here() -> Iterator[str]:
    """A server of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_this_machine_is_asked_directly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing answers
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(variable, "")  # so that it is taken back
    ask_this_machine_directly(os.environ)
    with here() as url:
        assert urllib.request.urlopen(url, timeout=5).read() == b"here"  # noqa: S310
        assert httpx.get(url, timeout=5).text == "here"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "a.example, localhost"}, "a.example,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "b.example"}, "b.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "*"}, None),
    ],
)
def test_exceptions_that_were_made_already_stay(before: dict[str, str], after: str | None) -> None:
    environment = dict(before)
    ask_this_machine_directly(environment)
    ask_this_machine_directly(environment)
    assert environment == (before if after is None else {"no_proxy": after, "NO_PROXY": after})


@pytest.mark.usefixtures("_no_socksio")
@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy", "HTTP_PROXY"])
def test_a_socks_proxy_that_cannot_be_used_stands_in_no_local_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SOCKS)
    with without_socks({"MLFLOW_TRACKING_URI": "sqlite:////tmp/mlflow.db", "PREFECT_API_URL": "http://localhost:4200"}):
        assert name not in os.environ
        httpx.Client().close()
        # What is asked elsewhere would go past the proxy now.
        with refused(RecipeError, name, where="run.endpoints"):
            heeds_proxies("http://server.example", where="run.endpoints")
        assert not heeds_proxies("http://localhost:8000", where="run.endpoints")
    assert os.environ[name] == SOCKS
    with refused(RecipeError, name, where="PREFECT_API_URL"), without_socks({"PREFECT_API_URL": "https://far.example"}):
        pass
    with refused(RecipeError, name, where="server.example"), ServerMetrics("http://server.example"):
        pass
    with ServerMetrics("http://127.0.0.1:8000"):
        pass


def test_other_proxies_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    assert heeds_proxies("http://server.example", where="x")
    with without_socks({"PREFECT_API_URL": "https://far.example"}):
        assert os.environ["ALL_PROXY"] == "http://proxy.example:3128"


@pytest.mark.usefixtures("_no_socksio")
def test_a_run_with_a_server_elsewhere_says_so_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("all_proxy", SOCKS)
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    with refused(RecipeError, "all_proxy", where="PREFECT_API_URL"), prefect_server.server(tmp_path):
        pass
