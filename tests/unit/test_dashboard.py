"""The dashboard's feed: what it says of champions, nights, costs, hosts and live runs, and what it reads for that."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deepspec import history
from deepspec.dashboard import publish
from deepspec.dashboard.collect import SPAN, collect
from deepspec.dashboard.nights import measured_in, nights_of, plain
from deepspec.errors import ArtifactError, TransientError
from deepspec.evaluation.results import MeanResult
from deepspec.record import RunRecord
from deepspec.reports.dashboard.feed import FORMAT, Feed, Model
from deepspec.serving.followers import FORMAT as FOLLOWER_FORMAT
from deepspec.serving.followers import Follower
from deepspec.store import Store, open_store
from deepspec.store.copy_store import copy_store
from deepspec.store.gc import collect as collect_garbage
from deepspec.store.lease import leased
from deepspec.store.records import seal, unseal
from tests.fixtures import results
from tests.fixtures.few_nights import Counting, Nights

NOW = datetime(2026, 12, 1, 5, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def nights(store: Store) -> Nights:
    return Nights(store.backend)


def feed_of(store: Store, **options: Any) -> Feed:
    return collect(store, NOW, **options)


def model_in(feed: Feed, name: str = "qwen") -> Model:
    return next(model for model in feed.models if model.name == name)


def follower(nights: Nights, version: str, host: str = "gpu-1", **fields: Any) -> Follower:
    said = {
        "format": FOLLOWER_FORMAT,
        "host": host,
        "directory": "/srv/models/draft",
        "model": nights.model,
        "version": version,
        "digest": nights.draft(version).digest,
        "since": NOW.isoformat(),
        "every_seconds": 30.0,
        "healthy": True,
        "trouble": "",
        "hook_exit": 0,
        "stopped": False,
        **fields,
    }
    return Follower.model_validate(said)


def test_a_champion_with_its_version_grounds_and_cost(store: Store, nights: Nights) -> None:
    nights.promoted(3.0)
    record = nights.promoted(3.2)
    nights.refused(3.1)
    model = model_in(feed_of(store))
    champion = model.champion
    assert champion is not None
    assert (champion.version, champion.entry, champion.by, champion.run_id) == ("2", 2, "promote", record.run_id)
    assert champion.since == "2026-11-04T02:00:00+00:00"
    assert champion.sentence == record.verdicts[0].sentence
    assert [gate.gate for gate in champion.gates][:1] == ["tau_gain"]
    assert champion.measured["mean"].tau == 3.2
    assert champion.measured["benchmark/math"].tau_ci95 == (3.45, 3.95)
    assert champion.measured["benchmark/math"].speedup == 2.25
    assert champion.measured["gate"].prompts == 48
    assert champion.spent is not None
    assert (champion.spent.gpu_seconds, champion.spent.amounts) == (7200.0, {"USD": 5.0})
    assert (model.target, model.algorithm) == ("Qwen3-4B", "dspark")
    assert [night.status for night in model.nights] == ["promoted", "promoted", "refused"]
    assert [(entry.number, entry.version, entry.from_version) for entry in model.log] == [(1, "1", None), (2, "2", "1")]


def test_a_roll_back_says_why_and_keeps_the_grounds_of_the_promotion(store: Store, nights: Nights) -> None:
    first = nights.promoted(3.0)
    nights.promoted(3.2)
    nights.rolled_back("Answers are shorter.")
    champion = model_in(feed_of(store)).champion
    assert champion is not None
    assert (champion.version, champion.by, champion.run_id) == ("1", "rollback", None)
    assert champion.reason == "Answers are shorter."
    assert champion.sentence == first.verdicts[0].sentence
    assert champion.measured["mean"].tau == 3.0


def test_no_person_and_no_secret_is_in_it(store: Store, nights: Nights) -> None:
    """Who promoted is in the promotion log only; texts lose credentials, signed addresses and names of homes."""
    nights.promoted(3.0)
    message = "https://ada:s3cret@hub.example/x?X-Amz-Signature=abcdef failed in /home/ada/runs"
    failure = {"error": "DataError", "message": message, "stage": "train", "at": NOW.isoformat()}
    nights.ended("failed", error=message, failure=failure)
    publish.publish_dashboard(store)
    for name in (publish.FEED, publish.PAGE):
        text = store.backend.read(f"dashboard/{name}").decode()
        assert "https://hub.example/x failed in ~/runs" in text
        assert not [word for word in ("ada", "s3cret", "abcdef", store.backend.location) if word in text]


def test_plain_texts_stay_as_they_are_and_have_an_end() -> None:
    assert (
        plain("τ 2.7 against 2.6: +0.1 (at 99 %); why? because.") == "τ 2.7 against 2.6: +0.1 (at 99 %); why? because."
    )
    assert plain("s3://bucket/home/x and path/home/y") == "s3://bucket/home/x and path/home/y"
    assert len(plain("x" * 5000)) == 600


def test_the_second_time_only_what_is_new_is_read(store: Store, nights: Nights) -> None:
    """With 30 nights known a further one costs its record, and a read of each log's last entry; and nothing differs."""
    for tau in range(15):
        nights.promoted(3.0 + tau / 10)
        nights.refused(3.0)
    earlier = feed_of(store)
    nights.promoted(9.0)
    backend = Counting(store.backend)
    store.backend = backend  # type: ignore[assignment]
    again = feed_of(store, earlier=Feed.from_json(json.loads(json.dumps(earlier.to_json())), where="feed"))
    counted = dict(backend.calls)
    assert again.to_json() == feed_of(store).to_json()
    # Of the log the last known entry and the new one, then all: the champion is another, and its grounds may be old.
    assert counted["read"] <= 1 + 2 + 16 + 8
    backend.calls.clear()
    feed_of(store, earlier=again)
    assert backend.calls["read"] == 1
    assert backend.calls["list"] <= 7


