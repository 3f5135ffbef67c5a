"""`deepspec plan` against what a run then took; and the budget that refuses one."""

import json
from typing import Any

import pytest

from tests.e2e.conftest import Home

WITHIN = 0.1


def check(home: Home, recipe: str, *options: str) -> None:
    """Tokens, bytes of states and peak memory of the estimate against those of the home's run."""
    estimate = json.loads(home.run("plan", recipe, *options, "--json").out)
    tokens, states, train = (_counts(home, kind) for kind in ("tokens", "states", "train"))
    measured = tokens["splits"]["train"]["tokens"]
    assert estimate["states"]["captured_tokens"] == pytest.approx(measured, rel=WITHIN)
    assert estimate["states"]["bytes"][estimate["states"]["codec"]] == pytest.approx(states["bytes"], rel=WITHIN)
    memory = train["memory_bytes"]
    assert estimate["memory"]["training_bytes"] == pytest.approx(memory["peak"], rel=WITHIN)
    assert estimate["memory"]["training"]["largest_moment"] == pytest.approx(memory["step"], rel=WITHIN)
    assert memory["held"] + memory["step"] == memory["peak"] < memory["peak_rss"]
    cost = home.record()["cost"]
    assert (cost["states_bytes"], cost["training_peak_bytes"]) == (states["bytes"], memory["peak"])
    assert cost["tokens"] == tokens["tokens"]


def _counts(home: Home, kind: str) -> dict[str, Any]:
    (manifest,) = (home.path / "store" / kind).glob("*/manifest.*.json")
    found = json.loads(manifest.read_text())
    return dict(found["counts"])


def test_estimates_for_tiny_are_what_it_took(cold: Home) -> None:
    check(cold, "tiny")


def test_a_run_over_its_budget_is_refused_before_it_starts(warm: Home) -> None:
    options = ["--set", "states.codec=int8", "--set", "budget.max_states_bytes=1000"]
    refused = warm.run("run", "tiny", *options, code=2)
    assert "budget.max_states_bytes: " in refused.err
    assert "1.0 kB" in refused.err
    record = warm.record()
    assert record["status"] == "budget_exhausted"
    statuses = warm.statuses()
    assert statuses["tokens"] == "hit"
    assert statuses["states"] == statuses["train"] == "skipped"
    assert len(list((warm.path / "store" / "states").iterdir())) == 1
