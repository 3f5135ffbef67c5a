"""The command `compare`: drafts from the registry and from directories, evaluated alike, side by side."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.conftest import Home


@pytest.fixture
def worse(warm: Home, tmp_path: Path) -> Path:
    """The run's draft as a directory of its own, its weights disturbed."""
    return disturbed(warm, tmp_path / "worse")


def disturbed(home: Home, folder: Path) -> Path:
    """Copy the draft of a home's run to `folder`, and disturb its weights."""
    shutil.copytree(home.artifact_file("train", "draft"), folder)
    generator = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
            noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weight.add_(2.0 * weight.std() * noise)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def kept(home: Home) -> dict[str, Any]:
    """What a comparison must leave as it is, and how many evaluations there are."""
    return {
        "last run": (home.path / "last-run.json").read_text(),
        "runs": sorted(path.name for path in (home.path / "runs").iterdir()),
        "evaluations": len(list((home.path / "store" / "evaluate").iterdir())),
        "drafts": len(list((home.path / "store" / "train").iterdir())),
    }


@pytest.mark.full  # two evaluations, two pages
def test_drafts_stand_side_by_side_with_paired_differences(warm: Home, worse: Path, tmp_path: Path) -> None:
    record, before = warm.record(), kept(warm)
    keys = {stage["name"]: stage["key"] for stage in record["stages"]}
    done = warm.run("compare", "models:/tiny@champion", str(worse), "--recipe", "tiny", "--json")
    document = json.loads(done.out)
    champion, other = document["drafts"]
    assert champion["evaluation_key"] == keys["evaluate"]
    assert champion["evaluation"] == record["evaluation"]
    assert champion["calibration"] == record["calibration"]
    assert (champion["kind"], champion["key"]) == ("train", keys["train"])
    assert (other["name"], other["kind"], other["key"]) == (str(worse), "external", None)
    assert kept(warm) == {**before, "evaluations": before["evaluations"] + 1}

    (difference,) = document["differences"]
    assert difference["name"] == str(worse)
    ours, theirs = other["evaluation"]["benchmarks"], champion["evaluation"]["benchmarks"]
    for name, part in difference["benchmarks"].items():
        assert part["prompts"] == ours[name]["prompts"] == theirs[name]["prompts"]
        assert part["difference"] == pytest.approx(ours[name]["tau"] - theirs[name]["tau"])
        assert part["ci95"][0] <= part["difference"] <= part["ci95"][1]
    gate = difference["gate"]
    assert gate["prompts"] == 4
    assert gate["ci95"][0] <= gate["difference"] <= gate["ci95"][1]
    macro = other["evaluation"]["macro"]["tau"] - champion["evaluation"]["macro"]["tau"]
    assert difference["macro"]["difference"] == pytest.approx(macro)
    assert macro < 0

    page = Path(document["report"])
    assert page.parent == warm.path / "comparisons" / document["comparison_id"]
    assert str(worse) in page.read_text()
    written = json.loads((page.parent / "report.json").read_text())
    assert written == {name: part for name, part in document.items() if name != "report"}

    cost = json.loads(warm.run("cost", document["comparison_id"], "--json").out)
    assert (cost["recipe"], cost["status"]) == ("compare", "no_change")
    assert {"calibrate", "evaluate"} <= {stage["name"] for stage in cost["stages"]}

    # Once more, by the last run's recipe: nothing is left to be made.
    out = tmp_path / "page"
    shown = warm.run("compare", str(worse), "models:/tiny/1", "--out", str(out)).out
    assert kept(warm)["evaluations"] == before["evaluations"] + 1
    assert (out / "report.html").is_file()
    assert str(out / "report.html") in shown
    assert "macro average" in shown
    back = json.loads((out / "report.json").read_text())
    assert back["differences"][0]["macro"]["difference"] == pytest.approx(-macro)


@pytest.mark.full  # eight commands
def test_what_cannot_be_compared_is_named(warm: Home, worse: Path, tmp_path: Path) -> None:
    champion = "models:/tiny@champion"
    settings = json.loads((worse / "config.json").read_text())
    (worse / "config.json").write_text(json.dumps({**settings, "hidden_size": 8}))
    torn = tmp_path / "torn"
    shutil.copytree(warm.artifact_file("train", "draft"), torn)
    weights = load_file(torn / "model.safetensors")
    weights.pop(max(weights))
    save_file(weights, torn / "model.safetensors")
    empty = Home(tmp_path / "empty")
    before = kept(warm)
    for home, arguments, words in (
        (warm, (champion, str(worse)), (str(worse), "hidden_size is 8 in the draft")),
        (warm, (champion, str(torn)), (str(torn), "missing")),
        (warm, (champion, champion), (champion, "named twice")),
        (warm, (champion, "--set", "data.responses.top_k=5"), ("Run `deepspec run tiny` first",)),
        (empty, (str(worse),), ("no finished run",)),
        (empty, (str(worse), "--recipe", "tiny"), ("Run `deepspec run tiny` first",)),
    ):
        said = home.run("compare", *arguments, code=2).err
        for text in words:
            assert text in said, (arguments, said)
    assert kept(warm) == before
    assert not (warm.path / "comparisons").exists()