MADE_UP = {"began": "never", "ended": "never", "run_id": "20261101-000000-000000"}


@pytest.mark.parametrize(
    "change",
    [
        {"deepspec": "0.0.0"},
        {"format": FORMAT + 1},
        {"models": "none"},
        {"models": [{"name": "qwen", "nights": [{**MADE_UP, "recipe": "x", "status": "failed", "spent": {}}]}]},
        {
            "runs": [],
            "models": [{"name": "qwen", "log": [{"number": 1, "kind": "promote", "digest": "d", "when": "x"}]}],
        },
        None,
    ],
    ids=lambda change: "damaged" if change is None else next(iter(change)),
)
def test_an_earlier_feed_that_cannot_be_relied_on_is_made_anew(store: Store, nights: Nights, change: Any) -> None:
    """Another version's, a damaged one, and one that is whole and no deepspec can have written."""
    nights.promoted(3.0)
    publish.publish_dashboard(store)
    path = "dashboard/dashboard.json"
    right = unseal(store.backend.read(path))
    wrong = b"[" * 10_000 if change is None else seal({**right, "models": [], **change})
    store.backend.put(path, wrong)
    publish.publish_dashboard(store)
    assert unseal(store.backend.read(path))["models"] == right["models"]


def test_what_no_clock_and_no_measurement_says_is_left_out(
    store: Store, nights: Nights, caplog: pytest.LogCaptureFixture
) -> None:
    nights.promoted(3.0)
    nights.refused(2.9, seconds=1e300)
    record = nights.refused(2.8)
    assert record.evaluation is not None
    publish.publish_dashboard(store)
    assert "missing on the dashboard" in caplog.text
    assert "not up to date" not in caplog.text
    assert len(model_in(feed_of(store)).nights) == 2
    infinite = results.evaluation(gate_tau=3.0, math=3.0).model_copy(
        update={"macro": MeanResult(tau=math.inf, tau_ci95=(1.0, math.nan), speedup=None)}
    )
    assert measured_in(infinite)["mean"].to_json() == {
        "tau": None,
        "tau_ci95": None,
        "speedup": None,
        "speedup_ci95": None,
    }


def test_a_log_that_was_replaced_is_read_again(store: Store, nights: Nights, tmp_path: Path) -> None:
    nights.promoted(3.0)
    earlier = feed_of(store)
    other = open_store(str(tmp_path / "other"))
    Nights(other.backend).promoted(4.0)
    another = Nights(other.backend, "qwen")
    another.now += timedelta(days=20)
    another._versions = 7
    another.promoted(5.0)
    champion = model_in(feed_of(other, earlier=earlier)).champion
    assert champion is not None
    assert champion.version == "8"


def test_old_nights_are_left_out_and_the_champions_entry_is_not(store: Store, nights: Nights) -> None:
    nights.promoted(3.0)
    nights.refused(2.9)
    earlier = feed_of(store)
    later = NOW + SPAN
    for feed in (collect(store, later), collect(store, later, earlier=earlier)):
        model = model_in(feed)
        assert model.nights == ()
        assert feed.runs == ()
        assert [entry.number for entry in model.log] == [1]
        assert model.champion is not None


def test_a_run_of_several_models_is_a_night_of_each(nights: Nights) -> None:
    """Each with its own verdict, and an equal share of the cost."""
    taus = {"dspark": 3.0, "eagle3": 2.0}
    one, two = nights.promoted(3.0), nights.refused(2.0)
    fields: dict[str, Any] = {
        name: tuple(
            getattr(record, name).model_copy(update={"algorithm": algorithm})
            for algorithm, record in zip(taus, (one, two), strict=True)
        )
        for name in ("evaluation", "verdict")
    }
    recipes = tuple({"name": f"m-{algorithm}", "draft": {"algorithm": algorithm}} for algorithm in taus)
    run = one.model_copy(update={**fields, "resolved_recipe": recipes, "model": None})
    found = nights_of(run)
    assert {name: night.measured["mean"].tau for name, night in found.items()} == {"m-dspark": 3.0, "m-eagle3": 2.0}
    assert found["m-dspark"].status == "promoted"
    assert found["m-eagle3"].status == "refused"
    assert found["m-eagle3"].spent.gpu_seconds == one.cost.gpu_seconds / 2


