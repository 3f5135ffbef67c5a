"""How far a run is: by what its stages took before, and by how far the present one is."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from deepspec import history
from deepspec.store import open_store
from tasks.runtime.outlook import Outlook, expected_seconds, took
from tests.fixtures.reports import record
from tests.fixtures.store import ingredients, put

NOON = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


class Clock:
    """Seconds since the epoch, as a test wants them."""

    def __init__(self) -> None:
        self.now = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_run_is_as_far_as_its_stages_by_expected_duration(clock: Clock) -> None:
    outlook = Outlook({"tokens": 60.0, "train": 540.0}, clock)
    assert (outlook.percent, outlook.ends_at.minute) == (0.0, 10)
    outlook.begin("tokens")
    clock.now += 30
    assert outlook.percent == pytest.approx(5.0)
    outlook.end()
    outlook.begin("train")
    outlook.advance(0.5)
    clock.now += 270
    assert outlook.percent == pytest.approx(55.0)
    assert f"{outlook.ends_at:%H:%M:%S}" == "12:09:30"
    assert outlook.sentence == (
        "Running: train (stage 2 of 2), 55 % done, expected to end at 2026-12-01 12:09 UTC, in 4 min."
    )
    outlook.end()
    assert (outlook.percent, outlook.sentence) == (100.0, "Every stage is made.")


def test_what_takes_longer_than_expected_is_not_finished(clock: Clock) -> None:
    """Neither by the clock, nor before the stages after it; a share that is known counts instead of the clock."""
    outlook = Outlook({"train": 100.0, "gate": 100.0}, clock)
    outlook.begin("train")
    clock.now += 1000
    assert outlook.percent == pytest.approx(47.5)
    assert (outlook.ends_at - datetime.fromtimestamp(clock.now, UTC)).total_seconds() == 100
    outlook.advance(0.25)
    assert outlook.percent == pytest.approx(12.5)
    assert (outlook.ends_at - datetime.fromtimestamp(clock.now, UTC)).total_seconds() == 3100


def test_a_stage_that_nobody_expected_counts_from_its_beginning(clock: Clock) -> None:
    outlook = Outlook({}, clock)
    assert outlook.percent == 100.0
    outlook.begin("train")
    assert outlook.percent == 0.0


def entry(status: str, seconds: float) -> dict[str, object]:
    return {"name": "train", "status": status, "seconds": seconds, "kind": "train", "key": "k" * 64, "why": ""}


def test_a_stage_takes_what_it_took_in_the_last_runs_that_made_it() -> None:
    earlier = [record(stages=[entry("ran", seconds)]) for seconds in (9000.0, 10.0, 20.0, 30.0, 40.0, 50.0)]
    assert took([*earlier, record(stages=[entry("hit", 0.1)])], "train") == 30.0
    assert took(earlier, "gate") is None


def test_of_other_models_runs_nothing_is_expected_but_the_last_artifact_of_a_stage_is_asked(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    now = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for number, (model, seconds) in enumerate((("mine", 100.0), ("other", 900.0))):
        done = record(run_id=f"{now}-{number:06x}", stages=[entry("ran", seconds)], registered_models=[model])
        history.publish(store.backend, done)
    put(store, ingredients("gate"))
    found = expected_seconds(["train", "gate", "tokens"], store=store, models=("mine",), recipe=None, home=tmp_path)
    assert found["train"] == 100.0
    assert 0 <= found["gate"] < 10
    assert found["tokens"] == 30.0
