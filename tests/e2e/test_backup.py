"""A home is backed up while it is in use, lost, and restored."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.e2e.conftest import Home


def copied(home: Home, *command: str, code: int = 0) -> dict[str, object]:
    return dict(json.loads(home.run(*command, "--json", code=code).out))


@pytest.mark.full  # eight commands, a run of hits among them
def test_backup_loss_and_restore(warm: Home, tmp_path: Path) -> None:
    before = warm.record()
    history = warm.run("models", "history", "tiny", "--json").out
    # A run goes on: an attempt is being filled, a lease says so, and somebody writes to the database.
    attempt = warm.path / "store" / "train" / ("0" * 64) / ("1" * 32)
    attempt.mkdir(parents=True)
    (attempt / "model.safetensors").write_bytes(b"half of it")
    (warm.path / "store" / "leases" / "runs" / "other").mkdir(parents=True)
    (warm.path / "store" / "leases" / "runs" / "other" / "000001.json").write_bytes(b"{}")
    writer = sqlite3.connect(warm.path / "mlflow.db")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE registered_models SET description = 'not committed yet'")

    out = tmp_path / "backup"
    done = copied(warm, "backup", str(out))
    writer.rollback()
    writer.close()
    assert done["complete"] is True
    assert (done["artifacts"], done["present"], done["records"]) == (len(before["stages"]), 0, 2)
    assert not (out / "store" / "train" / ("0" * 64)).exists()
    assert not (out / "store" / "leases" / "runs" / "other").exists()
    assert not list((out / "store").rglob(".tmp-*"))
    again = copied(warm, "backup", str(out))
    assert (again["artifacts"], again["present"], again["records"]) == (0, len(before["stages"]), 0)

    shutil.rmtree(warm.path)
    restored = Home(tmp_path / "elsewhere")
    shutil.copytree(out, restored.path)
    assert copied(restored, "artifacts", "verify") == {"checked": len(before["stages"]), "damaged": {}}
    assert restored.run("models", "history", "tiny", "--json").out == history
    (version,) = json.loads(restored.run("models", "ls", "--json").out)
    assert version["aliases"] == ["champion"]
    assert "already says 1" in restored.run("models", "reconcile", "tiny").out
    assert before["run_id"] in restored.run("explain").out
    restored.run("run", "tiny")
    assert restored.ran() == []
    assert restored.record()["status"] == "no_change"
    assert restored.record()["evaluation"] == before["evaluation"]

    from deepspec.registry.mlflow.tracking import Tracking

    tracking = Tracking.embedded(restored.path)
    (registered,) = tracking.list_versions("tiny")
    folder = tracking.download(registered, tmp_path / "downloaded")
    assert (folder / "model.safetensors").exists()


@pytest.mark.full  # two evaluations
def test_a_backup_follows_its_home_and_refuses_another(warm: Home, tmp_path: Path) -> None:
    out = tmp_path / "backup"
    warm.run("backup", str(out))
    twin = Home(tmp_path / "twin")
    shutil.copytree(out, twin.path)
    (twin.path / "backup-of.txt").unlink()
    warm.run("run", "tiny", "--set", "name=other", "--set", "evaluate.max_new_tokens=16")
    added = copied(warm, "backup", str(out))
    assert added["complete"] is True
    assert added["records"] == 2  # a promotion, and the run
    assert json.loads(Home(out).run("models", "history", "other", "--json").out)

    # The twin goes its own way from there: its log is not the one that was backed up.
    twin.run("run", "tiny", "--set", "name=other")
    database = (out / "mlflow.db").read_bytes()
    refused = twin.run("backup", str(out), code=1)
    assert "promotion logs" in refused.err
    assert (out / "mlflow.db").read_bytes() == database


@pytest.mark.parametrize(
    ("out", "words"),
    [("home/inside", "cannot be copied into itself"), ("", "cannot be copied into itself"), ("full", "no backup")],
)
def test_what_is_no_place_for_a_backup_is_refused(tmp_path: Path, out: str, words: str) -> None:
    home = Home(tmp_path / "home")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("somebody's")
    assert words in home.run("backup", str(tmp_path / out), code=2).err
    assert (tmp_path / "full" / "letter.txt").read_text() == "somebody's"


def test_a_service_is_backed_up_with_its_own_tools(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    told = home.run(
        "backup", str(tmp_path / "out"), code=2, environment={"MLFLOW_TRACKING_URI": "http://nowhere:1"}
    ).err
    assert "MLFLOW_TRACKING_URI" in told
    assert "artifacts copy" in told


@pytest.mark.full  # two trainings
def test_a_store_newer_than_its_database_is_registered_again(warm: Home, tmp_path: Path) -> None:
    """What is restored last week's database and today's store; here, no database at all."""
    (before,) = json.loads(warm.run("models", "ls", "--json").out)
    for file in warm.path.glob("mlflow.db*"):
        file.unlink()
    shutil.rmtree(warm.path / "mlartifacts")
    assert json.loads(warm.run("models", "ls", "--json").out) == []
    told = warm.run("models", "reconcile", "tiny").out
    assert "tiny: champion was none, is now 1." in " ".join(told.split())
    (after,) = json.loads(warm.run("models", "ls", "--json").out)
    assert after == before | {"run_id": ""}
    assert "already says 1." in warm.run("models", "reconcile", "tiny").out

    from deepspec.registry.mlflow.tracking import Tracking

    tracking = Tracking.embedded(warm.path)
    (version,) = tracking.list_versions("tiny")
    assert (tracking.download(version, tmp_path / "draft") / "model.safetensors").exists()
    warm.run("run", "tiny")
    assert warm.ran() == []
