"""The dashboard that a real run leaves in its store, and what the command makes of a store from before it had one."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Home


def test_a_run_leaves_the_dashboard_of_what_it_did(cold: Home) -> None:
    folder, record = cold.path / "store" / "dashboard", cold.record()
    [model] = json.loads((folder / "dashboard.json").read_text())["models"]
    champion = model["champion"]
    assert (model["name"], champion["version"], champion["run_id"]) == ("tiny", "1", record["run_id"])
    assert [night["status"] for night in model["nights"]] == ["promoted"]
    measured = record["evaluation"]["benchmarks"]["arithmetic"]["tau"]
    assert abs(champion["measured"]["benchmark/arithmetic"]["tau"] - measured) < 1e-4
    assert champion["spent"]["cpu_seconds"] == record["making_cost"]["cpu_seconds"]
    keys = {stage["kind"]: stage["key"] for stage in record["stages"]}
    made_from = {item["kind"]: item["key"] for item in champion["lineage"]}
    for kind in ("register", "evaluate", "train", "tokens", "responses", "conversations"):
        assert made_from[kind] == keys[kind]
    page = (folder / "index.html").read_text()
    assert record["run_id"] in page
    assert str(cold.path) not in page


def test_a_store_without_history_says_what_it_knows_of_its_champion(cold: Home, warm: Home, tmp_path: Path) -> None:
    """As an upgraded store does: the draft's registration leads to its evaluation, lineage and cost."""

    def champion(home: Home) -> dict[str, Any]:
        done = home.run("dashboard", "--out", str(tmp_path / "out"), "--json")
        [model] = json.loads(done.out)["feed"]["models"]
        return dict(model["champion"])

    for folder in ("history", "dashboard"):
        shutil.rmtree(warm.path / "store" / folder)
    before, after = champion(cold), champion(warm)
    assert {**after, "spent": None} == {**before, "spent": None}
    assert 0 < after["spent"]["cpu_seconds"] <= before["spent"]["cpu_seconds"] + 0.1
