"""The speculators package itself loads our exports, and computes the logits that we draft from.

Its forward in training is compared with our drafter in decoding: nothing but the weights and what config.json says is
common to the two. Marked full: the package is in the engine's environment, and importing it takes 10 s.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.drafts import algorithm_of
from deepspec.export import FORMATS
from deepspec.export.importing import import_draft
from deepspec.export.matrix import ROWS, cell
from deepspec.targets.directory import read_spec
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.engines import FOLDER, PYTHON
from tests.unit.test_export import DEPTH
from tests.unit.test_layouts import WEIGHTS, our_draft

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

LOADED = [row for row in ROWS if cell("speculators", "qwen3", row).architecture]
LENGTH, ANCHORS = 16, (3, 6, 9)
TOLERANCE = 1e-5
"""Logits reach 2.4, in fp32: what is added in another order differs by some of its roundings (1.2e-7 each at 2; found:
1.7e-6), and what is another position's by more than a hundred times as much as this."""
LEAST_SPREAD = 0.1


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TARGETS["qwen3"](tmp_path_factory.mktemp("target") / "qwen3", **DEPTH["qwen3"])


@pytest.fixture(scope="module")
def drafts(target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A draft of every row that the package loads, whose weights are random and all matter; of two layers if it can."""
    folder = tmp_path_factory.mktemp("drafts")
    return {row: our_draft(target, row, folder / row, num_layers=1 if row == "eagle3" else 2) for row in LOADED}


def given(draft: Path) -> dict[str, torch.Tensor]:
    """A document with the states that a draft reads of it, [tokens, layers, hidden], and its tokens."""
    generator = torch.Generator().manual_seed(3)
    layers = len(json.loads((draft / "config.json").read_text())["target_layer_ids"])
    return {
        "states": torch.randn(LENGTH, layers, 32, generator=generator),
        "tokens": torch.randint(0, 61, (LENGTH,), generator=generator),
    }


def inputs_of(draft: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The same as the package's forward takes it, with what it is told besides."""
    document, config = given(draft), json.loads((draft / "config.json").read_text())
    states, tokens = document["states"].flatten(1)[None], document["tokens"][None]
    if "ttt_length" in config:  # a state goes with the token after it
        states, tokens = states[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        mask, options = torch.ones_like(tokens), {"ttt_steps": config["ttt_length"]}
    else:
        mask = torch.zeros_like(tokens)
        mask[0, list(ANCHORS)] = 1
        options = {"max_anchors": len(ANCHORS)}
    ours = {"hidden_states": states, "input_ids": tokens, "loss_mask": mask}
    return ours | {
        "document_ids": torch.zeros_like(tokens),
        "verifier_last_hidden_states": torch.zeros(1, tokens.shape[1], 32),
    }, options


def ours(draft: Path, target: Path) -> dict[str, torch.Tensor]:
    """What our drafter draws from behind each anchor, [anchors, positions, vocabulary], where the document is drawn."""
    algorithm, document = algorithm_of(draft), given(draft)
    drafter = algorithm.drafter(algorithm.load(draft, read_spec(target)), algorithm.read_config(draft))
    states, tokens = document["states"], document["tokens"]
    logits, confidences = [], []
    for anchor in ANCHORS:
        drawn: list[torch.Tensor] = []

        def draw(
            logits_RV: torch.Tensor, position: int, anchor: int = anchor, drawn: list[torch.Tensor] = drawn
        ) -> tuple[torch.Tensor, None]:
            drawn.append(logits_RV[0].clone())
            return tokens[anchor + position + 1][None], None

        drafter.allocate(1, LENGTH)
        drafter.advance([0], states[None, :anchor], tokens[None, :anchor], [0], [anchor])
        proposal = drafter.propose([0], tokens[anchor][None], [anchor], draw)
        logits.append(torch.stack(drawn))
        if proposal.confidence_RK is not None:
            confidences.append(proposal.confidence_RK[0])
    return {"logits": torch.stack(logits)} | ({"confidence": torch.stack(confidences)} if confidences else {})


def theirs(found: dict[str, torch.Tensor], draft: Path) -> dict[str, torch.Tensor]:
    """What the package computed, in the shape of ours."""
    config = json.loads((draft / "config.json").read_text())
    if "ttt_length" in config:
        steps = torch.stack([found[f"logits {step}"] for step in range(config["ttt_length"])], dim=1)
        return {"logits": steps[[anchor - 1 for anchor in ANCHORS]]}
    slots = slice(1 if config.get("sample_from_anchor") is False else 0, None)
    blocks = {"logits": found["logits 0"].unflatten(0, (len(ANCHORS), -1))[:, slots]}
    if "confidence" in found:
        blocks["confidence"] = torch.sigmoid(found["confidence"].unflatten(0, (len(ANCHORS), -1)))[:, slots]
    return blocks


@pytest.fixture(scope="module")
def package(drafts: dict[str, Path], target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package made of all exports, in one process."""
    folder, jobs = tmp_path_factory.mktemp("package"), []
    for row, draft in drafts.items():
        inputs, options = inputs_of(draft)
        save_file(inputs, folder / f"{row}.inputs")
        FORMATS["speculators"].write(draft, folder / f"{row}.exported", str(target))
        places = {"draft": str(folder / f"{row}.exported"), "inputs": str(folder / f"{row}.inputs")}
        jobs.append({"name": row, "options": options, **places})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    quiet = {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [PYTHON, FOLDER / "load_speculators.py", folder / "jobs.json", folder],
        env={**variables, **quiet},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.parametrize("row", LOADED)
def test_the_package_loads_every_tensor_and_no_other(row: str, package: Path) -> None:
    found = json.loads((package / "loaded.json").read_text())[row]
    assert found == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}


@pytest.mark.parametrize("row", LOADED)
def test_its_logits_are_ours(row: str, package: Path, drafts: dict[str, Path], target: Path) -> None:
    """Also the confidences, where there are any."""
    expected = ours(drafts[row], target)
    found = theirs(load_file(package / f"{row}.safetensors"), drafts[row])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert float((found[name] - tensor).abs().max()) <= TOLERANCE
        assert float(tensor.std()) > LEAST_SPREAD
    assert float((found["logits"][1:] - expected["logits"][:-1]).abs().max()) > 100 * TOLERANCE


@pytest.mark.parametrize("row", LOADED)
def test_what_the_package_saves_is_imported_with_the_same_bits(
    row: str, package: Path, drafts: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    """It saves no tables of a block draft: the target's are taken, which are the draft's."""
    import_draft(package / row, read_spec(target), tmp_path / "out")
    before, after = load_file(drafts[row] / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(not after[name].any() for name in after.keys() - before.keys())
    written, expected = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", drafts[row]))
    assert written["target_layer_ids"] == expected["target_layer_ids"]
