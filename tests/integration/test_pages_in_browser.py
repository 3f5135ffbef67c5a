"""Six questions, and where in Prefect's and in MLflow's own pages their answers stand, on a seeded month of two models.

What runs now, how far, until when; what it cost; which draft is champion and why; how τ has moved; whether anything
fails; what is served where. The pages are opened in a browser, on both real servers, with a run under way; whatever
they ask for is on this machine, and there. Two servers, a browser, and a hundred runs to show: half a minute.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httpx
import pytest
from prefect import flow
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deepspec.registry import keys
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.store import open_store
from tasks.runtime.outlook import Outlook
from tasks.runtime.prefect.pages import WholeRun
from tasks.runtime.run import Run
from tests.fixtures.browser import Browser, Opened, browser
from tests.fixtures.month import TEAMS, Month, recipe_of
from tests.fixtures.month_pages import seed_everywhere
from tests.fixtures.page_servers import PageServers, page_servers

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

QWEN, _ = TEAMS
WINDOWS = [(1280, 900), (480, 900)]
NOTE = "[data-testid=note-editor-preview-content]"
"""Text in MLflow's pages that is written as Markdown: the description of a model, a version, a run."""
ARTIFACT = ".artifact-data-markdown"
"""The same on the page of an artifact in Prefect."""
TRAINING = "workflowType=machine_learning"
NOT_OURS = ("/favicon.ico", "/ico/undefined.svg", "/mlflow/users/current")
"""What a browser asks every site for; what Prefect's page of a flow run asks for before it knows the run's state; and
who one is, which MLflow's pages ask, and only a server with passwords knows."""


class Shown(NamedTuple):
    """Servers with a month and a run under way, and a browser.

    Attributes:
        servers, tab, month: these.
        running: the name of the run that is under way.
        tracking: MLflow, for ids.
        shots: where pictures of the pages are left.
        opened: the pages that the present test has opened.
    """

    servers: PageServers
    tab: Browser
    month: Month
    running: str
    tracking: Tracking
    shots: Path
    opened: list[Opened]

    def open(self, server: str, path: str, window: tuple[int, int] = WINDOWS[0]) -> None:
        """Open a page of a server."""
        self.opened.append(self.tab.open(f"{getattr(self.servers, server)}/{path}", *window))

    def picture(self, name: str) -> None:
        """Leave a picture of the page, once it is complete."""
        self.tab.settle()
        self.tab.screenshot(self.shots / f"{name}.png", whole=False)

    def run_id(self, name: str) -> str:
        """MLflow's id of a run."""
        found = self.tracking._server.client.search_runs(
            [self.tracking.experiment_id], f"attributes.run_name = '{name}'"
        )
        return str(found[0].info.run_id)

    def artifact(self, key: str) -> str:
        """The path of the newest artifact's page in Prefect."""
        asked = {"artifacts": {"key": {"any_": [key]}}}
        found = httpx.post(f"{self.servers.prefect}/api/artifacts/latest/filter", json=asked, timeout=60).json()
        return f"artifacts/artifact/{found[0]['latest_id']}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("pages")
    home = folder / "home"
    tracking = Tracking.embedded(home)
    assert tracking.experiment_id  # so the database is there
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        servers = stack.enter_context(page_servers(folder, home))
        patch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
        settings = {PREFECT_API_URL: f"{servers.prefect}/api", PREFECT_HOME: folder / "client"}
        stack.enter_context(temporary_settings(settings))
        month = seed_everywhere(open_store(str(folder / "store")), tracking)
        running = stack.enter_context(_Running(month, tracking, home, settings))
        tab = stack.enter_context(browser(folder))
        yield Shown(servers, tab, month, running.name, tracking, folder, [])


class _Running:
    """A run under way, in a flow run of its own: in the middle of the training of an hour."""

    def __init__(self, month: Month, tracking: Tracking, home: Path, settings: dict[Any, Any]) -> None:
        recipe = recipe_of(QWEN)
        self.run: Run[Any] = Run(recipe, month.store, home, on_shared_server=True, tracking=tracking)
        self.run.outlook = Outlook({"tokens": 600.0, "train": 3000.0, "evaluate": 600.0})
        self.name = keys.run_name(QWEN.model, self.run.run_id)
        self.run.tracking_run = tracking.start_pipeline_run(self.name, {})
        self._settings = settings
        self._begun, self._looked_at = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._go)

    def _go(self) -> None:
        @flow(name="retrain", flow_run_name=self.name)
        def retrain() -> None:
            whole = WholeRun(self.run)
            whole.begin("tokens")
            whole.end()
            whole.begin("train")
            whole.advance(0.5)
            self._begun.set()
            self._looked_at.wait()

        with temporary_settings(self._settings):
            retrain()
            EventsWorker.drain_all()  # while there is a server that they can be sent to

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._begun.wait(120)
        return self

    def __exit__(self, *error: object) -> None:
        self._looked_at.set()
        self._thread.join()


@pytest.fixture(autouse=True)
def asked(shown: Shown) -> Iterator[None]:
    """No page of a test asks for what is not there, or is elsewhere."""
    shown.opened.clear()
    yield
    shown.tab.settle()
    assert shown.opened
    for page in shown.opened:
        asked_for = [urlsplit(url) for url in page.requests if url.startswith(("http", "ws"))]
        assert {url.hostname for url in asked_for} == {"127.0.0.1"}
        assert [(status, url) for status, url in page.refused if not urlsplit(url).path.endswith(NOT_OURS)] == []


