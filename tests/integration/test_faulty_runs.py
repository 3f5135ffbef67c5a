"""Whatever goes wrong on the way to the bucket: a run ends right or with one clear error, and a re-run completes."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Home
from tests.fixtures.faulty_runs import CANARIES, Request
from tests.fixtures.s3 import S3Server

NUM_RUNS = int(os.environ.get("DEEPSPEC_FAULT_RUNS", "200"))


def summary_of(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """What there is to say of all runs together."""
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome["faults"])
    return {
        "runs": len(outcomes),
        "requests": sum(outcome["requests"] for outcome in outcomes),
        "faults": dict(faults.most_common()),
        "ended": dict(Counter(outcome["ended"] for outcome in outcomes).most_common()),
        "wrong": {outcome["seed"]: outcome["wrong"] for outcome in outcomes if outcome["wrong"]},
    }


def faulty_runs(server: S3Server, seeds: range, cold: Home, folder: Path) -> dict[str, Any]:
    """Make the runs in processes of their own; returns the summary, which is also left in the folder."""
    request = Request(list(seeds), str(cold.path), str(folder / "runs"), asdict(server), workers=min(2, len(seeds)))
    (folder / "request.json").write_text(json.dumps(asdict(request)))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DEEPSPEC_", "AWS_"))}
    command = [sys.executable, "-m", "tests.fixtures.faulty_runs", str(folder / "request.json")]
    done = subprocess.run(command, env=clean, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads((folder / "outcomes.json").read_text())
    summary = {"seconds": outcomes["seconds"], **summary_of(outcomes["outcomes"])}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary, indent=1))
    return summary


def test_a_few_faulty_runs_end_well_or_clearly_and_a_re_run_completes(
    moto: S3Server, cold: Home, tmp_path: Path
) -> None:
    server = replace(moto, access_key=CANARIES[0], secret_key=CANARIES[1])
    summary = faulty_runs(server, range(3), cold, tmp_path)
    assert summary["runs"] == 3
    assert sum(summary["faults"].values()) > 0
    assert not summary["wrong"]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_faulty_runs_end_well_or_clearly_and_a_re_run_completes(radosgw: S3Server, cold: Home, tmp_path: Path) -> None:
    summary = faulty_runs(radosgw, range(NUM_RUNS), cold, tmp_path)
    assert summary["runs"] == NUM_RUNS
    assert sum(summary["faults"].values()) > NUM_RUNS
    assert not summary["wrong"]
