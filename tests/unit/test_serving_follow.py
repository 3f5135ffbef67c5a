"""Followers: what a poll costs, what ends with the old draft, and what hosts say back."""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import BadArgument, TransientError
from deepspec.registry.draft_names import RegisteredName, registered_name
from deepspec.serving import hook
from deepspec.serving.follow import HOOK_TRIES, MOST_PAUSE_SECONDS, SAY_SECONDS, Following, Settings
from deepspec.serving.followers import Follower, empty, followers
from deepspec.serving.pull import RECORD, Pulled
from deepspec.serving.swap import Place
from deepspec.store import Store, open_store
from deepspec.store.gc import FORGOTTEN_SECONDS, collect
from tests.fixtures.refused import refused
from tests.fixtures.serving import MODEL, ReadOnly, draft_files, file_limit, promote, roll_back, train
from tests.fixtures.store import PLACES, Around, contents

NAME = RegisteredName(MODEL, None, "champion")


class Counted(Around):
    """A backend that counts what is asked of it, and can be away."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls: list[str] = []
        self.away = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name == "location":
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if self.away:
                raise TransientError("The store does not answer.", where="store", remedy="Check the network.")
            return found(*arguments, **options)

        return call


class Host:
    """A follower whose clock is turned by hand."""

    def __init__(self, store: Store, directory: Path, **settings: Any) -> None:
        self.backend = Counted(store.backend)
        self.store = Store(self.backend)
        self.directory = directory
        self.said: list[str] = []
        self.now = 1000.0
        self.following = Following(
            NAME, self.store, Place(directory), Settings(**settings), say=self.said.append, clock=lambda: self.now
        )

    def poll(self) -> float:
        """Poll once, and wait as long as it says."""
        pause = self.following.poll()
        self.now += pause
        return pause

    @property
    def files(self) -> dict[str, bytes]:
        found = contents(self.directory.resolve())
        found.pop(RECORD, None)
        return found

    def listed(self) -> Any:
        """How the store lists it."""
        (seen,) = followers(self.backend.inner)
        return seen


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def host(store: Store, tmp_path: Path) -> Callable[..., Host]:
    return lambda **settings: Host(store, tmp_path / "serving", **settings)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A hook that notes what it finds, and ends as the file `code` says."""
    script = tmp_path / "hook.sh"
    script.write_text(
        "#!/bin/sh\n"
        "cd $DEEPSPEC_DRAFT_DIR\n"
        f'echo "$DEEPSPEC_DRAFT_VERSION $DEEPSPEC_DRAFT_DIR $(cat config.json)" >> {tmp_path}/ran\n'
        f"exit $(cat {tmp_path}/code)\n"
    )
    script.chmod(0o755)
    (tmp_path / "code").write_text("0")
    (tmp_path / "ran").touch()
    return script


# --- polls ---------------------------------------------------------------------------------------------------------


def test_a_poll_in_which_nothing_changed_costs_one_listing(store: Store, host: Callable[..., Host]) -> None:
    promote(store, train(store, "one"), "1")
    follower = host()
    follower.poll()
    follower.backend.calls.clear()
    assert follower.poll() == 5.0
    assert follower.backend.calls == ["list"]


def test_in_a_bucket_that_is_one_request(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    there = PLACES["moto"](request)
    promote(there.store(), train(there.store(), "one"), "1")
    store = there.store()
    follower = Host(store, tmp_path / "serving")
    follower.poll()
    asked: list[str] = []
    store.backend._client.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.method))
    for _ in range(3):
        follower.poll()
    assert asked == ["GET"] * 3


def test_a_promotion_and_a_roll_back_arrive_with_the_next_poll(store: Store, host: Callable[..., Host]) -> None:
    follower = host()
    artifacts = [train(store, name) for name in ("one", "two")]
    for number, artifact in enumerate(artifacts, 1):
        promote(store, artifact, str(number))
        follower.poll()
        assert follower.files == draft_files(("one", "two")[number - 1])
    roll_back(store)
    follower.poll()
    assert follower.files == draft_files("one")
    assert [said.rpartition("version ")[2][0] for said in follower.said] == ["1", "2", "1"]


