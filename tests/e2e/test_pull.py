"""`deepspec pull` as a process: killed at random moments, following, and ended; five kills here, a hundred in
`make campaign PART=pull`."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from deepspec.serving.pull import RECORD, Pulled
from deepspec.serving.swap import Place
from deepspec.store import Store, open_store
from tests.fixtures.command import Forked, call, start
from tests.fixtures.serving import MODEL, draft_files, promote, roll_back, train
from tests.fixtures.store import contents

pytestmark = pytest.mark.full

CHAMPION = f"models:/{MODEL}@champion"
NUM_BYTES = 24 << 20
MOST_SECONDS = 120.0


def environment(folder: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DEEPSPEC_"))}
    return {**clean, "DEEPSPEC_HOME": str(folder / "home"), "DEEPSPEC_STORE": str(folder / "store")}


def held(directory: Path) -> str:
    """Which draft lies in DIR, all of it; fails for anything else."""
    found = contents(directory.resolve())
    record = Pulled.read(directory)
    assert record is not None
    found.pop(RECORD)
    assert found == draft_files(record.version, NUM_BYTES)
    return record.version


def wait_for(condition: Callable[[], bool], process: Forked) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def killed_and_pulled(folder: Path, *, seed: int, num_kills: int) -> dict[str, Any]:
    """Kill a pull of another champion again and again; DIR holds the old draft or the new one, and the next pull ends.

    A process that had ended by then was not killed, and does not count. Every other kill comes soon after the new
    draft's folder was made, the others at any moment of the process's life.

    Returns:
        how many kills came before the swap, and after it.
    """
    store = open_store(str(folder / "store"))
    artifacts = {name: train(store, name, NUM_BYTES) for name in ("one", "two")}
    promote(store, artifacts["one"], "one")
    directory, dice = folder / "serving", random.Random(seed)
    place = Place(directory)
    arguments = ["pull", CHAMPION, str(directory)]
    assert call(arguments, environment(folder)).returncode == 0  # the process that forks is there from here on
    promote(store, artifacts["two"], "two")
    begun = time.monotonic()
    assert call(arguments, environment(folder)).returncode == 0
    lasts = time.monotonic() - begun
    came = {"before the swap": 0, "after the swap": 0}
    for number in count():
        if sum(came.values()) == num_kills:
            return came
        old = held(directory)
        new = "two" if old == "one" else "one"
        promote(store, artifacts[new], new)
        forget_previous(place)
        files = {name: folder / name for name in ("out.txt", "err.txt")}
        process = start(arguments, environment(folder), out=files["out.txt"], err=files["err.txt"])
        if number % 2:
            wait_for(lambda new=new: len(list(place.versions.glob("*-*"))) > 2 or held_now(place) == new, process)
            time.sleep(dice.uniform(0.0, 0.15))
        else:
            time.sleep(dice.uniform(0.0, 0.9 * lasts))
        ended = process.poll() is not None
        process.kill()
        process.wait(MOST_SECONDS)
        found = held(directory)
        assert found in (old, new)
        if not ended:
            came["after the swap" if found == new else "before the swap"] += 1
        done = call(arguments, environment(folder))
        assert done.returncode == 0, done.stderr
        assert held(directory) == new
        left = {entry.name for entry in place.versions.iterdir()} - {kept.name for kept in place.kept()}
        assert left <= {"lock", "previous"}
    raise AssertionError


def forget_previous(place: Place) -> None:
    """Remove the draft before, so that the next pull copies it again."""
    for folder in place.kept()[1:]:
        (folder / RECORD).unlink()


def held_now(place: Place) -> str:
    folder = place.held()
    record = None if folder is None else Pulled.read(folder)
    return "" if record is None else record.version


def test_kills_leave_the_old_or_the_new_draft(tmp_path: Path) -> None:
    """Thirty seconds on a slow machine: some twelve processes, each of which reads a draft of 24 MB twice."""
    assert sum(killed_and_pulled(tmp_path, seed=0, num_kills=5).values()) == 5


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_a_follower_takes_over_what_is_promoted_and_rolled_back_and_ends_when_told(
    store: Store, tmp_path: Path
) -> None:
    promote(store, train(store, "one", NUM_BYTES), "one")
    directory, out, err = tmp_path / "serving", tmp_path / "out.txt", tmp_path / "err.txt"
    hook = f"sh -c 'echo $DEEPSPEC_DRAFT_VERSION >> {tmp_path}/hooked'"
    arguments = ["pull", CHAMPION, str(directory), "--follow", "--poll-seconds", "0.2", "--hook", hook, "--json"]
    process = start(arguments, environment(tmp_path), out=out, err=err)
    hooked = tmp_path / "hooked"

    def hooks() -> list[str]:
        return hooked.read_text().split() if hooked.exists() else []

    try:
        wait_for(lambda: hooks() == ["one"], process)
        promote(store, train(store, "two", NUM_BYTES), "two")
        wait_for(lambda: hooks() == ["one", "two"], process)
        assert held(directory) == "two"
        roll_back(store)
        wait_for(lambda: hooks() == ["one", "two", "one"], process)
        assert held(directory) == "one"
        listed = call(["models", "followers", MODEL, "--json"], environment(tmp_path))
        (seen,) = json.loads(listed.stdout)
        assert (seen["version"], seen["state"], seen["is_champion"], seen["hook_exit"]) == ("one", "healthy", True, 0)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(MOST_SECONDS) == 0, err.read_text()
    finally:
        process.kill()
    assert json.loads(out.read_text())["version"] == "one"
    (seen,) = json.loads(call(["models", "followers", "--json"], environment(tmp_path)).stdout)
    assert seen["state"] == "stopped"
