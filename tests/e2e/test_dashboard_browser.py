"""The dashboard of a month of two models in a real browser, on a laptop and a phone, light and dark.

Screenshots are left in the test's folder, to be looked at.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deepspec.dashboard.collect import collect
from deepspec.reports.dashboard.feed import Feed
from deepspec.reports.dashboard.page import page_of
from deepspec.store import open_store
from tests.fixtures.browser import Browser, browser
from tests.fixtures.month import LAST_NIGHT, Month, seed

pytestmark = pytest.mark.full

WINDOWS = [(1280, 800), (390, 844)]
SCHEMES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
_OPEN = 'document.querySelectorAll("details").forEach(part => part.open = true)'
_WIDER_THAN_WINDOW = """
[...document.body.querySelectorAll("*")]
  .filter(e => e.checkVisibility() && !e.closest(".vh, .skip, defs, symbol"))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1)
  .map(e => e.outerHTML.slice(0, 200))
"""
_TEXTS = """
(() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    const unseen = "script, .vh, .skip, title, .tip" + (innerWidth < 760 ? ", .stack thead" : "");
    if (!node.data.trim() || parent.closest(unseen) || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1 && box.height > 1) found.push([parent, node.data.trim(), box, !!parent.closest("svg")]);
  }
  return found;
})()
"""
_OVERLAPPING = """
(() => {
  const texts = TEXTS.filter(([parent]) => !parent.closest(".plot, .undo"));
  const found = [];
  texts.sort((a, b) => a[2].top - b[2].top);
  texts.forEach(([, text, box], place) => {
    for (const [, other, against] of texts.slice(place + 1)) {
      if (against.top > box.bottom) break;
      const wide = Math.min(box.right, against.right) - Math.max(box.left, against.left);
      const high = Math.min(box.bottom, against.bottom) - Math.max(box.top, against.top);
      if (wide > 2 && high > 0.35 * Math.min(box.height, against.height)) found.push([text, other]);
    }
  });
  return found;
})()
""".replace("TEXTS", _TEXTS.strip())
"""Texts that lie on one another; lines of text may touch, as their boxes are higher than their letters."""
_FAINT = """
(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const rgb = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map(part => part / 255);
  };
  const over = (top, under) => under.map((part, at) => at < 3 ? top[at] * top[3] + part * (1 - top[3]) : 1);
  const ground = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.unshift(rgb(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [1, 1, 1, 1]);
  };
  const light = color => {
    const part = color.slice(0, 3).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const found = {};
  for (const [parent, text, , isDrawn] of TEXTS) {
    const under = ground(isDrawn ? parent.closest("svg").parentElement : parent);
    const style = getComputedStyle(parent);
    const [a, b] = [over(rgb(isDrawn ? style.fill : style.color), under), under].map(light).sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found[`${text.slice(0, 40)} (${parent.className || parent.tagName})`] = contrast.toFixed(2);
  }
  return found;
})()
""".replace("TEXTS", _TEXTS.strip())
"""Texts with less contrast to what is under them than WCAG asks for (AA, 4.5)."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Month:
    """A month of nights: five seconds, for the store writes every artifact of it durably."""
    return seed(open_store(str(tmp_path_factory.mktemp("month") / "store")))


@pytest.fixture(scope="module")
def feed(month: Month) -> Feed:
    return collect(month.store, LAST_NIGHT + timedelta(hours=3))


@pytest.fixture(scope="module")
def page(feed: Feed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page_of(feed), encoding="utf-8")
    return path


@pytest.fixture
def said(tab: Browser, page: Path, tmp_path: Path, window: tuple[int, int], dark: bool) -> str:
    """The page in a window with all of it unfolded: what every page must hold is checked, its text is returned."""
    opened = tab.open(page, *window, dark=dark)
    tab.screenshot(tmp_path / f"dashboard-{window[0]}{'-dark' if dark else ''}.png")
    tab.evaluate(_OPEN)
    assert opened.requests == [page.absolute().as_uri()]
    assert opened.complaints == []
    assert tab.evaluate("innerWidth") == window[0]  # a phone would show what is too wide at a smaller scale
    assert tab.evaluate("document.documentElement.scrollWidth") == window[0]
    assert tab.evaluate(_WIDER_THAN_WINDOW) == []
    return str(tab.evaluate("document.body.innerText"))