def test_what_always_means_the_same_draft_is_not_followed(store: Store, tmp_path: Path) -> None:
    for name in (f"models:/{MODEL}/1", f"models:/{MODEL}@challenger"):
        with refused(BadArgument, name, where="DRAFT"):
            found = registered_name(name, "DRAFT")
            assert found is not None
            Following(found, store, Place(tmp_path / "serving"), Settings(), say=print)


# --- secrets -------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_what_a_host_leaves_or_says(
    request: pytest.FixtureRequest, tmp_path: Path, command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "canary/secret+key", "MLFLOW_TRACKING_PASSWORD": "canary-password"}
    there = PLACES["moto"](request)
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    promote(there.store(), train(there.store(), "one"), "1")
    (tmp_path / "code").write_text("7")
    store = there.store()
    follower = Host(store, tmp_path / "serving", command=[str(command)])
    follower.poll()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:canary-in-a-url@127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    lost = Host(there.store(), tmp_path / "lost", command=[str(command)])
    lost.poll()
    assert len(lost.said) == 1
    records = {path: store.backend.read(path) for path in store.backend.list("followers")}
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = "\n".join([*follower.said, *lost.said]).encode()
    seen = {**records, **files, "said": said}
    assert len(records) == 1
    assert b"exit code 7" in said
    assert not [where for where, content in seen.items() if b"canary" in content]


# --- trouble -------------------------------------------------------------------------------------------------------


def test_an_outage_is_said_once_with_growing_pauses_and_the_draft_stays(
    store: Store, host: Callable[..., Host]
) -> None:
    promote(store, train(store, "one"), "1")
    follower = host()
    follower.poll()
    follower.said.clear()
    follower.backend.away = True
    pauses = [follower.poll() for _ in range(8)]
    assert pauses[:3] == [10.0, 20.0, 40.0]
    assert set(pauses[3:]) == {MOST_PAUSE_SECONDS}
    assert len(follower.said) == 1
    assert "does not answer" in follower.said[0]
    assert follower.files == draft_files("one")
    promote(store, train(store, "two"), "2")
    follower.backend.away = False
    assert follower.poll() == 5.0
    assert follower.files == draft_files("two")
    assert len(follower.said) == 3  # that all is well, and the new version
    assert follower.listed().state == "healthy"


def test_a_folder_that_is_not_mounted_is_no_store_without_champions(store: Store, host: Callable[..., Host]) -> None:
    promote(store, train(store, "one"), "1")
    follower = host()
    follower.poll()
    follower.said.clear()
    folder = Path(store.backend.location)
    folder.rename(folder.with_name("away"))
    folder.mkdir()
    assert [follower.poll() for _ in range(3)] == [10.0, 20.0, 40.0]
    assert len(follower.said) == 1
    assert str(folder) in follower.said[0]
    assert not any(folder.iterdir())  # nothing was written where the store is not
    assert follower.files == draft_files("one")
    folder.rmdir()
    folder.with_name("away").rename(folder)
    assert follower.poll() == 5.0
    assert follower.listed().state == "healthy"


def test_a_damaged_log_is_said_once_and_the_draft_stays(store: Store, host: Callable[..., Host]) -> None:
    promote(store, train(store, "one"), "1")
    follower = host()
    follower.poll()
    log = Path(store.backend.location) / "registry" / MODEL / "promotions"
    (log / "2.json").write_bytes(b"{}")
    follower.said.clear()
    for _ in range(5):
        follower.poll()
    assert len(follower.said) == 1
    assert "2.json" in follower.said[0]
    assert follower.files == draft_files("one")
    seen = follower.listed()
    assert (seen.state, seen.follower.version, seen.is_champion) == ("unhealthy", "1", None)
    (log / "2.json").unlink()
    follower.poll()
    assert follower.listed().state == "healthy"


def test_a_damaged_artifact_leaves_the_old_draft_until_the_roll_back(store: Store, host: Callable[..., Host]) -> None:
    promote(store, train(store, "one"), "1")
    follower = host()
    follower.poll()
    artifact = train(store, "two")
    promote(store, artifact, "2")
    damaged = Path(store.backend.location) / artifact.prefix / "draft" / "config.json"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    follower.said.clear()
    for _ in range(6):
        assert follower.poll() == 5.0  # the log is asked as often as ever
    assert len(follower.said) == 1
    assert "draft/config.json" in follower.said[0]
    assert follower.backend.calls.count("fetch") < 4 * 6  # but not the artifact
    assert follower.files == draft_files("one")
    assert follower.listed().state == "unhealthy"
    roll_back(store)
    follower.poll()
    assert follower.listed().state == "healthy"