def test_what_a_run_of_hits_repeats_is_no_new_draft(nights: Nights) -> None:
    record = nights.promoted(3.0)
    again = nights_of(record.model_copy(update={"status": "no_change"}))
    assert again["qwen"].measured == {}
    assert again["qwen"].sentence is None


def test_a_run_that_died_early_counts_under_its_recipe(nights: Nights) -> None:
    record = nights.ended("interrupted", registered_models=(), resolved_recipe=None, error="It was killed.")
    assert nights_of(record)["qwen"].sentence == "It was killed."


def test_costs_by_month_and_model(store: Store, nights: Nights) -> None:
    nights.promoted(3.0)
    nights.now += timedelta(days=28)
    nights.ended("failed")
    other = Nights(store.backend, "gemma")
    other.ended("no_change")
    costs = [(one.month, one.model, one.runs, one.spent.amounts["USD"]) for one in feed_of(store).costs]
    assert costs == [("2026-12", "qwen", 1, 2.5), ("2026-11", "gemma", 1, 2.5), ("2026-11", "qwen", 1, 2.5)]


def test_a_damaged_log_is_said_and_nights_are_shown(store: Store, nights: Nights) -> None:
    nights.promoted(3.0)
    store.backend.put("registry/qwen/promotions/1.json", b"{}")
    model = model_in(feed_of(store))
    assert model.champion is None
    assert model.log_flaw is not None
    assert "registry/qwen/promotions/1.json" in model.log_flaw
    assert len(model.nights) == 1


def test_hosts_that_are_behind_and_by_how_much(store: Store, nights: Nights) -> None:
    for tau in (3.0, 3.2, 3.4):
        nights.promoted(tau)
    for host, version in (("gpu-1", "3"), ("gpu-2", "1"), ("gpu-3", "99")):
        follower(nights, version, host).say(store.backend)
    found = feed_of(store).followers or ()
    assert [(one.host, one.is_champion, one.behind) for one in found] == [
        ("gpu-1", True, 0),
        ("gpu-2", False, 2),
        ("gpu-3", False, None),
    ]
    assert {one.place for one in found} == {"draft"}


def test_what_runs_now_and_not_the_run_that_is_ending(store: Store, nights: Nights) -> None:
    nights.promoted(3.0)
    own, other = "20261201-020000-aaaaaa", "20261201-023000-bbbbbb"
    backend = store.backend
    with (
        leased(backend, f"runs/{own}", keys=[]),
        leased(backend, f"runs/{other}", keys=[], models=["gemma"]),
        leased(backend, f"stages/train-{'0' * 64}", run=other),
    ):
        [run] = feed_of(store, but=own).running or ()
    assert (run.run_id, run.models, run.stages) == (other, ("gemma",), ("train",))
    assert run.began == "2026-12-01T02:30:00+00:00"
    assert feed_of(store).running == ()


class Broken:
    """A backend of which one operation fails."""

    def __init__(self, backend: Any, name: str, error: Exception) -> None:
        self._backend, self._name, self._error = backend, name, error

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise self._error

        return fail if name == self._name else getattr(self._backend, name)


@pytest.mark.parametrize("error", [TransientError("no answer"), ArtifactError("refused")])
@pytest.mark.parametrize("operation", ["put", "list", "read"])
def test_what_goes_wrong_is_said_and_fails_no_run(
    store: Store, nights: Nights, caplog: pytest.LogCaptureFixture, operation: str, error: Exception
) -> None:
    nights.promoted(3.0)
    store.backend = Broken(store.backend, operation, error)  # type: ignore[assignment]
    publish.publish_dashboard(store)
    assert str(error) in caplog.text


def test_collectors_and_copies_leave_it_alone(store: Store, nights: Nights, tmp_path: Path) -> None:
    """History is copied, as it is made once; the dashboard is not: it is made anew."""
    record = nights.promoted(3.0)
    publish.publish_dashboard(store)
    before = set(store.backend.list(""))
    assert collect_garbage(store, (), grace_seconds=0.0) == []
    assert set(store.backend.list("")) == before
    other = open_store(str(tmp_path / "copy"))
    copy_store(store, other)
    assert [one.run_id for one in history.records(other.backend)] == [record.run_id]
    assert not other.backend.list("dashboard")


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError):
        publish.write(store, tmp_path / "file")


def test_records_of_runs_that_are_known_are_not_read(store: Store, nights: Nights) -> None:
    records = [nights.ended("no_change") for _ in range(3)]
    found: list[RunRecord] = history.records(store.backend, known={records[0].run_id, records[2].run_id})
    assert [record.run_id for record in found] == [records[1].run_id]
