"""200 faulty runs over a bucket, ten a unit: see tests/integration/test_faulty_runs.py."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.conftest import Record
from tests.e2e.conftest import Home
from tests.fixtures.s3 import S3Server
from tests.integration.test_faulty_runs import CAMPAIGN, SCENES, faulty_runs, play

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    "seeds", [range(first, first + 10) for first in range(0, 200, 10)], ids=lambda s: f"{s[0]}-{s[-1]}"
)
def test_runs_end_well_or_clearly_and_a_re_run_completes(
    radosgw: S3Server, cold: Home, tmp_path: Path, record: Record, seeds: range
) -> None:
    figures = faulty_runs(radosgw, seeds, cold, tmp_path)
    assert not figures["wrong"]
    record(figures)


@pytest.mark.parametrize("name", CAMPAIGN)
def test_the_command_line_bears_it(
    radosgw: S3Server, cold: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record, name: str
) -> None:
    play(SCENES[name], radosgw, cold, tmp_path, monkeypatch)
    record({})


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs together."""
    units = [unit for unit in units if unit]
    added = {name: round(sum(unit[name] for unit in units)) for name in ("runs", "requests", "seconds")}
    counted = {name: Counter[str]() for name in ("ended", "faults")}
    for unit in units:
        for name, counts in counted.items():
            counts.update(unit[name])
    return {**added, **{name: dict(counts.most_common()) for name, counts in counted.items()}}
