"""Starts of trainings: decided once for each, in the order in which they were asked for, and by no clock."""

from pathlib import Path

import pytest

from deepspec.registry.entries import DraftReference
from deepspec.registry.errors import PromotionLogDamaged
from deepspec.registry.starts import Starts
from deepspec.store.backends.local import LocalBackend
from tests.fixtures.refused import refused

CHAMPION = DraftReference(kind="train", key="a", digest="digest-a", version="1")
OTHER = DraftReference(kind="train", key="b", digest="digest-b", version="2")


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    return Starts(LocalBackend(tmp_path), "m")


def nights(starts: Starts, num_nights: int, *, every: int | None, first: DraftReference | None = None) -> list[bool]:
    """Whether each of so many nights with new data starts from new weights; `first` is the first one's champion."""
    made = [starts.reserve(f"night {n}", first if n == 1 else CHAMPION, every) for n in range(1, num_nights + 1)]
    return [start.draft is None for start in made]


def test_what_was_decided_holds_whoever_is_champion_by_then(starts: Starts) -> None:
    assert starts.find("data") is None
    decided = starts.reserve("data", CHAMPION, None)
    assert (decided.draft, decided.control) == (CHAMPION, False)
    assert starts.reserve("data", OTHER, None) == starts.reserve("data", None, None) == decided
    assert starts.find("data") == decided
    assert starts.reserve("other data", OTHER, None).draft == OTHER


def test_every_third_training_starts_from_new_weights(starts: Starts) -> None:
    """The first has no champion: it is the first of its kind, and no control."""
    assert nights(starts, 8, every=3) == [True, False, False, True, False, False, True, False]
    assert not starts.is_turn(None)
    found = [starts.find(f"night {n}") for n in (1, 4)]
    assert [start is not None and start.control for start in found] == [False, True]


def test_where_there_was_a_champion_before_the_first_control_comes_at_the_end(starts: Starts, tmp_path: Path) -> None:
    assert nights(starts, 4, every=3, first=CHAMPION) == [False, False, True, False]
    assert nights(Starts(LocalBackend(tmp_path), "other"), 4, every=None, first=CHAMPION) == [False] * 4


def test_a_night_that_is_asked_again_takes_no_turn(starts: Starts) -> None:
    """Killed nights, and nights without news, in between."""
    for night in ("one", "one", "two", "two", "two"):
        starts.reserve(night, CHAMPION, 3)
    assert starts.is_turn(3)
    assert starts.reserve("three", CHAMPION, 3).control
    assert starts.reserve("three", CHAMPION, 3).control
    assert not starts.is_turn(3)


def test_a_damaged_record_is_named(starts: Starts, tmp_path: Path) -> None:
    nights(starts, 2, every=None)
    (tmp_path / "registry" / "m" / "starts" / "1.json").unlink()
    with refused(PromotionLogDamaged, where="registry/m/starts/1.json"):
        starts.find("night 3")
