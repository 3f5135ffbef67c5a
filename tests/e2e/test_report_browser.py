"""The pages in a real browser: they ask for nothing, complain about nothing, run nothing, and fit a laptop and a phone.

Screenshots are left in the test's folder, to be looked at.
"""

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deepspec.evaluation.compare.results import Comparison
from deepspec.reports.comparison_page import write_comparison
from deepspec.reports.run_page import RunReport, write_report
from tests.e2e.conftest import Home
from tests.fixtures.browser import Browser, browser
from tests.fixtures.reports import HOSTILE, benchmark, comparison, everything

pytestmark = pytest.mark.full

WINDOWS = [(1280, 800), (390, 844)]
SECTIONS = ("Verdict", "Results", "Acceptance by position", "Calibration", "Under load", "Answers, round by round")
_WIDER_THAN_WINDOW = """
[...document.body.querySelectorAll("*")]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".wide, .drawing, pre"))
  .map(e => e.outerHTML.slice(0, 200))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def looked_at(tab: Browser, tmp_path: Path) -> Callable[..., str]:
    """Open a page in a window, check what every page must hold, and return the text that is shown."""

    def look(page: Path, window: tuple[int, int], *, dark: bool = False) -> str:
        opened = tab.open(page, *window, dark=dark)
        tab.evaluate('document.querySelectorAll("details").forEach(part => part.open = true)')
        assert opened.requests == [page.absolute().as_uri()]
        assert opened.complaints == []
        assert opened.dialogs == []
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
        assert tab.evaluate(_WIDER_THAN_WINDOW) == []
        assert tab.evaluate("document.scripts.length + document.images.length") == 0
        shot = tmp_path / f"{page.parent.name}-{window[0]}{'-dark' if dark else ''}.png"
        tab.screenshot(shot)
        assert shot.stat().st_size > 20_000
        return str(tab.evaluate("document.body.innerText"))

    return look


@pytest.fixture(scope="module")
def measured(cold: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that measured all there is."""
    home = Home(tmp_path_factory.mktemp("measured") / "home")
    shutil.copytree(cold.path, home.path, copy_function=shutil.copy2)
    load = "evaluate.load={concurrency: [1, 2], num_repeats: 2, max_new_tokens: 8}"
    home.run("run", "tiny", "--set", load, "--set", "evaluate.thresholds=[0.0, 0.5]", code=None, draws=True)
    return Path(home.record()["report"])


@pytest.mark.parametrize("window", WINDOWS)
def test_a_runs_report(measured: Path, looked_at: Callable[..., str], tab: Browser, window: tuple[int, int]) -> None:
    said = looked_at(measured, window)
    for text in ("arithmetic", *SECTIONS):
        assert text in said
    assert tab.evaluate('document.querySelectorAll("svg").length') == 12
    assert "is missing" not in said


@pytest.fixture(scope="module")
def compared(cold: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison in which nothing had to be made."""
    key = next(stage["key"] for stage in cold.record()["stages"] if stage["name"] == "train")
    out = tmp_path_factory.mktemp("compared") / "comparison"
    cold.run("compare", "models:/tiny@champion", f"train/{key}", "--recipe", "tiny", "--out", str(out), draws=True)
    return out / "report.html"


@pytest.mark.parametrize("window", WINDOWS)
def test_a_comparison(compared: Path, looked_at: Callable[..., str], window: tuple[int, int]) -> None:
    said = looked_at(compared, window)
    for text in ("models:/tiny@champion", "train/", "no clear difference", "Under load"):
        assert text in said


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both pages, with markup in every name, prompt and answer."""
    folder = tmp_path_factory.mktemp("hostile")
    kinds = ("prefill", "accepted", "bonus")
    answer = [{"text": HOSTILE, "round": nth, "kind": kind} for nth, kind in enumerate(kinds)]
    told = [{"benchmark": HOSTILE, "prompt": HOSTILE, "answer": answer}]
    names = {"recipe_name": HOSTILE, "recipe": {HOSTILE: HOSTILE}}
    data = RunReport.model_validate({**everything().to_json(), **names, "run_id": HOSTILE, "samples": told})
    assert data.evaluation is not None
    data.evaluation.benchmarks[HOSTILE] = benchmark(2.0, HOSTILE)
    several = comparison(HOSTILE, f"{HOSTILE}/other")
    for draft in several["drafts"]:
        draft["samples"] = told
    compared = Comparison.model_validate({**several, **names})
    return [write_report(folder / "report", data), write_comparison(folder / "comparison", compared)]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_hostile_text_is_shown_and_runs_nothing(
    looked_at: Callable[..., str], hostile: list[Path], window: tuple[int, int], *, dark: bool
) -> None:
    for page in hostile:
        assert looked_at(page, window, dark=dark).count(HOSTILE) > 10


def test_what_runs_is_noticed(tab: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<body>{HOSTILE}")
    opened = tab.open(page, 1280, 800)
    assert set(opened.dialogs) == {"1", "2"}


def test_what_a_page_does_is_noticed(tab: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<body><img src='missing.png'><p style='width: 3000px'>wide</p><script>{'x' * 3}()</script>")
    opened = tab.open(page, 1280, 800)
    assert [Path(url).name for url in opened.requests] == ["page.html", "missing.png"]
    assert any("xxx is not defined" in complaint for complaint in opened.complaints)
    assert any("ERR_FILE_NOT_FOUND" in complaint for complaint in opened.complaints)
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") > 0
    assert len(tab.evaluate(_WIDER_THAN_WINDOW)) == 1


def test_what_a_worker_of_a_page_asks_for_is_noticed(tab: Browser, tmp_path: Path) -> None:
    """A page may leave it to a worker to ask for something; that it got no answer is noticed, too."""
    (tmp_path / "index.html").write_text("<script>new Worker('ask.worker.js')</script>")
    (tmp_path / "ask.worker.js").write_text("fetch('/missing.json')")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        opened = tab.open(f"{address}/index.html", 1280, 800)
        tab.settle()
        server.shutdown()
    assert f"{address}/missing.json" in opened.requests
    assert (404, f"{address}/missing.json") in opened.refused
