"""The promotion log, as runs and commands meet it: roll backs that stay, drafts that contend for one model."""

import json
from typing import Any

from tests.e2e.conftest import Home

CONTEST = ("--set", "registry.model=contest")


def history(home: Home) -> list[dict[str, Any]]:
    return list(json.loads(home.run("models", "history", "contest", "--json").out))


def stage(home: Home, name: str) -> dict[str, Any]:
    return dict(next(stage for stage in home.record()["stages"] if stage["name"] == name))


def test_what_was_rolled_back_stays_so_until_a_person_unblocks_it(warm: Home) -> None:
    """Two recipes contend for a model; then the better one is rolled back, and comes back by no run.

    Over ten seconds: two trainings, and six runs.
    """
    beginner = ("--set", "name=beginner", "--set", "train.num_steps=1")
    warm.run("run", "tiny", *CONTEST, *beginner)
    assert warm.record()["model"]["uri"] == "models:/contest/1"
    warm.run("run", "tiny", *CONTEST)
    assert warm.record()["status"] == "promoted"
    assert warm.record()["model"]["uri"] == "models:/contest/2"
    assert {name for name in warm.ran() if name not in ("register", "gate", "promote")} == set()
    trained = stage(warm, "train")

    warm.run("rollback", "contest", "--reason", "slower in production")
    warm.run("promote", "models:/contest/2", code=3)
    for changed in ("evaluate.max_new_tokens=16", f"train.num_steps={steps_of(warm, trained['key'])}"):
        done = warm.run("run", "tiny", *CONTEST, "--set", changed, code=3)
        record = warm.record()
        assert record["status"] == "refused"
        assert stage(warm, "gate")["status"] == stage(warm, "promote")["status"] == "skipped"
        assert "slower in production" in " ".join(record["notes"])
        assert "slower in production" in " ".join(done.out.split())
    assert stage(warm, "train")["status"] == "ran"
    assert [entry["kind"] for entry in history(warm)] == ["promote", "promote", "rollback"]

    warm.run("promote", "models:/contest/2", "--unblock", code=2)  # without a reason
    warm.run("promote", "models:/contest/2", "--unblock", "--reason", "it was the host")
    kinds = ["promote", "promote", "rollback", "unblock", "promote"]
    assert [entry["kind"] for entry in history(warm)] == kinds
    assert history(warm)[-1]["champion"]["version"] == "2"
    warm.run("run", "tiny", *CONTEST)
    assert warm.record()["status"] == "no_change"


def steps_of(home: Home, key: str) -> int:
    """How many steps a draft was trained for."""
    [metrics] = (home.path / "store" / "train" / key).glob("*/metrics.jsonl")
    return max(int(json.loads(line)["step"]) for line in metrics.read_text().splitlines())