def run_page(shown: Shown, name: str) -> str:
    """The path of a run's page in MLflow."""
    return f"#/experiments/{shown.tracking.experiment_id}/runs/{shown.run_id(name)}?{TRAINING}"


def test_what_runs_now_how_far_and_until_when(shown: Shown) -> None:
    shown.open("prefect", "runs")
    shown.tab.see(shown.running, ".flow-run-list-item")
    shown.open("prefect", shown.artifact("run-progress"))
    said = shown.tab.see("Running: train (stage 2 of 3), 50 % done", ".artifact")
    assert "expected to end at " in said
    shown.picture("prefect-now")
    shown.open("mlflow", run_page(shown, shown.running))
    said = shown.tab.see("Running: train (stage 2 of 3)", NOTE)
    assert "expected to end at " in said
    assert "Running" in shown.tab.see("Running", "[data-testid='key-value-Status']")
    shown.picture("mlflow-now")


@pytest.mark.parametrize("window", WINDOWS)
def test_champion_why_followers_failures_cost_and_acceptance(shown: Shown, window: tuple[int, int]) -> None:
    shown.open("prefect", "artifacts", window)
    shown.tab.see(f"model-{QWEN.model}", ".artifact-card__title")
    pages = {"prefect": (shown.artifact(f"model-{QWEN.model}"), ARTIFACT)}
    pages["mlflow"] = f"#/models/{QWEN.model}?{TRAINING}", NOTE
    for server, (path, selector) in pages.items():
        shown.open(server, path, window)
        said = shown.tab.see("Champion", selector)
        assert "version 18 since 2026-12-01 03:50 UTC, by nightly (MLflow user)" in said
        assert "Why: Accepted: τ 3.439 against the champion's 3.377" in said
        assert "No: the last run ended as promoted." in said
        assert "Failed or interrupted in 31 days: 2 of 30." in said
        rows = [line.split("\t") for line in said.splitlines() if "\t" in line]
        assert ["gpu-03", "version 14 (not the champion)", "unhealthy"] in [row[:3] for row in rows]
        assert ["gate", "3.00", "3.09", "3.18", "3.29", "3.38", "3.44", "+0.44"] in rows
        assert {"gsm8k", "domain math", "domain code", "domain chat"} <= {row[0] for row in rows}
        assert "December 2026: 3.67 USD, 1.5 GPU hours" in said
        shown.picture(f"{server}-model-{window[0]}")


def test_a_roll_back_and_what_waits_are_said(shown: Shown) -> None:
    shown.open("mlflow", f"#/models/gemma4-12b?{TRAINING}")
    said = shown.tab.see("Champion", NOTE)
    assert "by ada (MLflow user): Answers in production are shorter." in said
    assert "it was rolled back to, from version 9" in said
    assert "waits for a person's approval" in said


def test_what_a_night_came_to(shown: Shown) -> None:
    """Its verdict, cost and acceptance: on its flow run's page by the summary, and on its run's in MLflow."""
    name = f"{QWEN.model} · 2026-12-01 · promoted v18"
    shown.open("prefect", "runs")
    shown.tab.see(name, ".flow-run-list-item")
    shown.tab.see("Failed", ".state-badge")
    shown.open("mlflow", run_page(shown, name))
    said = shown.tab.see("tau_gain", NOTE)
    assert "Cost: 3.67 USD (1.47 GPU hours), 110 min." in said
    assert shown.tab.see("nightly", "[data-testid='key-value-Created by']")
    shown.tab.see("tau/domain/math")
    shown.picture("mlflow-night")


def test_a_version_says_its_verdict(shown: Shown) -> None:
    """MLflow asks for a file of its own there, which the version has."""
    shown.open("mlflow", f"#/models/{QWEN.model}/versions/18?{TRAINING}")
    shown.tab.see("surely more than", NOTE)
    shown.tab.settle()
    assert any("get-artifact?path=MLmodel" in url for url in shown.opened[-1].requests)
    shown.picture("mlflow-version")


def test_every_version_stands_in_one_chart(shown: Shown) -> None:
    chart = shown.tracking.chart_of(QWEN.model)
    history = shown.tracking._server.client.get_metric_history(chart, "tau/gate")
    wanted = [(int(night.draft.version or 0), night.tau) for night in shown.month.of(QWEN.model) if night.draft]
    assert [(point.step, point.value) for point in history] == wanted
    shown.open("mlflow", f"#/experiments/{shown.tracking.experiment_id}/runs/{chart}/model-metrics?{TRAINING}")
    shown.tab.settle()
    for measure in ("tau/gate", "tau/gsm8k"):
        shown.tab.see(f"{QWEN.model} · all versions ({measure})")
    shown.picture("mlflow-charts")


def test_the_experiment_lists_nights_by_name(shown: Shown) -> None:
    shown.open("mlflow", f"#/experiments/{shown.tracking.experiment_id}/runs?{TRAINING}")
    shown.tab.see(shown.running)
    assert "GenAI apps" not in shown.tab.see("Runs")
    shown.picture("mlflow-experiment")
