"""The promotion log, as runs and commands meet it: roll backs that stay, drafts that contend for one model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from deepspec.registry.mlflow.tracking import Tracking
from tests.e2e.conftest import Home

CONTEST = ("--set", "registry.model=contest")


def history(home: Home) -> list[dict[str, Any]]:
    return list(json.loads(home.run("models", "history", "contest", "--json").out))


def stage(home: Home, name: str) -> dict[str, Any]:
    return dict(next(stage for stage in home.record()["stages"] if stage["name"] == name))


def test_what_was_rolled_back_stays_so_until_a_person_unblocks_it(warm: Home) -> None:
    """Two recipes contend for a model; then the better one is rolled back, and comes back by no run.

    Over ten seconds: three trainings, and ten runs.
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

    page = json.loads(warm.run("models", "show", "models:/contest/2", "--json").out)
    assert "slower in production" in page["blocked"]
    assert page["verdict"]["accepted"] is True
    assert page["speed"]["macro"]["speedup"] > 0
    assert {"train", "tokens", "conversations"} <= {item["kind"] for item in page["lineage"]}
    shown = warm.run("models", "history", "contest").out.splitlines()
    assert "by 3" in next(line for line in shown if line.startswith("2 "))

    warm.run("promote", "models:/contest/2", "--unblock", code=2)  # without a reason
    warm.run("promote", "models:/contest/2", "--unblock", "--reason", "it was the host")
    kinds = ["promote", "promote", "rollback", "unblock", "promote"]
    assert [entry["kind"] for entry in history(warm)] == kinds
    assert history(warm)[-1]["champion"]["version"] == "2"
    warm.run("run", "tiny", *CONTEST)
    assert warm.record()["status"] == "no_change"
    assert warm.record()["model"]["aliases"] == ["champion"]

    raced = subprocess.run(
        [sys.executable, "-c", RACE], env=warm.environment(), capture_output=True, text=True, check=False
    )
    assert raced.returncode == 0, raced.stderr
    entries = json.loads(warm.run("models", "history", "race", "--json").out)
    rival, winner = (entry["champion"]["digest"] for entry in entries)
    assert rival == entries[1]["verdict"]["champion"] != winner
    assert json.loads(raced.stdout.splitlines()[-1]) == ["promoted", 1]

    # What it was promoted over is damaged: that hinders neither the champion's runs nor the repair of MLflow.
    [weights] = (warm.path / "store" / "train" / history(warm)[0]["champion"]["key"]).glob("*/draft/model.safetensors")
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "Version 1 is damaged" in warm.run("rollback", "contest", code=1).err
    warm.run("run", "tiny", *CONTEST)
    assert warm.record()["status"] == "no_change"
    assert "promoted over" in warm.record()["notes"][0]
    another = Tracking(f"sqlite:///{warm.path / 'another.db'}", warm.path / "another")
    assert another.list_models() == ()  # its experiment is made, and knows where its files go
    elsewhere = {"MLFLOW_TRACKING_URI": another.uri}
    done = warm.run("run", "tiny", *CONTEST, code=1, environment=elsewhere)
    assert f"registered at sqlite:///{warm.path / 'mlflow.db'}" in " ".join(done.err.split())
    done = warm.run("models", "reconcile", "contest", environment=elsewhere)
    assert "Registered again: version 1." in " ".join(done.out.split())
    assert "version 1 cannot be registered again" in " ".join(done.out.split())


RACE = """
import json, os
from pathlib import Path

from deepspec.gates.verdict import Reason, Verdict
from deepspec.recipe import load_recipe
from deepspec.registry.entries import DraftReference
from deepspec.registry.promotions import PromotionLog
from deepspec.store import open_store
from flows.retrain import retrain
from tasks.runtime.display import Hidden
from tasks.runtime.execute import execute

home = Path(os.environ["DEEPSPEC_HOME"])
store = open_store(str(home / "store"))
log = PromotionLog(store.backend)
beginner = log.history("contest")[0].champion


class Rival(Hidden):
    said = 0

    def done(self, record):
        if record.name == "gate" and log.last("race") is None:  # between the verdict and the promotion
            easy = Reason(gate="tau", passed=True, measured=1.0, sentence="First.")
            verdict = Verdict(accepted=True, reasons=(easy,), challenger=beginner.digest)
            log.promote("race", beginner, verdict, who="rival")

    def say(self, text):
        self.said += "asked again" in text


display = Rival()
recipe = load_recipe("tiny", ["registry.model=race"])
result = execute(retrain, [recipe], store, home, name="race", display=display)
if result.error:
    raise result.error
print(json.dumps([result.status, display.said]))
"""


def test_what_was_moved_or_deleted_in_mlflow_is_repaired_and_said(warm: Home) -> None:
    """Every stage is a hit each time."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{warm.path / 'mlflow.db'}")
    warm.run("run", "tiny")
    assert "notes" not in warm.record()
    client.delete_registered_model_alias("tiny", "champion")
    done = warm.run("run", "tiny")
    assert "alias champion pointed to no version" in " ".join(done.err.split())
    assert "alias champion" in warm.record()["notes"][0]
    client.delete_model_version("tiny", "1")
    done = warm.run("run", "tiny")
    assert "registered again as version 2" in " ".join(done.err.split())
    assert warm.record()["model"] == {"name": "tiny", "version": "2", "uri": "models:/tiny/2", "aliases": ["champion"]}
    assert "registered again" in Path(warm.record()["report"]).read_text()
    assert warm.ran() == []
    warm.run("run", "tiny")
    assert "notes" not in warm.record()

    # A run that fails looks, too, and its own error stays the one that is shown.
    client.delete_registered_model_alias("tiny", "champion")
    nothing = warm.path / "nothing"
    nothing.mkdir()
    failed = warm.run("run", "tiny", "--set", f"states.captured={nothing}", code=2)
    assert "there are no captured files" in failed.err
    assert "alias champion pointed to no version" in " ".join(failed.err.split())
    assert str(client.get_model_version_by_alias("tiny", "champion").version) == "2"
    assert "alias champion" in warm.record()["notes"][0]


def test_a_draft_waits_for_the_person_who_promotes_it(warm: Home) -> None:
    manual = (*CONTEST, "--set", "gates.approval=manual")
    done = warm.run("run", "tiny", *manual)  # exit code 0
    assert warm.record()["status"] == "awaiting_approval"
    assert stage(warm, "promote")["why"] == "a person has to approve it"
    approve = "deepspec promote models:/contest/1 --reason"
    assert approve in " ".join(done.out.split())
    assert approve in " ".join(warm.record()["notes"])
    assert stage(warm, "gate")["status"] == "hit"  # who approves is in no key
    warm.run("models", "history", "contest", code=2)  # nothing was ever promoted

    warm.run("run", "tiny", *manual)
    assert warm.record()["status"] == "awaiting_approval"
    warm.run("promote", "models:/contest/1", "--reason", "the canary was fine")
    (entry,) = history(warm)
    assert entry["reason"] == "the canary was fine"
    warm.run("run", "tiny", *manual)
    assert warm.record()["status"] == "no_change"
    assert len(history(warm)) == 1


def steps_of(home: Home, key: str) -> int:
    """How many steps a draft was trained for."""
    [metrics] = (home.path / "store" / "train" / key).glob("*/metrics.jsonl")
    return max(int(json.loads(line)["step"]) for line in metrics.read_text().splitlines())
