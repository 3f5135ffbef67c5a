"""Pieces on a local disk: each fetched once, never more bytes than allowed, never wrong ones."""

import multiprocessing
import threading
from collections import Counter
from pathlib import Path

import pytest

from deepspec.store.reading.piece_cache import PieceCache


def content(name: str, size: int = 100) -> bytes:
    return (name.encode() * size)[:size]


def ask(cache: PieceCache, name: str, fetched: Counter[str], size: int = 100) -> bytes:
    def fetch() -> bytes:
        fetched[name] += 1
        return content(name, size)

    return cache.get(name, size, fetch, lambda data: data == content(name, size))


def kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.block"))


def test_a_piece_is_fetched_once(tmp_path: Path) -> None:
    fetched: Counter[str] = Counter()
    for cache in (PieceCache(tmp_path, 1000), PieceCache(tmp_path, 1000)):
        for name in ("a", "b", "a"):
            assert ask(cache, name, fetched) == content(name)
    assert fetched == {"a": 1, "b": 1}


def test_it_never_holds_more_and_gives_up_what_was_used_longest_ago(tmp_path: Path) -> None:
    fetched: Counter[str] = Counter()
    cache = PieceCache(tmp_path, 350)
    for name in ("a", "b", "c", "a", "d", "a"):
        ask(cache, name, fetched)
        assert kept(tmp_path) <= 350
    assert fetched == {"a": 1, "b": 1, "c": 1, "d": 1}
    ask(cache, "b", fetched)
    assert fetched["b"] == 2


@pytest.mark.parametrize("max_bytes", [0, 99])
def test_a_piece_that_has_no_room_passes_through(tmp_path: Path, max_bytes: int) -> None:
    fetched: Counter[str] = Counter()
    cache = PieceCache(tmp_path / "cache", max_bytes)
    assert [ask(cache, "a", fetched), ask(cache, "a", fetched)] == [content("a")] * 2
    assert fetched == {"a": 2}
    assert not (tmp_path / "cache").exists()


def test_wrong_bytes_are_fetched_again(tmp_path: Path) -> None:
    fetched: Counter[str] = Counter()
    cache = PieceCache(tmp_path, 1000)
    ask(cache, "a", fetched)
    (path,) = tmp_path.glob("*.block")
    path.write_bytes(content("a")[:-1] + b"!")
    assert ask(cache, "a", fetched) == content("a")
    assert fetched == {"a": 2}
    assert ask(cache, "a", fetched) == content("a")
    assert fetched == {"a": 2}


def test_an_error_of_the_fetch_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ConnectionError("gone")

    cache = PieceCache(tmp_path, 1000)
    with pytest.raises(ConnectionError, match="gone"):
        cache.get("a", 100, fail, lambda data: True)
    assert kept(tmp_path) == 0
    assert ask(cache, "a", Counter()) == content("a")


def test_a_place_that_takes_nothing_is_told_once_and_does_not_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = PieceCache(tmp_path / "file" / "cache", 1000)
    fetched: Counter[str] = Counter()
    assert [ask(cache, name, fetched) for name in ("a", "a", "b")] == [content(name) for name in ("a", "a", "b")]
    assert fetched == {"a": 2, "b": 1}
    assert len(caplog.records) == 1


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123").write_bytes(bytes(500))
    ask(PieceCache(tmp_path, 1000), "a", Counter())
    assert not list(tmp_path.glob(".tmp-*"))


def _many(folder: Path, log: Path, names: list[str]) -> None:
    cache = PieceCache(folder, 10_000)
    for name in names:

        def fetch(name: str = name) -> bytes:
            with log.open("a") as file:
                file.write(f"{name}\n")
            return content(name)

        assert cache.get(name, 100, fetch, lambda data, name=name: data == content(name)) == content(name)


def test_processes_and_threads_that_want_one_piece_fetch_it_once(tmp_path: Path) -> None:
    log, names = tmp_path / "log.txt", [f"piece {number}" for number in range(30)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_many, args=(tmp_path / "cache", log, names)) for _ in range(3)]
    threads = [threading.Thread(target=_many, args=(tmp_path / "cache", log, names)) for _ in range(2)]
    for worker in [*workers, *threads]:
        worker.start()
    for worker in [*workers, *threads]:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(log.read_text().split("\n")) == sorted([*names, ""])