@SCHEMES
@pytest.mark.parametrize("window", WINDOWS)
def test_all_is_there_and_can_be_read(tab: Browser, month: Month, feed: Feed, said: str) -> None:
    """Nothing is wider than the window, lies on something else, or is too faint; every run and verdict is there."""
    assert tab.evaluate(_OVERLAPPING) == []
    assert tab.evaluate(_FAINT) == {}
    words = " ".join(said.split())
    for model in feed.models:
        assert model.champion is not None
        for text in (model.name, f"v{model.champion.version}", *(gate.sentence for gate in model.champion.gates)):
            assert " ".join(text.split()) in words
        for night in model.nights:
            assert night.run_id in words
            assert " ".join((night.sentence or "").split()) in words
    for text in (
        "Answers in production are shorter.",
        "gpu-03",
        "1 behind",
        "no room left on the device",
        "107.70 USD",
    ):
        assert text in words
    assert len(month.nights) == tab.evaluate('document.querySelectorAll(".nights:not(.log) li").length')


@pytest.mark.parametrize("dark", [False], ids=["light"])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_night_is_led_to_by_keys_and_says_what_it_is(tab: Browser, said: str) -> None:
    """One stop for the tab key in each month; arrows move on; what a pointer sees is shown; Enter goes to the run."""
    assert "2 Dec" not in said
    stops = tab.evaluate(
        '[...document.querySelectorAll(".calendar")].map(m => m.querySelectorAll("a[tabindex=\'0\']").length)'
    )
    assert stops == [1, 1, 1, 1]
    tab.evaluate('document.querySelectorAll(".calendar")[1].querySelector("a[tabindex=\'0\']").focus()')
    before = tab.evaluate("document.activeElement.innerText")
    _press(tab, "ArrowLeft", 37)
    assert tab.evaluate("document.activeElement.innerText") != before
    tip = 'document.activeElement.parentElement.querySelector(".tip")'
    assert tab.evaluate(f"getComputedStyle({tip}).display") == "block"
    assert tab.evaluate(f"{tip}.innerText").startswith("29 November 2026\nfailed")
    box = tab.evaluate(f"{tip}.getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] < box["right"] <= tab.evaluate("innerWidth")
    _press(tab, "Enter", 13)
    assert "29 Nov 2026" in tab.evaluate('document.querySelector(":target").innerText')


@pytest.mark.parametrize("dark", [False], ids=["light"])
@pytest.mark.parametrize("window", WINDOWS[:1])
def test_a_page_that_is_old_says_so(tab: Browser, said: str, page: Path, tmp_path: Path) -> None:
    is_shown = 'document.getElementById("old").checkVisibility()'
    age = tab.evaluate('(Date.now() - Date.parse(document.getElementById("old").dataset.written)) / 3600000')
    assert tab.evaluate(is_shown) == (age > 26)
    now = tab.evaluate("new Date().toISOString()")
    written = tab.evaluate('document.getElementById("old").dataset.written')
    fresh = tmp_path / "fresh.html"
    fresh.write_text(page.read_text(encoding="utf-8").replace(written, now), encoding="utf-8")
    tab.open(fresh, 1280, 800)
    assert tab.evaluate(is_shown) is False
    assert "(just now)" in tab.evaluate("document.body.innerText")


@pytest.mark.parametrize("dark", [False], ids=["light"])
@pytest.mark.parametrize("window", WINDOWS[:1])
def test_what_is_wrong_is_noticed(tab: Browser, said: str) -> None:
    """Text that is too faint, lies on other text, or runs out of the window."""
    added = (
        "Object.assign(document.createElement('p'), {id: 'wrong', textContent: 'faint words', style: 'color: #8888'})"
    )
    tab.evaluate(f"document.querySelector('.panel').append({added})")
    assert any("faint words" in text for text in tab.evaluate(_FAINT))
    tab.evaluate("document.getElementById('wrong').style.marginTop = '-2.3rem'")
    assert any("faint words" in pair for pair in tab.evaluate(_OVERLAPPING))
    tab.evaluate("document.getElementById('wrong').style.width = '3000px'")
    assert any("faint words" in element for element in tab.evaluate(_WIDER_THAN_WINDOW))


def test_on_paper_nothing_is_cut(tab: Browser, page: Path) -> None:
    tab.open(page, 1280, 800)
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        tab.call("Emulation.setDeviceMetricsOverride", width=718, height=1000, deviceScaleFactor=1, mobile=False)
        assert tab.evaluate("document.documentElement.scrollWidth") == 718
        assert tab.evaluate(_WIDER_THAN_WINDOW) == []
        assert tab.evaluate(_OVERLAPPING) == []
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")


def _press(tab: Browser, key: str, code: int) -> dict[str, Any]:
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        answer = tab.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)
    return answer