def test_on_a_full_disk_the_draft_stays_and_the_follower_goes_on(store: Store, host: Callable[..., Host]) -> None:
    promote(store, train(store, "one"), "1")
    follower = host()
    follower.poll()
    promote(store, train(store, "two", num_bytes=200_000), "2")
    with file_limit(50_000):
        for _ in range(3):
            follower.poll()
    assert follower.files == draft_files("one")
    assert ["No space" in sentence for sentence in follower.said] == [False, True]
    while follower.now < 1000.0 + 2 * MOST_PAUSE_SECONDS:
        follower.poll()
    assert follower.files == draft_files("two", 200_000)


def test_on_a_full_disk_a_command_is_run_once_and_its_end_is_written_later(
    store: Store, host: Callable[..., Host], command: Path, tmp_path: Path
) -> None:
    promote(store, train(store, "one"), "1")
    host().poll()
    follower = host(command=[str(command)])
    # The command itself may write: the limit comes when it has ended.
    with pytest.MonkeyPatch.context() as patch, ExitStack() as full:
        run = hook.run

        def fills_up(*arguments: Any) -> int:
            code = run(*arguments)
            full.enter_context(file_limit(0))
            return code

        patch.setattr(hook, "run", fills_up)
        follower.poll()
        follower.poll()
    assert len([sentence for sentence in follower.said if "cannot be written" in sentence]) == 1
    assert follower.following.held is not None
    assert follower.following.held.hook_exit is None
    follower.poll()
    assert follower.following.held.hook_exit == 0
    assert len((tmp_path / "ran").read_text().splitlines()) == 1


def test_before_the_first_promotion_it_waits(store: Store, host: Callable[..., Host]) -> None:
    follower = host()
    follower.poll()
    assert follower.listed().follower.version == ""
    promote(store, train(store, "one"), "1")
    follower.poll()
    assert follower.files == draft_files("one")


def test_a_store_that_takes_no_records_is_followed_all_the_same(store: Store, tmp_path: Path) -> None:
    promote(store, train(store, "one"), "1")
    follower = Host(Store(ReadOnly(store.backend)), tmp_path / "serving")
    for _ in range(20):
        follower.poll()
    assert follower.files == draft_files("one")
    assert sum("does not take" in said for said in follower.said) == 1


# --- the command after a swap --------------------------------------------------------------------------------------


def test_the_command_finds_the_new_draft(
    store: Store, host: Callable[..., Host], command: Path, tmp_path: Path
) -> None:
    follower = host(command=[str(command)])
    for name in ("one", "two"):
        promote(store, train(store, name), name)
        follower.poll()
        follower.poll()
    folders = [folder.name for folder in Place(tmp_path / "serving").kept()][::-1]
    lines = [line.split(" ", 2) for line in (tmp_path / "ran").read_text().splitlines()]
    assert [(version, Path(folder).name, json.loads(config)) for version, folder, config in lines] == [
        (name, folder, {"name": name}) for name, folder in zip(("one", "two"), folders, strict=True)
    ]
    assert follower.listed().follower.hook_exit == 0


def test_a_command_that_fails_is_run_again_a_few_times_and_is_unhealthy(
    store: Store, host: Callable[..., Host], command: Path, tmp_path: Path
) -> None:
    (tmp_path / "code").write_text("7")
    follower = host(command=[str(command)])
    promote(store, train(store, "one"), "one")
    for _ in range(HOOK_TRIES + 3):
        follower.poll()
    assert len((tmp_path / "ran").read_text().splitlines()) == HOOK_TRIES
    seen = follower.listed()
    assert (seen.state, seen.follower.hook_exit, seen.is_champion) == ("unhealthy", 7, True)
    (tmp_path / "code").write_text("0")
    promote(store, train(store, "two"), "two")
    follower.poll()
    assert follower.listed().state == "healthy"


def test_a_command_that_was_not_run_before_a_kill_is_run_after_the_restart(
    store: Store, host: Callable[..., Host], command: Path, tmp_path: Path
) -> None:
    promote(store, train(store, "one"), "one")
    host().poll()  # as if killed after the swap
    host(command=[str(command)]).poll()
    host(command=[str(command)]).poll()
    assert len((tmp_path / "ran").read_text().splitlines()) == 1


