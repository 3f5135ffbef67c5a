"""Many more inputs at the borders than the fixed sample in CI: each unit draws its own, and all must hold.

A unit is one border with one seed. The summary counts the inputs; a unit that found one that does not hold fails, and
prints it.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.campaign.conftest import Record
from tests.fixtures import borders

pytestmark = pytest.mark.campaign

SEEDS = range(8)
INPUTS = {
    "names": 2_000, "config": 1_500, "weights": 3_000, "replies": 12_000, "metrics": 110_000, "parquet": 400,
    "arrow": 400,
}  # fmt: skip
"""Of each unit: some minutes; over a million inputs in all."""


def _drawn(check: Callable[[Any], object], strategy: Any, number: int, count: int) -> int:
    done = 0

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: Any) -> None:
        nonlocal done
        check(value)
        done += 1

    draw()
    return done


@pytest.mark.parametrize("number", SEEDS)
@pytest.mark.parametrize("border", INPUTS)
def test_a_border_holds(border: str, number: int, tmp_path: Path, tokenizer: Any, record: Record) -> None:
    if border in ("parquet", "arrow"):
        table = borders.TableBorder(tmp_path, "parquet" if border == "parquet" else "arrow")
        done = _drawn(table.check, borders.TABLE_CHANGES, number, INPUTS[border])
        record({border: done, "outcomes": {border: dict(table.outcomes)}})
        return
    check, strategy = _border(border, tmp_path, tokenizer)
    record({border: _drawn(check, strategy, number, INPUTS[border])})


def _border(border: str, folder: Path, tokenizer: Any) -> tuple[Callable[[Any], object], Any]:
    """What must hold there, and of what."""
    if border == "names":
        count = itertools.count()
        return lambda names: borders.check_names(names, _made(folder / str(next(count)))), borders.NAMES
    if border == "config":
        draft = borders.DraftBorder(folder)
        return lambda change: draft.check_config(json.dumps(draft.config | change).encode()), borders.CONFIG_CHANGES
    if border == "weights":
        return borders.DraftBorder(folder).check_weights, borders.BYTE_CHANGES
    if border == "replies":
        endpoint = borders.EndpointBorder(tokenizer)
        return lambda reply: endpoint.check(*reply), borders.ENDPOINT_REPLIES
    return borders.check_metrics, borders.METRICS


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def summary(units: list[dict[str, Any]]) -> dict[str, Any]:
    """Inputs by border; how questions about tables ended, two for each; a unit that does not hold does not end."""
    counted = {border: sum(unit.get(border, 0) for unit in units) for border in INPUTS}
    outcomes: dict[str, Counter[str]] = {}
    for unit in units:
        for border, counts in unit.get("outcomes", {}).items():
            outcomes.setdefault(border, Counter()).update(counts)
    return {"inputs": counted, "all": sum(counted.values()), "questions": outcomes, "wrong": []}
