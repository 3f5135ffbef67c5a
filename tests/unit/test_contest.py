"""What a run says of a verdict that it finds: whose it is, and whether anybody has heard of it."""

import json
from pathlib import Path

import pytest

from deepspec.gates.verdict import JUDGED_BY, Reason, Verdict
from deepspec.recipe import load_recipe
from deepspec.record import Cost, RunRecord
from deepspec.registry.entries import DraftReference
from deepspec.registry.promotions import PromotionLog, reason_of
from deepspec.store import Artifact, open_store
from tasks.contest import asked_in, refused_before
from tasks.runtime.record.run_record import write_record
from tasks.runtime.records import StageRecord
from tasks.runtime.references import Value
from tasks.runtime.run import Run
from tests.fixtures.store import ingredients, put

JUDGE = "20261130-020000-abcdef"


def verdict_of(run: Run, *, by: str | None, status: str = "hit") -> Artifact:  # type: ignore[type-arg]
    """A verdict in the store, as the run's line about the gate has it."""
    files = {"verdict.json": b"{}"} | ({JUDGED_BY: json.dumps({"run_id": by}).encode()} if by else {})
    verdict = put(run.store, ingredients("gate", of=by), files)
    run.records = [StageRecord("gate", status, kind="gate", key=verdict.key)]  # type: ignore[arg-type]
    return verdict


@pytest.fixture
def run(tmp_path: Path) -> Run:  # type: ignore[type-arg]
    return Run(load_recipe("tiny"), open_store(str(tmp_path / "store")), tmp_path)


def left(home: Path, status: str) -> None:
    values = {"recipe": "tiny", "status": status, "seconds": 1.0, "peak_rss_bytes": 0, "stages": (), "report": None}
    write_record(RunRecord.model_validate({"run_id": JUDGE, "cost": Cost(cpu_seconds=0.0), **values}), home)


@pytest.mark.parametrize("status", ["refused", "no_change"])
def test_a_verdict_that_is_found_is_said_to_be_old(run: Run, tmp_path: Path, status: str) -> None:  # type: ignore[type-arg]
    left(tmp_path, status)
    verdict = verdict_of(run, by=JUDGE)
    said = refused_before(run, verdict)
    assert said is not None
    assert JUDGE in said
    assert verdict.manifest.created_at[:10] in said
    assert "nothing was measured again" in said


def test_one_of_another_home_or_of_an_earlier_version_is_old_too(run: Run) -> None:  # type: ignore[type-arg]
    assert refused_before(run, verdict_of(run, by=JUDGE)) is not None
    said = refused_before(run, verdict_of(run, by=None))
    assert said is not None
    assert "by run" not in said


def test_what_nobody_has_heard_of_is_news(run: Run, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """This run has judged; or the one that did died before its end."""
    assert refused_before(run, verdict_of(run, by=run.run_id)) is None
    assert refused_before(run, verdict_of(run, by=JUDGE, status="ran")) is None
    verdict = verdict_of(run, by=JUDGE)
    note = tmp_path / "running" / f"{JUDGE}.json"
    note.parent.mkdir()
    note.write_text("{}")
    assert refused_before(run, verdict) is None
    note.unlink()
    left(tmp_path, "interrupted")
    assert refused_before(run, verdict) is None


@pytest.mark.parametrize("reason", [reason_of(JUDGE), "a person's"])
def test_a_server_is_not_asked_again_about_the_champion_that_a_run_promoted(tmp_path: Path, reason: str) -> None:
    """Else no night were without news; a challenger is asked about in every run."""
    recipe = load_recipe("tiny", ["gates.endpoint=http://127.0.0.1:9"])
    run = Run(recipe, open_store(str(tmp_path / "store")), tmp_path)
    champion, challenger = (put(run.store, ingredients("train", of=name)) for name in ("champion", "challenger"))
    easy = Reason(gate="tau", passed=True, measured=1.0, sentence="Better.")
    reference = DraftReference(kind=champion.kind, key=champion.key, digest=champion.digest, version="1")
    verdict = Verdict(accepted=True, reasons=(easy,), challenger=champion.digest)
    PromotionLog(run.store.backend).promote("tiny", reference, verdict, who="somebody", reason=reason)
    expected = JUDGE if reason == reason_of(JUDGE) else run.run_id
    assert asked_in(run, champion) == {"asked_in": Value(expected)}
    assert asked_in(run, challenger) == {"asked_in": Value(run.run_id)}
    assert asked_in(Run(load_recipe("tiny"), run.store, tmp_path), champion) == {}
