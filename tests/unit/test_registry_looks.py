"""Looks at a champion: numbered once, in the order in which they were taken, by whoever comes."""

import threading
from pathlib import Path

import pytest

from deepspec.registry.errors import PromotionConflict, PromotionLogDamaged
from deepspec.registry.looks import Looks
from deepspec.registry.promotions import PromotionLog
from deepspec.store.backends.local import LocalBackend
from tests.fixtures.refused import refused


@pytest.fixture
def backend(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path)


def test_each_challenger_counts_once(backend: LocalBackend) -> None:
    looks = Looks(backend)
    assert looks.number("m", "champion", "one") == 1
    assert looks.number("m", "champion", "one") == 1  # nothing was written
    assert [looks.reserve("m", "champion", subject, "draft") for subject in ("one", "two", "one", "three")] == [
        1,
        2,
        1,
        3,
    ]
    assert looks.number("m", "champion", "two") == 2
    assert looks.number("m", "champion", "four") == 4


def test_each_champion_and_each_model_has_looks_of_its_own(backend: LocalBackend) -> None:
    looks = Looks(backend)
    looks.reserve("m", "champion", "one", "draft")
    assert looks.reserve("m", "next", "two", "draft") == 1
    assert looks.reserve("other", "champion", "two", "draft") == 1
    assert PromotionLog(backend).models() == ()  # nothing was promoted


def test_those_that_come_together_get_different_numbers(backend: LocalBackend) -> None:
    together = threading.Barrier(6)
    found: list[int] = []

    def come(subject: str) -> None:
        together.wait()
        found.append(Looks(backend).reserve("m", "champion", subject, "draft"))

    threads = [threading.Thread(target=come, args=(f"s{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]


def test_an_answer_that_was_lost_is_found(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    create = backend.create
    monkeypatch.setattr(backend, "create", lambda path, data: create(path, data) and False)
    assert Looks(backend).reserve("m", "champion", "one", "draft") == 1
    monkeypatch.setattr(backend, "create", lambda *_: False)
    with refused(PromotionConflict, "8 times", where="m"):
        Looks(backend).reserve("m", "champion", "two", "draft")


@pytest.mark.parametrize("damage", ["flip", "lose"])
def test_a_damaged_record_is_named(backend: LocalBackend, tmp_path: Path, damage: str) -> None:
    looks = Looks(backend)
    for subject in ("one", "two"):
        looks.reserve("m", "champion", subject, "draft")
    path = tmp_path / "registry" / "m" / "looks" / "champion" / "1.json"
    if damage == "flip":
        path.write_bytes(path.read_bytes().replace(b"one", b"0ne"))
    else:
        path.unlink()
    with refused(PromotionLogDamaged, where="registry/m/looks/champion/1.json"):
        looks.number("m", "champion", "three")
    assert damage == "lose" or looks.number("m", "champion", "two") == 2  # the newest is read first
