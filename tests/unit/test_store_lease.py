"""Leases: one live holder at a time, tokens that only grow, and collectors that believe them."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepspec.errors import ArtifactError, LeaseHeld, StoreFull, TransientError
from deepspec.store import Backend
from deepspec.store.backends.local import LocalBackend
from deepspec.store.layout import Stat
from deepspec.store.lease import Lease, leased, live
from deepspec.store.records import seal
from tests.fixtures.refused import refused
from tests.fixtures.store import EVERY_PLACE, PLACES, Around, Place


@pytest.fixture(params=EVERY_PLACE)
def place(request: pytest.FixtureRequest) -> Place:
    return PLACES[request.param](request)


PASSING_TIME = pytest.mark.parametrize("place", ["local", "moto"], indirect=True)
"""Waits for leases to run out; a server of its own tells no other time than moto's, and would only wait once more."""


@pytest.fixture
def backend(place: Place) -> Backend:
    return place.store().backend


@pytest.fixture
def ttl(place: Place) -> float:
    return place.ttl_seconds


def silenced(backend: Backend, name: str, ttl_seconds: float, **content: object) -> Lease:
    """A holder that has stopped giving signs of life, but does not know it: a machine that was put to sleep."""
    lease = Lease(backend, name, ttl_seconds)
    lease.acquire(**content)
    lease._stopped.set()
    return lease


