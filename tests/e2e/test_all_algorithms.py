"""`deepspec demo --all`: three drafts in one run, over what they share."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Home

ALGORITHMS = ["eagle3", "dflash", "dspark"]
MODELS = ["demo-eagle3", "demo-dflash", "demo"]
SHARED = ["demo_corpus", "demo_tokenizer", "demo_target", "conversations", "responses", "tokens", "states"]
OWN = ["train", "calibrate", "evaluate", "register", "gate", "promote"]


def small(home: Home) -> list[str]:
    """The options that make the demo as small as the recipe `tiny`, on its inputs."""
    inputs = home.path / "tiny"
    settings = {
        "inputs": "tiny-inputs",
        "target.path": inputs / "target",
        "data.source": inputs / "corpus" / "conversations.jsonl",
        "data.min_supervised_tokens": 4,
        "data.max_quarantined_share": 0.1,
        "data.splits": "{validation: 0.08, calibration: 0.12, gate: 0.08}",
        "data.responses.max_new_tokens": 32,
        "draft.num_draft_tokens": 3,
        "draft.target_layer_ids": "[-1, 0]",
        "train.num_documents_per_step": 16,
        "train.num_epochs": 1,
        "evaluate.benchmarks": f"{{arithmetic: {inputs / 'corpus' / 'benchmarks' / 'arithmetic.jsonl'}}}",
        "evaluate.num_gate_prompts": 4,
        "evaluate.num_calibration_prompts": 8,
        "evaluate.num_warmup_prompts": 1,
        "evaluate.num_speed_prompts": 1,
        "evaluate.max_new_tokens": 24,
        "evaluate.thresholds": "[]",
        "evaluate.load.concurrency": "[]",
        "gates.min_speedup": "null",  # of so small a target
        "gates.max_calibration_error": "null",
        "gates.servable": "false",  # the public layout of Eagle3 has five layers
    }
    return [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]


def three_drafts(home: Home, num_seeds: int) -> dict[str, Any]:
    """Run `demo --all`, and look at what it leaves; the record."""
    found_before = {path.parent.parent.name for path in (home.path / "store").glob("*/*/manifest.*.json")}
    finished = home.run("demo", "--all", "--seeds", str(num_seeds), *small(home), "--json")
    record: dict[str, Any] = json.loads(finished.out)
    assert record == home.record()
    assert record["status"] == "promoted"
    further = [f"{algorithm}, seed {seed}" for seed in range(1, num_seeds) for algorithm in ALGORITHMS]
    stages = [(stage["name"], stage.get("algorithm")) for stage in record["stages"]]
    assert sorted(stages, key=str) == sorted(
        [
            *((name, None) for name in SHARED),
            *((name, algorithm) for algorithm in ALGORITHMS for name in OWN),
            *((name, which) for which in further for name in ["train", "calibrate", "evaluate"]),
        ],
        key=str,
    )
    assert [name for name, algorithm in stages if algorithm is None] == SHARED
    assert [name for name, algorithm in stages if algorithm == "dspark"] == OWN
    hits = {stage["name"] for stage in record["stages"] if stage["status"] == "hit"}
    assert hits <= found_before
    assert {stage["status"] for stage in record["stages"] if stage["name"] not in hits} == {"ran"}
    for part in ("evaluation", "calibration", "verdict", "model"):
        assert [item["algorithm"] for item in record[part]] == ALGORITHMS
    assert [item["name"] for item in record["model"]] == MODELS
    assert all(item["aliases"] == ["champion"] for item in record["model"])
    assert all(item["benchmarks"]["arithmetic"]["tau"] >= 1 for item in record["evaluation"])
    assert [item["applicable"] for item in record["calibration"]] == [False, False, True]
    study = record["seeds"]
    assert (study["seeds"], list(study["tau"])) == (list(range(num_seeds)), ALGORITHMS)
    for part, item in zip(study["tau"].values(), record["evaluation"], strict=True):
        assert part["arithmetic"]["by_seed"][0] == pytest.approx(item["benchmarks"]["arithmetic"]["tau"])
        assert part["arithmetic"]["ci95"][0] <= part["arithmetic"]["tau"] <= part["arithmetic"]["ci95"][1]
    assert len(study["differences"]) == 3
    assert all(len(of_seeds["cpu_seconds"]) == num_seeds for of_seeds in study["budget"].values())
    assert f"over training seeds {', '.join(map(str, range(num_seeds)))}" in Path(record["report"]).read_text()
    folder = Path(record["report"]).parent
    assert all((folder / algorithm / "report.html").is_file() for algorithm in ALGORITHMS)
    return record


@pytest.mark.full  # six trainings in processes of their own
def test_three_drafts_in_one_run(warm: Home) -> None:
    home = warm  # with the inputs of the recipe `tiny`, which are those of these drafts, too
    record = three_drafts(home, num_seeds=2)
    # Their benchmarks are others than the recipe's; what is asked and answered is the same.
    assert {stage["name"] for stage in record["stages"] if stage["status"] == "hit"} == {*SHARED} - {"conversations"}

    # Each is an ordinary recipe's run, and all are found again, alone and together.
    home.run("run", "demo-dflash", *small(home))
    assert home.record()["status"] == "no_change"
    assert home.record()["evaluation"] == {
        name: value for name, value in record["evaluation"][1].items() if name != "algorithm"
    }
    previewed = json.loads(home.run("demo", "--all", *small(home), "--dry-run", "--json").out)
    assert {stage["status"] for stage in previewed["stages"]} == {"hit"}
    assert len(previewed["stages"]) == len(record["stages"]) - 9  # a preview is of the first seed
    assert [recipe["name"] for recipe in previewed["recipe"]] == MODELS

    # A refusal of one is the run's exit code, and says whose it is.
    home.run("demo", "--all", *small(home), "--set", "train.seed=1", "--set", "gates.min_tau_gain=50", code=3)
    assert home.record()["status"] == "refused"
    assert [item["accepted"] for item in home.record()["verdict"]] == [False] * 3
    versions = json.loads(home.run("models", "ls", "--json").out)
    assert {(row["name"], row["version"]): row["aliases"] for row in versions if row["name"] in MODELS} == {
        **{(name, "1"): ["champion"] for name in MODELS},
        **{(name, "2"): ["challenger"] for name in MODELS},
    }
