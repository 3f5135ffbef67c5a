"""The command `import`: a published draft becomes the baseline, and what is trained later is judged against it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import Home
from tests.fixtures.published import publish, save_weights, trained

TO_PUBLIC = ("--recipe", "tiny", "--set", "registry.model=public")


@pytest.fixture
def public(warm: Home, tmp_path: Path) -> Path:
    """The run's draft as others would have published it."""
    return publish(warm.artifact_file("train", "draft"), tmp_path / "public")


def unseen(record: dict[str, Any]) -> dict[str, Any]:
    (found,) = (reason for reason in record["verdict"]["reasons"] if reason["gate"] == "unseen_prompts")
    return dict(found)


def test_a_published_draft_is_the_baseline_that_a_trained_one_has_to_beat(
    warm: Home, public: Path, tmp_path: Path
) -> None:
    """Four runs and a pull: imported and promoted, again with nothing to do, damaged, and beaten or not. 20 s."""
    done = warm.run("import", str(public), *TO_PUBLIC)
    record = warm.record()
    assert record["status"] == "promoted"
    assert [name for name in warm.statuses() if not name.startswith("demo_")] == [
        "import", "conversations", "responses", "calibrate", "evaluate", "register", "gate", "promote",
    ]  # fmt: skip
    assert warm.ran() == ["import", "calibrate", "evaluate", "register", "gate", "promote"]
    assert record["calibration"]["applicable"]
    assert "not known" in unseen(record)["sentence"]
    assert unseen(record)["measured"] is None
    assert [note for note in record["notes"] if str(public) in note]
    assert "what it was trained on is not known" in done.out
    report = Path(record["report"]).read_text(encoding="utf-8")
    assert "<span>not known</span> <code>unseen_prompts</code>" in report
    assert "The draft was imported; it was not trained here." in report
    assert "metric stream is missing" not in report
    page = json.loads(warm.run("models", "show", "models:/public@champion", "--json").out)
    assert (page["kind"], page["version"]) == ("import", "1")
    origin = json.loads(warm.artifact_file("import", "about/origin.json").read_text())
    assert (origin["path"], origin["licence"]) == (str(public), "mit")
    assert {"import", "conversations"} < {item["kind"] for item in page["lineage"]}

    warm.run("import", str(public), *TO_PUBLIC)
    assert (warm.record()["status"], warm.ran()) == ("no_change", [])

    warm.run("pull", "models:/public@champion", str(tmp_path / "serving"))
    assert (tmp_path / "serving" / "model.safetensors").read_bytes() == (public / "model.safetensors").read_bytes()

    damaged = shutil.copytree(public, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights["norm.weight"][0] = float("nan")
    save_weights(weights, damaged)
    refusal = warm.run("import", str(damaged), *TO_PUBLIC, code=2).err
    assert "damaged/model.safetensors: tensor norm.weight" in refusal
    assert len(list((warm.path / "store" / "import").iterdir())) == 1

    start = ("--set", "train.init_from=models:/public@champion", "--set", "train.num_epochs=1")
    warm.run("run", "tiny", *TO_PUBLIC[2:], *start, code=None)
    record = warm.record()
    assert warm.statuses()["train"] == "ran"
    assert record["verdict"]["champion"] == page["digest"]
    assert "both drafts" in unseen(record)["sentence"]
    card = max((warm.path / "store" / "register").glob("*/*/about/README.md"), key=lambda file: file.stat().st_mtime)
    assert "Training started from a draft that was not trained here" in card.read_text()


def test_a_draft_of_another_algorithm_that_is_refused_is_registered_all_the_same(warm: Home, tmp_path: Path) -> None:
    target = warm.path / "tiny" / "target"
    public = publish(trained(target, "eagle3", tmp_path / "ours", target_layer_ids=(-1, 0)), tmp_path / "eagle3")
    done = warm.run("import", str(public), *TO_PUBLIC, "--set", "gates.min_tau=9", code=3)
    record = warm.record()
    assert "eagle3 is a draft of algorithm eagle3; tiny's draft section is not used" in done.err
    assert record["resolved_recipe"]["draft"]["algorithm"] == "eagle3"
    assert not record["calibration"]["applicable"]
    assert (record["status"], record["model"]["version"]) == ("refused", "1")
    assert warm.statuses()["promote"] == "skipped"
    assert "Refused" in done.out
    assert "nothing was ever promoted as public" in warm.run("models", "history", "public", code=2).err
