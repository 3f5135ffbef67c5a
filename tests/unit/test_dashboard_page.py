"""The dashboard's page: all of the feed is on it, escaped, with no address and no script but its own."""

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deepspec.dashboard.collect import collect
from deepspec.reports.dashboard.axes import scale_of, time_axis
from deepspec.reports.dashboard.calendar import months_of
from deepspec.reports.dashboard.feed import Ancestor, Feed, FollowerEntry, Model
from deepspec.reports.dashboard.lineage_picture import picture_of, short
from deepspec.reports.dashboard.overview import concerns_of
from deepspec.reports.dashboard.page import page_of
from deepspec.reports.dashboard.tau_chart import charts_of
from deepspec.store import Store, open_store
from tests.fixtures.few_nights import Nights
from tests.fixtures.reports import HOSTILE, Page

NOW = datetime(2026, 11, 12, 5, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def eventful(store: Store, reason: str = "Answers are shorter.", name: str = "qwen") -> Nights:
    """Two promotions, a refusal, a roll back, a failure."""
    nights = Nights(store.backend, name)
    nights.promoted(3.0)
    nights.promoted(3.2)
    nights.refused(3.1)
    nights.rolled_back(reason)
    failure = {"error": "DataError", "message": reason, "stage": "train", "at": NOW.isoformat()}
    nights.ended("failed", error=reason, failure=failure, recipe=reason)
    return nights


def model_of(store: Store) -> Model:
    [model] = collect(store, NOW).models
    return model


def test_all_of_it_is_on_the_page(store: Store) -> None:
    eventful(store)
    shown = " ".join(Page(page_of(collect(store, NOW))).text.split())
    for text in (
        "qwen", "for Qwen3-4B", "v1", "rolled back to", "Answers are shorter.", "3.00", "2.75 to 3.25",
        "2.25\N{MULTIPLICATION SIGN}", "5.00 USD", "promoted", "refused", "failed", "Last failure: 6 Nov 2026",
        "November 2026", "10.00 USD",
    ):  # fmt: skip
        assert text in shown, text


def test_it_names_no_host_and_runs_its_own_script_alone(store: Store) -> None:
    """The policy names the script by the hash of what stands in the page."""
    eventful(store)
    text = page_of(collect(store, NOW))
    page = Page(text)
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = next(str(tag[1]["content"]) for tag in page.tags if tag[1].get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    addresses = {found for found in page.references() if not found.startswith(("#", "left:", "width:", "position:"))}
    assert addresses <= {"data:,", "dashboard.json", "transform: translateY(5px)"} | {
        found for found in addresses if found.startswith(("marker-end: url(#", "max-width:"))
    }
    assert not re.search(r"https?://|//[a-z]", text.partition("<body>")[2])


def test_foreign_text_is_shown_and_is_no_markup(store: Store) -> None:
    """In a person's reason, a failure, a recipe's name, a host's name and its trouble, a model's name."""
    eventful(store, reason=HOSTILE)
    feed = collect(store, NOW)
    said = {"model": HOSTILE, "version": HOSTILE, "digest": "d", "since": HOSTILE, "seen": HOSTILE}
    host = FollowerEntry(
        host=HOSTILE, place=HOSTILE, state="lost", behind=1, is_champion=False, trouble=HOSTILE, **said
    )
    model = feed.models[0]
    champion = model.champion
    assert champion is not None
    lineage = (Ancestor(kind="train", key=HOSTILE), Ancestor(kind=HOSTILE, key=HOSTILE, made=HOSTILE))
    champion = champion.model_copy(
        update={
            "lineage": lineage,
            "measured": {**champion.measured, f"benchmark/{HOSTILE}": champion.measured["gate"]},
        }
    )
    named = model.model_copy(update={"name": HOSTILE, "target": HOSTILE, "algorithm": HOSTILE, "champion": champion})
    text = page_of(feed.model_copy(update={"models": (named,), "followers": (host,)}))
    page = Page(text)
    assert text.count("<script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 12


def test_every_id_is_once_on_the_page_and_every_place_that_is_linked_is_there(store: Store) -> None:
    eventful(store)
    eventful(store, name="gemma")
    page = Page(page_of(collect(store, NOW)))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for _, attributes in page.tags if "href" in attributes]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


@pytest.mark.parametrize("feed", [{}, {"followers": None, "running": None}, {"models": ({"name": "new"},)}])
def test_an_empty_store_has_a_page(feed: dict[str, Any]) -> None:
    times = {"written": NOW.isoformat(), "since": NOW.isoformat()}
    shown = Page(page_of(Feed.model_validate({"deepspec": "1", **times, **feed}))).text
    assert "No run has ended yet" in shown or "No draft has been promoted yet." in shown


def test_what_needs_attention(store: Store) -> None:
    nights = eventful(store)
    nights.ended("failed", error="Again.")
    [concern] = concerns_of(collect(store, NOW - timedelta(days=5)))
    assert (concern.sign, concern.name) == ("failed", "qwen")
    assert "2 runs in a row" in concern.text
    late = concerns_of(collect(store, NOW))
    assert "No run has ended since 7 Nov 2026, 03:00; before, one did every 24 hours." in [one.text for one in late]


def test_an_approval_is_pending_until_the_log_goes_on(store: Store) -> None:
    nights = Nights(store.backend)
    nights.promoted(3.0)
    record = nights.refused(2.9)
    model = model_of(store)
    waiting = model.nights[-1].model_copy(update={"status": "awaiting_approval"})
    feed = collect(store, NOW - timedelta(days=8))
    assert record.run_id == waiting.run_id
    pending = feed.model_copy(update={"models": (model.model_copy(update={"nights": (waiting,)}),)})
    assert [one.sign for one in concerns_of(pending)] == ["awaiting_approval"]
    nights.now += timedelta(days=1)
    nights.promoted(3.5)
    decided = model.model_copy(update={"nights": (waiting,), "log": model_of(store).log})
    assert concerns_of(feed.model_copy(update={"models": (decided,)})) == []


def test_the_calendar_has_every_day_and_what_became_of_it(store: Store) -> None:
    eventful(store)
    [month] = months_of(model_of(store), NOW, {})
    days = {day.number: day for week in month.weeks for day in week if day is not None}
    assert month.title == "November 2026"
    assert list(days) == list(range(1, 16))  # weeks that were still to come are left out
    statuses = {number: day.status for number, day in days.items() if day.status}
    assert statuses == {3: "promoted", 4: "promoted", 5: "refused", 6: "failed"}
    assert [day.number for day in days.values() if day.rolled_back] == [5]
    assert days[5].lines == ["refused v3", "rolled back to v1"]
    assert [day.number for day in days.values() if day.future] == [13, 14, 15]
    assert month.weeks[0][6] is days[1]  # a Sunday


def test_of_several_runs_in_a_day_the_telling_one_is_shown(store: Store) -> None:
    nights = Nights(store.backend)
    nights.promoted(3.0)
    nights.now -= timedelta(hours=23)
    nights.ended("failed")
    [month] = months_of(model_of(store), NOW, {})
    [day] = [day for week in month.weeks for day in week if day is not None and day.status]
    assert (day.status, day.lines) == ("promoted", ["promoted v1", "failed"])


def test_the_chart_follows_the_champion(store: Store) -> None:
    eventful(store)
    charts = {chart.key: chart for chart in charts_of(model_of(store), NOW)}
    assert list(charts) == ["mean", "benchmark/chat", "benchmark/math", "gate"]
    mean = charts["mean"]
    assert [(mark.label, mark.kind) for mark in mean.marks] == [
        ("v1", "promote"),
        ("v2", "promote"),
        ("v1", "rollback"),
    ]
    one, two, three = mean.reigns
    assert one.y == three.y > two.y  # from the top
    assert (one.rise, two.rise, three.rise) == (None, one.y, two.y)
    assert three.x + three.width == pytest.approx(100)
    assert [dot.status for dot in mean.dots] == ["promoted", "promoted", "refused"]
    gate = charts["gate"].reigns[0]
    assert gate.top is not None
    assert gate.height is not None
    assert gate.top < gate.y < gate.top + gate.height
    assert "3 drafts, 2 promotions, 1 roll backs" in mean.summary


@pytest.mark.parametrize("values", [[3.0], [1.0, 8.0], [2.71, 2.72], [0.0, 0.0], [2.999, 3.001, 3.4], [100.0, 107.0]])
def test_a_scale_holds_its_values_between_round_ticks(values: list[float]) -> None:
    scale = scale_of(values)
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    assert 2 <= len(scale.ticks) <= 8
    labels = [tick.label for tick in scale.ticks]
    assert len(set(labels)) == len(labels)
    for tick in scale.ticks:
        assert scale.place(float(tick.label)) == pytest.approx(tick.place, abs=1.0)


@pytest.mark.parametrize(("days", "most"), [(0, 1), (3, 4), (9, 10), (30, 5), (70, 11), (200, 8), (400, 8)])
def test_an_axis_of_time_has_few_ticks(days: int, most: int) -> None:
    axis = time_axis(NOW - timedelta(days=days), NOW)
    places = [tick.place for tick in axis.ticks]
    assert len(places) <= most
    assert places == sorted(places)
    assert axis.place(axis.begin) == 0
    assert axis.place(axis.end) == 100


def test_lineage_is_a_chain_whatever_is_missing() -> None:
    """With states or without, from an earlier draft, and of an imported draft of which nothing else is known."""
    kinds = ("register", "train", "evaluate", "calibrate", "tokens", "responses", "conversations", "source", "target")
    lineage = [Ancestor(kind=kind, key=f"{kind[:3]}{'0' * 61}") for kind in kinds]
    lineage += [Ancestor(kind="train", key="earlier", in_store=False)]
    picture = picture_of(lineage, "v3")
    assert picture is not None
    for arrangement in (picture.wide, picture.narrow):
        assert [box.word for box in arrangement.boxes] == [
            "conversations", "responses", "tokens", "draft", "evaluation", "version",
            "source", "target", "calibration", "earlier draft",
        ]  # fmt: skip
        for box in arrangement.boxes:
            assert 0 <= box.x <= arrangement.width - box.width
            assert 0 <= box.y <= arrangement.height - box.height
    assert picture.summary.startswith("conversations con0000000 → responses")
    assert len(picture.rows) == 10
    alone = picture_of([Ancestor(kind="import", key="i" * 64)], "v1")
    assert alone is not None
    assert [box.word for box in alone.wide.boxes] == ["imported draft"]
    assert picture_of([], "v1") is None


def test_counts_are_short() -> None:
    assert [short(value) for value in (7, 999, 31_000_000, 12_431)] == [
        "7",
        "999",
        "31\N{NO-BREAK SPACE}M",
        "12.4\N{NO-BREAK SPACE}k",
    ]