def after_its_death(take: Callable[[], int]) -> int:
    """Try until the silent holder is passed over."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            return take()
        except LeaseHeld:
            time.sleep(0.02)
    raise AssertionError("a dead holder was never passed over")


def test_one_holder_at_a_time(backend: Backend) -> None:
    with leased(backend, "train/x") as first:
        with refused(LeaseHeld, where="leases/train/x") as caught:
            Lease(backend, "train/x").acquire()
        assert "60 s" in str(caught.value.remedy)
        assert first.held()
        with leased(backend, "train/y"), leased(backend, "train"), leased(backend, "train/x/z"):
            assert first.held()
    with leased(backend, "train/x") as second:
        assert second.held()
        assert not first.held()
        first.release()
        assert second.held()


def test_the_fencing_token_grows_over_releases_and_deaths(backend: Backend, ttl: float) -> None:
    tokens = []
    for _ in range(3):
        with leased(backend, "train/x", ttl) as lease:
            tokens.append(lease.token)
    tokens.append(silenced(backend, "train/x", ttl).token)
    heir = Lease(backend, "train/x", ttl)
    tokens.append(after_its_death(heir.acquire))
    heir.release()
    assert tokens == [1, 2, 3, 4, 5]
    assert list(backend.list("leases/train/x")) == ["leases/train/x/000005.json", "leases/train/x/000005.released"]


@PASSING_TIME
def test_a_dead_holder_is_passed_over_and_can_tell(backend: Backend, ttl: float) -> None:
    dead = silenced(backend, "train/x", ttl)
    with pytest.raises(LeaseHeld):
        Lease(backend, "train/x", ttl).acquire()
    assert dead.held()
    heir = Lease(backend, "train/x", ttl)
    assert after_its_death(heir.acquire) == 2
    assert heir.held()
    assert not dead.held()
    with refused(LeaseHeld, "took over", where="train/x"):
        dead.note(keys=[])
    dead.release()
    assert heir.held()
    heir.release()
    # Nor when the heir has gone, nor when the records of both have been tidied away and the count begins anew.
    assert not dead.held()
    with leased(backend, "train/x"):
        assert not dead.held()
    for path in backend.list("leases/train"):
        backend.delete(path)
    first = silenced(backend, "train/z", ttl)
    backend.delete("leases/train/z/000001.json")
    with leased(backend, "train/z") as second:
        assert (first.token, second.token) == (1, 1)
        assert second.held()
        assert not first.held()
        first.release()
        assert second.held()


def _hold_until_killed(place: Place, ready: str) -> None:
    Lease(place.store().backend, "train/x", place.ttl_seconds).acquire()
    Path(ready).touch()
    time.sleep(60)


@PASSING_TIME
def test_a_killed_process_is_passed_over(place: Place, tmp_path: Path, ttl: float) -> None:
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("fork").Process(target=_hold_until_killed, args=(place, str(ready)))
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    backend = place.store().backend
    time.sleep(1.3 * ttl)
    with pytest.raises(LeaseHeld):
        Lease(backend, "train/x", ttl).acquire()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    heir = Lease(backend, "train/x", ttl)
    assert after_its_death(heir.acquire) == 2
    heir.release()


@PASSING_TIME
def test_the_heartbeat_keeps_a_lease_alive(backend: Backend, ttl: float) -> None:
    with leased(backend, "train/x", ttl) as lease:
        end = time.monotonic() + 1.5 * ttl
        while time.monotonic() < end:
            with pytest.raises(LeaseHeld):
                Lease(backend, "train/x", ttl).acquire()
            time.sleep(ttl / 5)
        assert lease.held()


@pytest.mark.parametrize("before", ["nobody", "a dead one", "a released one"])
def test_of_many_acquirers_exactly_one_holds(backend: Backend, before: str, place: Place) -> None:
    if before == "a dead one":
        silenced(backend, "train/x", 0.001)
        time.sleep(place.tick_seconds)
    elif before == "a released one":
        with leased(backend, "train/x"):
            pass
    start = threading.Barrier(8)

    def race(_: int) -> Lease | None:
        lease = Lease(backend, "train/x", 30.0)
        start.wait()
        try:
            lease.acquire()
        except LeaseHeld:
            return None
        return lease

    with ThreadPoolExecutor(8) as pool:
        holders = [lease for lease in pool.map(race, range(8)) if lease is not None]
    assert len(holders) == 1
    assert holders[0].held()
    holders[0].release()


def test_who_hands_over_quickly_never_lets_two_in(backend: Backend, ttl: float) -> None:
    """Many acquire, work and release in turn; somebody who decided on an old listing must not slip in."""
    inside, clashes, tokens = [0], [0], []
    soonest = time.monotonic() + ttl
    latest = soonest + 120  # a busy machine has few turns in `ttl`

    def work(_: int) -> None:
        while (now := time.monotonic()) < soonest or (len(tokens) < 5 and now < latest):
            lease = Lease(backend, "train/x", 30.0)
            try:
                lease.acquire()
            except LeaseHeld:
                continue
            inside[0] += 1
            clashes[0] += inside[0] != 1
            tokens.append(lease.token)
            time.sleep(0.001)
            inside[0] -= 1
            lease.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert clashes == [0]
    assert tokens == sorted(set(tokens))
    assert len(tokens) > 3


def test_who_comes_late_with_a_number_that_is_free_again_backs_off(backend: Backend) -> None:
    with leased(backend, "train/x"):
        pass

    class Late(Around):
        """While this acquirer is about to create record 2, others take it, and 3, and tidy 2 away."""

        def create(self, path: str, data: bytes) -> bool:
            if path.endswith("2.json") and not others:
                with leased(backend, "train/x"):
                    pass
                others.append(Lease(backend, "train/x"))
                assert others[0].acquire() == 3
            done: bool = self.inner.create(path, data)
            return done

    others: list[Lease] = []
    with pytest.raises(LeaseHeld):
        Lease(Late(backend), "train/x").acquire()
    assert others[0].held()
    others[0].release()


def test_who_comes_late_with_a_number_that_was_given_back_takes_the_next(backend: Backend) -> None:
    class Late(Around):
        """While this acquirer is about to create record 1, another takes it and gives it back."""

        def create(self, path: str, data: bytes) -> bool:
            if path.endswith("1.json"):
                with leased(backend, "train/x") as other:
                    assert other.token == 1
            done: bool = self.inner.create(path, data)
            return done

    with leased(Late(backend), "train/x") as lease:
        assert lease.token == 2
        assert lease.held()
        with pytest.raises(LeaseHeld):
            Lease(backend, "train/x").acquire()


@pytest.mark.parametrize("answer", [None, TransientError("Read timed out.")], ids=str)
def test_a_lost_answer_does_not_lock_its_own_holder_out(backend: Backend, answer: Exception | None) -> None:
    class LosesAnswers(Around):
        def create(self, path: str, data: bytes) -> bool:
            self.inner.create(path, data)
            if answer is not None and path.endswith(".json"):
                raise answer
            return False

    with leased(LosesAnswers(backend), "train/x") as lease:
        assert lease.token == 1
        assert lease.held()


@PASSING_TIME
def test_a_slow_look_at_the_store_makes_nobody_dead(backend: Backend, ttl: float) -> None:
    class Slow(Around):
        def list(self, prefix: str) -> dict[str, Stat]:
            listing: dict[str, Stat] = self.inner.list(prefix)
            time.sleep(1.3 * ttl)
            return listing

    with leased(backend, "train/x", ttl) as holder:
        with pytest.raises(LeaseHeld):
            Lease(Slow(backend), "train/x", ttl).acquire()
        assert holder.held()


def test_a_dead_holder_can_tell_though_its_record_is_still_there(tmp_path: Path) -> None:
    class Kept(Around):
        def delete(self, path: str) -> None:
            raise TransientError("Read timed out.")

    backend = LocalBackend(tmp_path)
    dead = silenced(backend, "train/x", 0.001)
    time.sleep(0.02)
    with leased(Kept(backend), "train/x") as heir:
        assert (dead.token, heir.token) == (1, 2)
        assert heir.held()
        assert not dead.held()


def test_a_holder_is_judged_by_its_own_time_to_live(backend: Backend, place: Place) -> None:
    holder = silenced(backend, "runs/1", 30.0, keys=[["tokens", "a"]])
    time.sleep(place.tick_seconds)
    with refused(LeaseHeld, where="runs/1") as caught:
        Lease(backend, "runs/1", 0.001).acquire()
    assert "30 s" in str(caught.value.remedy)
    assert list(live(backend, "runs")) == [{"keys": [["tokens", "a"]]}]
    holder.release()


@PASSING_TIME
def test_collectors_see_what_live_holders_say_and_nothing_else(backend: Backend, ttl: float, place: Place) -> None:
    silenced(backend, "runs/dead", 0.001, keys=["dead"])
    time.sleep(place.tick_seconds)
    with leased(backend, "runs/gone", keys=["gone"]):
        pass
    with leased(backend, "runs/1", ttl, keys=[]) as lease, leased(backend, "train/x", keys=["other group"]):
        assert list(live(backend, "runs")) == [{"keys": []}]
        lease.note(keys=["a"])
        lease.note(host="here")
        assert list(live(backend, "runs")) == [{"keys": ["a"], "host": "here"}]
        time.sleep(1.3 * ttl)
        assert list(live(backend, "runs")) == [{"keys": ["a"], "host": "here"}]
    assert list(live(backend, "runs")) == []


def test_a_note_is_not_undone_by_a_heartbeat_that_began_before(backend: Backend) -> None:
    with leased(backend, "runs/1", 0.01, n=0) as lease:
        end = time.monotonic() + 0.4
        number = 0
        while time.monotonic() < end:
            number += 1
            lease.note(n=number)
            record = backend.read("leases/runs/1/000001.json")
            assert b'"n": %d' % number in record


def test_a_damaged_lease_protects_until_it_is_written_anew(place: Place) -> None:
    backend = place.store().backend
    path = "leases/runs/1/000001.json"
    with leased(backend, "runs/1", 30.0, keys=["a"]) as lease:
        whole = backend.read(path)
        place.overwrite(path, whole.replace(b'"a"', b'"b"'))
        with refused(ArtifactError, "lease", where=path):
            list(live(backend, "runs"))
        with pytest.raises(LeaseHeld):
            Lease(backend, "runs/1").acquire()
        assert lease.held()
        lease.note()
        assert backend.read(path) == whole
        assert list(live(backend, "runs")) == [{"keys": ["a"]}]


@PASSING_TIME
def test_a_heartbeat_that_fails_ends_nothing(backend: Backend, caplog: pytest.LogCaptureFixture, ttl: float) -> None:
    class Flaky(Around):
        broken = False

        def put(self, path: str, data: bytes) -> None:
            if self.broken:
                raise StoreFull("No space left for artifacts.")
            self.inner.put(path, data)

    flaky = Flaky(backend)
    with leased(flaky, "runs/1", ttl, keys=["a"]):
        flaky.broken = True
        deadline = time.monotonic() + 60
        while "heartbeat of leases/runs/1 could not be written" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "Traceback" not in caplog.text
        flaky.broken = False
        time.sleep(ttl)
        assert list(live(backend, "runs")) == [{"keys": ["a"]}]


@PASSING_TIME
def test_a_lease_that_cannot_be_released_runs_out(
    backend: Backend, caplog: pytest.LogCaptureFixture, ttl: float
) -> None:
    class Full(Around):
        full = False

        def create(self, path: str, data: bytes) -> bool:
            if self.full:
                raise StoreFull("No space left for artifacts.")
            done: bool = self.inner.create(path, data)
            return done

    full = Full(backend)
    with leased(full, "train/x", ttl):
        full.full = True
    assert "will run out by itself" in caplog.text
    heir = Lease(backend, "train/x", ttl)
    assert after_its_death(heir.acquire) == 2
    heir.release()


def write_as(backend: Backend, name: str, version: int | None) -> None:
    """A live lease as another version of deepspec would write it (None: the first one)."""
    body: dict[str, object] = {"holder": "somebody", "ttl_seconds": 60.0, "content": {"keys": [["train", "k"]]}}
    if version is not None:
        body = {"format": version, "renamed": body}
    backend.create(f"leases/{name}/000001.json", seal(body))


def test_a_lease_of_a_newer_deepspec_is_neither_passed_over_nor_taken(backend: Backend) -> None:
    write_as(backend, "runs/newer", 2)
    with refused(ArtifactError, "format 2", where="runs/newer"):
        list(live(backend, "runs"))
    with refused(ArtifactError, "format 2", where="runs/newer/000001.json"):
        Lease(backend, "runs/newer").acquire()
    backend.create("leases/runs/newer/000001.released", b"")
    assert list(live(backend, "runs")) == []
    lease = Lease(backend, "runs/newer")
    assert lease.acquire() == 2
    lease.release()


def test_a_newer_lease_that_nobody_wrote_to_for_long_is_dead(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    write_as(backend, "runs/newer", 2)
    now = backend.clock() + 2 * 24 * 3600
    monkeypatch.setattr(type(backend), "clock", lambda self: now)
    assert list(live(backend, "runs")) == []


def test_a_lease_of_the_first_version_protects(backend: Backend) -> None:
    write_as(backend, "runs/first", None)
    assert list(live(backend, "runs")) == [{"keys": [["train", "k"]]}]
    with pytest.raises(LeaseHeld):
        Lease(backend, "runs/first").acquire()
