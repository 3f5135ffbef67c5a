"""Production with a store and an MLflow of its own: it follows, whatever is away when, and what a person does there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from deepspec.gates.verdict import Reason, Verdict
from deepspec.registry.entries import DraftReference
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.production import PREFIX, STORE, TRACKING
from deepspec.registry.promotions import PromotionLog
from deepspec.store import open_store
from tests.e2e.conftest import Home
from tests.fixtures.s3 import S3Server
from tests.fixtures.store import ingredients, put

AWAY = "http://127.0.0.1:1"


def test_production_follows_runs_and_commands_and_catches_up(warm: Home, moto: S3Server, tmp_path: Path) -> None:
    """A run while all of production is away, one while its MLflow is; then both are back, and a person is there.

    Over ten seconds: a dozen commands, four of them with a process of its own for production's MLflow.
    """
    theirs = {f"{PREFIX}{name}": value for name, value in moto.environment().items() if "METADATA" not in name}
    place = f"s3://{moto.bucket}/{tmp_path.name}/production"
    away = {STORE: place, **theirs, f"{PREFIX}AWS_ENDPOINT_URL": AWAY, f"{PREFIX}AWS_MAX_ATTEMPTS": "1"}
    warm.run("run", "tiny", environment=away)
    assert warm.record()["status"] == "no_change"
    [note] = warm.record()["notes"]
    assert AWAY in note
    assert "deepspec models reconcile tiny" in note

    there = {STORE: place, **theirs, TRACKING: AWAY}
    done = warm.run("run", "tiny", environment=there)
    followed, late = warm.record()["notes"]
    assert "1 entry" in followed
    assert "its MLflow" in late
    assert late in " ".join(done.out.split())

    another = Tracking(f"sqlite:///{tmp_path / 'production.db'}", tmp_path / "artifacts")
    assert another.list_models() == ()  # its experiment is made, and knows where its files go
    there[TRACKING] = another.uri
    done = warm.run("models", "reconcile", "tiny", environment=there)
    assert "champion was none, is now 1" in " ".join(done.out.split())
    warm.run("run", "tiny", environment=there)
    assert "notes" not in warm.record()

    production = Home(tmp_path / "production")
    reaching = {**moto.environment(), "DEEPSPEC_STORE": place, "MLFLOW_TRACKING_URI": another.uri}
    champion = shown(warm, {}, "models", "show", "tiny")
    page = shown(production, reaching, "models", "show", "tiny")
    assert {name: page[name] for name in ("verdict", "tau", "speed")} == {
        name: champion[name] for name in ("verdict", "tau", "speed")
    }
    assert {one["kind"] for one in page["lineage"] if one["in_store"]} == {"train"}
    lineage = shown(production, reaching, "artifacts", "lineage", "models:/tiny@champion")
    assert {"kind", "key", "digest"} == set(lineage[-1])
    production.run("pull", "models:/tiny@champion", str(tmp_path / "serving"), environment=reaching)
    production.run(
        "export", "models:/tiny/1", "--format", "deepspec", "--out", str(tmp_path / "out"), environment=reaching
    )
    assert {"README.md", "calibration.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    production.run("artifacts", "gc", "--grace-seconds", "0", environment=reaching)

    promote_another(warm)
    done = warm.run("rollback", "tiny", "--reason", "slower", environment=there)
    assert "2 entries" in done.out
    assert "previous" not in another.list_versions("tiny")[0].aliases
    assert [entry["kind"] for entry in shown(production, reaching, "models", "history", "tiny")] == [
        "promote", "promote", "rollback"
    ]  # fmt: skip

    production.run("rollback", "tiny", "--to", "2", "--reason", "by hand", environment=reaching, code=1)
    PromotionLog(open_store(place, cache=tmp_path, environment=moto.environment()).backend).rollback(
        "tiny", "2", who="ann", reason="by hand"
    )
    done = warm.run("models", "reconcile", "tiny", environment=there, code=1)
    assert "the alias already says 1" in done.out
    for word in ("entry 4", "ann", "promotions/4.json"):
        assert word in done.err
    warm.run("run", "tiny", environment=there)
    assert "entry 4" in warm.record()["notes"][0]
    refused = warm.run("run", "tiny", environment={f"{PREFIX}STROE": place}, code=2)
    assert f"{PREFIX}STROE" in refused.err


def shown(home: Home, environment: dict[str, str], *command: str) -> Any:
    """What a command prints as JSON."""
    return json.loads(home.run(*command, "--json", environment=environment).out)


def promote_another(home: Home) -> None:
    """A second champion, without the time that training one takes."""
    store, tracking = open_store(str(home.path / "store")), Tracking.embedded(home.path)
    files = {"draft/model.safetensors": save({"weight": np.zeros(8, np.float32)}), "draft/config.json": b"{}"}
    made = put(store, ingredients("train"), files)
    draft = DraftReference(kind=made.kind, key=made.key, digest=made.digest)
    run = tracking.start_pipeline_run("registers", {})
    version = tracking.register(made.directory() / "draft", "tiny", run, {}, draft=draft)
    tracking.finish(run)
    log = PromotionLog(store.backend)
    champion = log.champion("tiny")
    assert champion is not None
    reason = Reason(gate="tau", passed=True, measured=4.0, sentence="Better.")
    verdict = Verdict(accepted=True, reasons=(reason,), challenger=draft.digest, champion=champion.digest)
    named = draft.model_copy(update={"version": version.version, "uri": version.uri})
    log.promote("tiny", named, verdict, who="nightly")
