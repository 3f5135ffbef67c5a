"""Bytes that were changed in the store, with their piecewise checksums kept: refused by name where drafts leave it.

Pulls are in test_serving_pull.py.
"""

import json
import os
from pathlib import Path

import pytest

from deepspec.errors import ArtifactDamaged, DeepspecError
from deepspec.gates.verdict import Reason, Verdict
from deepspec.registry import draft_export, operations
from deepspec.registry.entries import DraftReference
from deepspec.registry.errors import DraftDamaged
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, Store, open_store
from deepspec.store.reading import pieces
from tasks import promote
from tasks.runtime.job import Job
from tests.fixtures.refused import refused
from tests.fixtures.serving import MODEL, ReadOnly, draft_files, train
from tests.fixtures.store import ingredients, put

FILE = "draft/config.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def tamper(artifact: Artifact) -> None:
    """Change a file so that its size, time and CRC-32, all of which a tamperer can keep, are as they were."""
    store = Path(artifact.store.backend.location)
    path = store / artifact.prefix / FILE
    data = bytearray(path.read_bytes())
    data[0:5] = bytes(before ^ change for before, change in zip(data[0:5], SAME_CRC, strict=True))
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (entry,) = (entry for entry in artifact.manifest.files if entry.path == FILE)
    assert pieces.damaged_piece(path, entry) is None  # what readers usually compare says nothing


SAME_CRC = (0x01DB710641).to_bytes(5, "little")
"""The polynomial itself: changing bytes by a multiple of it leaves every CRC-32 as it was."""


def test_an_export_refuses_them(store: Store, tmp_path: Path) -> None:
    artifact = train(store, "one")
    tamper(artifact)
    with refused(ArtifactDamaged, "SHA-256", where=FILE):
        draft_export.write(
            f"train/{artifact.key}", "deepspec", tmp_path / "out", "", home=tmp_path / "home", store=store
        )
    assert not (tmp_path / "out").exists()
    assert store.find(artifact.kind, artifact.key) is None  # and it is condemned


def test_credentials_that_may_only_read_hear_of_the_damage_not_of_their_rights(store: Store, tmp_path: Path) -> None:
    artifact = train(store, "one")
    tamper(artifact)
    reading = Store(ReadOnly(store.backend))
    with refused(ArtifactDamaged, "SHA-256", where=FILE):
        draft_export.write(
            f"train/{artifact.key}", "deepspec", tmp_path / "out", "", home=tmp_path / "home", store=reading
        )
    assert store.find(artifact.kind, artifact.key) is not None


def test_an_untouched_draft_gets_as_far_as_the_format(store: Store, tmp_path: Path) -> None:
    artifact = train(store, "one")
    assert json.loads(draft_files("one")["config.json"]) == {"name": "one"}
    with pytest.raises(DeepspecError) as caught:  # it is no draft of any algorithm
        draft_export.write(
            f"train/{artifact.key}", "deepspec", tmp_path / "out", "", home=tmp_path / "home", store=store
        )
    assert not isinstance(caught.value, ArtifactDamaged)


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    tracking = Tracking.embedded(tmp_path / "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    return tracking


def accepted_and_registered(store: Store, tracking: Tracking) -> promote.Inputs:
    """A first draft that the gate has accepted, as version 1."""
    draft = train(store, "one")
    run = tracking.start_pipeline_run("registers", {})
    reference = DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest)
    tracking.register(draft.directory() / "draft", MODEL, run, {}, draft=reference)
    tracking.finish(run)
    reason = Reason(gate="tau", passed=True, measured=2.0, sentence="It is the first.")
    verdict = Verdict(accepted=True, reasons=(reason,), challenger=draft.digest, champion=None)
    said = {"name": MODEL, "version": "1", "uri": f"models:/{MODEL}/1"}
    files = {"registration.json": json.dumps(said).encode()}
    return promote.Inputs(
        registration=put(store, ingredients("register"), files),
        verdict=put(store, ingredients("gate"), {"verdict.json": json.dumps(verdict.to_json()).encode()}),
        draft=draft,
    )


def test_neither_a_command_nor_a_run_promotes_them(store: Store, tracking: Tracking, tmp_path: Path) -> None:
    """Most of its time goes into a new MLflow database."""
    inputs = accepted_and_registered(store, tracking)
    tamper(inputs.draft)
    with refused(DraftDamaged, FILE, "SHA-256", where=MODEL):
        operations.promote(tmp_path / "home", store, f"models:/{MODEL}/1", "it looked well")
    job = Job("promote", "k", "r1", tmp_path, store, store.get, tracking=tracking, tracking_run="any")
    with refused(ArtifactDamaged, "SHA-256", where=FILE):
        promote.promote.function(inputs, None, tmp_path, job)
    assert PromotionLog(store.backend).last(MODEL) is None
