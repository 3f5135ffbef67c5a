"""Whatever goes wrong on the way to the bucket: a run ends right or with one clear error, and a re-run completes."""

import json
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, open_store
from tasks.stages import STAGES
from tests.e2e.conftest import Home
from tests.fixtures.command import call
from tests.fixtures.faulty_proxy import CORRUPTED, KINDS, Faults, FaultyProxy
from tests.fixtures.faulty_runs import CALM, Request
from tests.fixtures.s3 import S3Server
from tests.integration.conftest import capture_before

SEEDS = (0,)
"""One weather of 200 (`make campaign PART=faults`), in which every kind of fault but one comes up."""

MOST_REQUESTS = 262
"""Of a run from nothing, heartbeats aside: half of what it took before each artifact was looked up once (525)."""
MOST_REQUESTS_PER_STAGE = 3
"""Of a run in which nothing changed."""
MOST_REQUESTS_AT_THE_END = 30
"""Of any run: for its record, and the dashboard with what it is made of."""


def summary_of(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """What there is to say of all runs together."""
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome["faults"])
    return {
        "runs": len(outcomes),
        "requests": sum(outcome["requests"] for outcome in outcomes),
        "faults": dict(faults.most_common()),
        "calm": next(
            (
                {"requests": outcome["requests"], "again": outcome["again_requests"]}
                for outcome in outcomes
                if outcome["seed"] == CALM
            ),
            None,
        ),
        "ended": dict(Counter(outcome["ended"] for outcome in outcomes).most_common()),
        "wrong": {outcome["seed"]: outcome["wrong"] for outcome in outcomes if outcome["wrong"]},
    }


def faulty_runs(server: S3Server, seeds: Sequence[int], cold: Home, folder: Path, workers: int = 3) -> dict[str, Any]:
    """Make the runs in other processes; returns the summary, which is also left in the folder."""
    request = Request(list(seeds), str(cold.path), str(folder / "runs"), asdict(replace(server, gateway=None)), workers)
    (folder / "request.json").write_text(json.dumps(asdict(request)))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DEEPSPEC_", "AWS_"))}
    done = call([str(folder / "request.json")], clean, seconds=3600, module="tests.fixtures.faulty_runs")
    assert done.returncode == 0, done.stderr
    outcomes = json.loads((folder / "outcomes.json").read_text())
    summary = {"seconds": outcomes["seconds"], **summary_of(outcomes["outcomes"])}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary, indent=1))
    return summary


@pytest.mark.full
def test_faulty_runs_end_well_or_clearly_and_a_re_run_completes(radosgw: S3Server, cold: Home, tmp_path: Path) -> None:
    """Two runs, each with a re-run; nothing befalls one of them, and its requests are counted."""
    summary = faulty_runs(radosgw, (CALM, *SEEDS), cold, tmp_path, workers=1)
    assert summary["runs"] == len(SEEDS) + 1
    assert summary["calm"]["requests"] <= MOST_REQUESTS
    assert summary["calm"]["again"] <= MOST_REQUESTS_PER_STAGE * len(STAGES) + MOST_REQUESTS_AT_THE_END
    assert len(summary["faults"]) > 2, "a run that gives up early meets few faults, but the proxy must have worked"
    assert not summary["wrong"]


# --- the command line, with nothing replayed and nobody's patience shortened ------------------------------------------

DETERMINISTIC = (
    "demo_corpus",
    "demo_tokenizer",
    "demo_target",
    "conversations",
    "responses",
    "tokens",
    "states",
    "train",
)
"""Kinds whose content says nothing of when they were made, nor how fast."""


@dataclass(frozen=True)
class Scene:
    """What goes wrong, whether the run has to bear it, and whether everything up to the states is in the bucket."""

    faults: Faults
    attempts: str = "6"
    bears: bool = False
    captured: bool = False


SCENES = {
    "a little of everything": Scene(Faults(seed=1, rate=0.03), bears=True, captured=True),
    "a little of everything, from nothing": Scene(Faults(seed=1, rate=0.02), bears=True),
    "everything, changed bytes too": Scene(Faults(seed=2, rate=0.08, kinds=(*KINDS, CORRUPTED)), attempts="4"),
    # As often as the trainer asks for a range: it gives up, and the run has to find out that the states are whole.
    "states that change on the way to the trainer": Scene(
        Faults(kinds=(CORRUPTED,), only=r"^GET .*/states-00000\.parquet", most=5), bears=True, captured=True
    ),
    # The draft cannot be published, three times over; what was made before it stays.
    "a draft that never arrives": Scene(
        Faults(seed=4, kinds=("reset_upload", "error_500"), only=r"^PUT .*/train/"), attempts="2", captured=True
    ),
}
CAMPAIGN = ("a little of everything", "a little of everything, from nothing", "everything, changed bytes too")
"""A little of everything befalls the runs above, too; the command line is asked about what only it can show."""


def stored(location: str, cache: Path, direct: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """The artifacts in a bucket by kind, each of them whole; asked for past the proxy."""
    direct.enter(monkeypatch)
    store = open_store(location, cache=cache)
    artifacts = list(store.artifacts())
    assert [artifact.verify() for artifact in artifacts] == [[] for _ in artifacts]
    assert not [path for path in store.backend.list("") if "/condemned." in path]
    assert len(PromotionLog(store.backend).history("tiny")) <= 1
    return {artifact.kind: artifact for artifact in artifacts}


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in SCENES if name not in CAMPAIGN])
def test_the_command_line_ends_well_or_clearly_and_completes_when_it_is_calm(
    radosgw: S3Server, cold: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A run from the states on, and another one."""
    play(SCENES[name], radosgw, cold, tmp_path, monkeypatch)


def play(scene: Scene, radosgw: S3Server, cold: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command while it goes wrong, look at what is there, and run it again when it does not."""
    home, location = Home(tmp_path / "home"), f"s3://{radosgw.bucket}/{uuid.uuid4().hex}"
    if scene.captured:
        capture_before(radosgw, cold, location)
    host, _, port = radosgw.endpoint.removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port)), scene.faults) as proxy:
        environment = replace(radosgw, endpoint=proxy.endpoint).environment()
        environment |= {"DEEPSPEC_STORE": location, "AWS_MAX_ATTEMPTS": scene.attempts}
        first = call(["run", "tiny"], home.environment(environment))
        print(first.returncode, proxy.requests, dict(proxy.counts), first.stderr)
        assert sum(proxy.counts.values()) > 0
        assert "Traceback" not in first.stderr
        assert radosgw.secret_key not in first.stderr
        errors = [line for line in first.stderr.splitlines() if line.startswith("deepspec: ")]
        assert first.returncode == 0 or (first.returncode == 1 and not scene.bears)
        assert len(errors) == first.returncode
        visible = stored(location, tmp_path / "first", radosgw, monkeypatch)
        proxy.calm()
        home.run("run", "tiny", environment=environment)
    hits = {stage["kind"] for stage in home.record()["stages"] if stage["status"] == "hit"}
    assert hits == visible.keys()
    assert home.record()["status"] == ("no_change" if first.returncode == 0 else "promoted")
    assert home.record()["model"]["aliases"] == ["champion"]
    now = stored(location, tmp_path / "second", radosgw, monkeypatch)
    reference = {artifact.kind: artifact for artifact in open_store(str(cold.path / "store")).artifacts()}
    assert now.keys() == reference.keys()
    for kind in DETERMINISTIC:
        assert now[kind].digest == reference[kind].digest, kind
