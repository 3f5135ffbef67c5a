"""What the stage `gate` asks engines: every format that holds such a draft, and each engine that the recipe names."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepspec.recipe import load_recipe
from deepspec.store import Artifact, open_store
from deepspec.store.fingerprint import External
from tasks.gate import Inputs, _flaws
from tasks.runtime.job import Job
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.published import trained
from tests.fixtures.store import ingredients, put
from tests.unit.test_export import DEPTH


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TARGETS["qwen3"](tmp_path_factory.mktemp("targets") / "target", **DEPTH["qwen3"])


def flaws(folder: Path, target: Path, algorithm: str, engines: str, **fields: Any) -> tuple[str, ...]:
    """What the gate finds of a draft with calibrated confidences, or none."""
    draft = trained(target, algorithm, folder / "draft", **fields)
    store = open_store(str(folder / "store"))
    files = {f"draft/{file.name}": file.read_bytes() for file in draft.iterdir()}
    train = put(store, ingredients("train", name=algorithm), files)
    said = json.dumps({"applicable": False, "reason": "The draft has no confidence head."}).encode()
    calibrate = put(store, ingredients("calibrate", name=algorithm), {"calibration.json": said})
    recipe = load_recipe("tiny", [f"target.path={target}", f"gates.engines={engines}"])
    job = Job(stage="gate", key="0" * 64, run_id="1", home=folder, store=store, artifact=store.get)
    outside = External("target", "0", str(target))
    return _flaws(_inputs(train, calibrate, outside), recipe, job)


def _inputs(draft: Artifact, calibration: Artifact, outside: External) -> Inputs:
    return Inputs(
        evaluation=draft,
        calibration=calibration,
        champion=None,
        draft=draft,
        responses=draft,
        target=outside,
        benchmarks=outside,
    )


def test_an_engine_that_is_named_has_to_load_it(target: Path, tmp_path: Path) -> None:
    assert flaws(tmp_path / "a", target, "eagle3", "[]") == ()
    assert flaws(tmp_path / "b", target, "eagle3", "[vllm]") == ()
    (found,) = flaws(tmp_path / "c", target, "eagle3", "[vllm, sglang]")
    assert found.startswith("sglang cannot load it")
    assert "normalises no queries" in found


def test_a_gated_head_is_for_sglang_only(target: Path, tmp_path: Path) -> None:
    assert flaws(tmp_path / "a", target, "dspark", "[sglang]", markov_head="gated") == ()
    (found,) = flaws(tmp_path / "b", target, "dspark", "[vllm]", markov_head="gated")
    assert "vanilla head only" in found
