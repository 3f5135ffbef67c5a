"""What every draft algorithm must do with every target family; and what adding one of each takes."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from decoding_stubs import some_requests

import deepspec.drafts
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.drafts import ALGORITHMS, algorithm_of
from deepspec.drafts.algorithm import Algorithm
from deepspec.errors import IncompatibleDraft
from deepspec.export import FORMATS
from deepspec.states.batch import PackedStates
from deepspec.targets import FAMILIES
from deepspec.targets.capture import capture
from deepspec.targets.directory import read_spec
from deepspec.targets.model import Target
from tests.fixtures import toy_algorithm
from tests.fixtures.algorithms import TARGETS, small_config
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_qwen3
from tests.fixtures.toy_algorithm import Toy

ROOT = Path(__file__).parents[2]
GREEDY = Sampling(temperature=0.0)


def test_every_family_has_a_small_target() -> None:
    assert set(TARGETS) == set(FAMILIES)


@pytest.fixture(scope="module", params=sorted(TARGETS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TARGETS[request.param](tmp_path_factory.mktemp(request.param) / "target")


WITH_TOY: Mapping[str, Algorithm] = MappingProxyType({**ALGORITHMS, Toy.name: Toy()})


@pytest.fixture(autouse=True)
def _toy_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspec.drafts, "ALGORITHMS", WITH_TOY)


@pytest.fixture(params=list(WITH_TOY))
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return WITH_TOY[request.param]


def built(algorithm: Algorithm, config: Any, target: Target, spread: float = 1.0) -> Any:
    draft = algorithm.build(config, target.spec)
    assert all(torch.isnan(weight).all() for weight in draft.parameters())
    algorithm.initialize(draft, target.embedding_weight, target.head_weight, 0)
    with torch.no_grad():
        for weight in draft.parameters():
            if weight.requires_grad and weight.dim() > 1:
                weight.mul_(spread)
    return draft


def captured(target: Target) -> PackedStates:
    """Three documents with the target's real states."""
    generator = torch.Generator().manual_seed(0)
    lengths = (20, 9, 14)
    documents = [torch.randint(3, target.spec.vocab_size, (length,), generator=generator) for length in lengths]
    states_TLD, final_TD = capture(target, documents)
    return PackedStates(
        input_ids_T=torch.cat(documents),
        loss_mask_T=torch.ones(sum(lengths), dtype=torch.bool),
        lengths=lengths,
        document_ids=(0, 1, 2),
        states_TLD=states_TLD,
        final_TD=final_TD,
    )


def test_loss_falls_on_the_targets_states(folder: Path, algorithm: Algorithm) -> None:
    spec = read_spec(folder)
    config = small_config(algorithm)
    target = Target.load(folder, layer_ids=algorithm.layer_ids(config, spec))
    draft = built(algorithm, config, target)
    batch = captured(target)
    optimizer = torch.optim.AdamW([weight for weight in draft.parameters() if weight.requires_grad], lr=3e-3)
    losses = []
    for step in range(12):
        supervision = algorithm.supervise(batch, config, seed=0, step=step)
        output = algorithm.loss(draft, batch, supervision, supervision.totals)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
        assert {"tau_probabilistic", "accept_rate@0"} <= output.sums.keys()
    assert losses[-1] < losses[0]


def test_decodes_losslessly_after_being_saved_and_loaded(folder: Path, algorithm: Algorithm, tmp_path: Path) -> None:
    spec = read_spec(folder)
    config = small_config(algorithm)
    target = Target.load(folder, layer_ids=algorithm.layer_ids(config, spec))
    draft = built(algorithm, config, target, spread=6.0)
    algorithm.save(draft, tmp_path / "draft", config, spec)
    assert algorithm_of(tmp_path / "draft") is algorithm
    loaded = algorithm.load(tmp_path / "draft", spec, config=config)
    for name, weight in draft.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    drafter = algorithm.drafter(loaded.eval(), algorithm.read_config(tmp_path / "draft"))
    assert drafter.num_draft_tokens == algorithm.num_draft_tokens(config)
    requests = some_requests(12, seed=3)
    plain = {one.id: one.output_ids for one in Engine(target, None, rows=4, sampling=GREEDY).run(requests)}
    found = {one.id: one.output_ids for one in Engine(target, drafter, rows=4, sampling=GREEDY).run(requests)}
    assert found == plain


def test_a_draft_belongs_to_exactly_one_algorithm(folder: Path, tmp_path: Path) -> None:
    spec = read_spec(folder)
    for algorithm in WITH_TOY.values():
        config = small_config(algorithm)
        target = Target.load(folder, layer_ids=algorithm.layer_ids(config, spec))
        algorithm.save(built(algorithm, config, target), tmp_path / algorithm.name, config, spec)
        written = json.loads((tmp_path / algorithm.name / "config.json").read_text())
        assert [other.name for other in WITH_TOY.values() if other.owns(written)] == [algorithm.name]