def test_a_command_that_does_not_end_is_ended(store: Store, host: Callable[..., Host], tmp_path: Path) -> None:
    promote(store, train(store, "one"), "one")
    host().poll()
    place = Place(tmp_path / "serving")
    folder = place.held()
    held = Pulled.read(tmp_path / "serving")
    assert folder is not None
    assert held is not None
    assert hook.run(["sleep", "60"], held, folder, place.link, seconds=0.05) == 124
    assert hook.run([str(tmp_path / "missing")], held, folder, place.link) == 127


def test_commands_are_read_as_a_shell_would_and_bad_ones_refused() -> None:
    assert hook.words_of("sh -c 'a b'") == ["sh", "-c", "a b"]
    for wrong in ("", "sh -c 'a"):
        with refused(BadArgument, where="--hook"):
            hook.words_of(wrong)


# --- what hosts say ------------------------------------------------------------------------------------------------


def test_a_follower_speaks_on_changes_and_every_half_minute(store: Store, host: Callable[..., Host]) -> None:
    promote(store, train(store, "one"), "1")
    follower = host()
    begun = follower.now
    while follower.now < begun + 4 * SAY_SECONDS:
        follower.poll()
    assert follower.backend.calls.count("put") == 4
    promote(store, train(store, "two"), "2")
    follower.poll()
    assert follower.backend.calls.count("put") == 5


def says(store: Store, directory: str, seconds_ago: float = 0.0, **fields: Any) -> Path:
    follower = empty(MODEL, Path(directory), SAY_SECONDS).model_copy(update=fields)
    follower.say(store.backend)
    (path,) = (
        p for p in store.backend.list("followers") if directory in json.loads(store.backend.read(p))["directory"]
    )
    file = Path(store.backend.location) / path
    then = time.time() - seconds_ago
    os.utime(file, (then, then))
    return file


def test_followers_that_fall_silent_are_lost_by_the_stores_clock(store: Store) -> None:
    champion = promote(store, train(store, "one"), "1")
    says(store, "/a", version="1", digest=champion.digest)
    says(store, "/b", seconds_ago=80.0, healthy=False, trouble="the command ended with exit code 7")
    says(store, "/c", seconds_ago=110.0)
    says(store, "/d", seconds_ago=9999.0, stopped=True)
    says(store, "/e", since=(datetime.now(UTC) + timedelta(days=900)).isoformat())  # its own clock means nothing
    found = followers(store.backend)
    assert [(seen.follower.directory, seen.state, seen.is_champion) for seen in found] == [
        ("/a", "healthy", True),
        ("/b", "unhealthy", False),
        ("/c", "lost", False),
        ("/d", "stopped", False),
        ("/e", "healthy", False),
    ]
    assert len(followers(store.backend, MODEL)) == len(found)
    assert followers(store.backend, "other") == []


def test_records_that_are_no_followers_are_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    file = says(store, "/a")
    (file.parent / "bad.json").write_bytes(b"{}")
    (file.parent / "copy.json").write_bytes(file.read_bytes())
    newer = Follower.model_validate({**empty(MODEL, Path("/n"), 30.0).to_json(), "format": 2})
    newer.say(store.backend)
    assert [seen.follower.directory for seen in followers(store.backend)] == ["/a"]
    assert len(caplog.messages) == 3


def test_a_collection_forgets_hosts_only_after_long_silence(store: Store) -> None:
    old = says(store, "/old", seconds_ago=FORGOTTEN_SECONDS + 60)
    young = says(store, "/young", seconds_ago=FORGOTTEN_SECONDS - 3600)
    removed = collect(store, [], grace_seconds=0.0)
    assert [Path(item.name).name for item in removed] == [old.name]
    assert not old.exists()
    assert young.exists()


def test_a_copy_of_a_store_leaves_followers_out(store: Store, tmp_path: Path) -> None:
    from deepspec.store.copy_store import copy_store

    promote(store, train(store, "one"), "1")
    says(store, "/a")
    other = open_store(str(tmp_path / "other"))
    assert copy_store(store, other).complete
    assert other.backend.list("followers") == {}
    assert other.backend.list("registry").keys() == store.backend.list("registry").keys()
    assert [pair[0] for pair in store.names()] == ["train"]