def test_tables_are_held_once_and_never_trained(folder: Path, algorithm: Algorithm) -> None:
    target = Target.load(folder)
    draft = built(algorithm, small_config(algorithm), target)
    frozen = {name for name, weight in draft.named_parameters() if not weight.requires_grad}
    assert frozen == {"embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("name", "field", "fields"), [("toy", "bias_rank", {}), ("dspark", "markov_rank", {"confidence_head": False})]
)
def test_a_field_changes_loss_cost_and_files_where_it_is_used(
    folder: Path, name: str, field: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """What is estimated is what is trained, and what is saved and exported says what it is."""
    algorithm, spec = WITH_TOY[name], read_spec(folder)
    target, batch = Target.load(folder, layer_ids=algorithm.layer_ids(small_config(algorithm), spec)), None
    losses, costs, trained = [], [], []
    for rank in (2, 5):
        config = small_config(algorithm, **{field: rank}, **fields)
        draft = built(algorithm, config, target, spread=6.0)
        batch = batch or captured(target)
        supervision = algorithm.supervise(batch, config, seed=0, step=0)
        losses.append(float(algorithm.loss(draft, batch, supervision, supervision.totals).loss.detach()))
        costs.append(algorithm.cost(config, spec))
        trained.append(sum(weight.numel() for weight in draft.parameters() if weight.requires_grad))
        saved, out = tmp_path / f"draft-{rank}", tmp_path / f"out-{rank}"
        algorithm.save(draft, saved, config, spec)
        assert getattr(algorithm.read_config(saved), field) == rank
        FORMATS["deepspec"].write(saved, out, "a/target")
        assert FORMATS["deepspec"].check(out) == []
        with refused(IncompatibleDraft, str(rank)):
            algorithm.load(saved, spec, config=config.model_copy(update={field: 7}))
    assert losses[0] != losses[1]
    assert costs[1].parameters - costs[0].parameters == trained[1] - trained[0] > 0
    assert costs[1].row_flops > costs[0].row_flops
    assert json.loads((tmp_path / "out-5" / "config.json").read_text()).get("toy_released_rank") == (
        5 if name == "toy" else None
    )


TOY_FAMILY = """
import dataclasses

from deepspec.targets import qwen3

FAMILY = dataclasses.replace(qwen3.FAMILY, name="toy", model_types=("toy",), value_norm=True)
"""


@pytest.mark.full  # both in processes of their own
def test_an_algorithm_and_a_family_are_one_file_and_one_line_each(tmp_path: Path) -> None:
    """A copy of the sources with a toy of each: recipes, estimates and error messages know them at once."""
    for package in ("deepspec", "tasks", "flows"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    toys = {
        "drafts": (
            Path(toy_algorithm.__file__).read_text(),
            "from deepspec.drafts.toy import Toy",
            "DSpark()",
            "Toy()",
        ),
        "targets": (TOY_FAMILY, "from deepspec.targets import toy", "gemma4.FAMILY", "toy.FAMILY"),
    }
    for room, (source, line, last, own) in toys.items():
        (tmp_path / "deepspec" / room / "toy.py").write_text(source)
        table = tmp_path / "deepspec" / room / "__init__.py"
        text = table.read_text().replace(last, f"{last}, {own}")
        table.write_text(text.replace("\nfrom deepspec", f"\n{line}\nfrom deepspec", 1))
    target = tiny_qwen3(tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "model_type": "toy"}))
    options = ["--set", "draft={algorithm: toy, mask_token_id: 3}", "--set", f"target.path={target}"]
    command = [sys.executable, "-m", "flows.cli.main", "plan", "tiny", *options, "--json"]
    command += ["--conversations", "10", "--mean-tokens", "20"]
    estimates = []
    for rank in (2, 5):
        ranked = [*command, "--set", f"draft.bias_rank={rank}"]
        done = subprocess.run(ranked, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        estimates.append(json.loads(done.stdout))
    assert estimates[0]["tokens"] == estimates[1]["tokens"] == 200
    assert estimates[0]["flops"]["training"] < estimates[1]["flops"]["training"]
    command += ["--set", "draft.bias_rank=much"]
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "draft.bias_rank" in wrong.stderr


def test_nothing_asks_which_algorithm_or_family_it_has() -> None:
    names = "|".join([*ALGORITHMS, *FAMILIES])
    asked = re.compile(rf"""[!=]=\s*["'](?:{names})["']|["'](?:{names})["']\s*[!=]=|\bin \(?["'](?:{names})["']""")
    own = {f"deepspec/drafts/{name}.py" for name in ALGORITHMS} | {f"deepspec/targets/{name}.py" for name in FAMILIES}
    for package in ("deepspec", "tasks", "flows"):
        for file in (ROOT / package).rglob("*.py"):
            where = file.relative_to(ROOT).as_posix()
            if where not in own:
                assert not asked.search(file.read_text()), where
