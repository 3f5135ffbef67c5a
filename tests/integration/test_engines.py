"""Served as measured: a real vLLM serves exported drafts that we trained, and its rounds are ours.

Greedy, in fp32, with the very prompts: answers, the number of rounds and τ from tokens are equal, not close. A shift of
the layers by one, or blocks that are read in the other layout, cost a few per cent of acceptance at most, and nothing
else shows them. Of an answer that is cut off by its length only the tokens are compared: an engine drafts behind the
limit, too.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.data.responses.requests import GenerationRequest
from deepspec.decoding.completion import Completion
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.drafts import algorithm_of
from deepspec.export import FORMATS
from deepspec.export.matrix import ROWS, cell
from deepspec.targets import FAMILIES
from deepspec.targets.directory import read_spec
from deepspec.targets.model import Target
from tests.e2e.conftest import Home
from tests.fixtures.engines import DRAFTS, INTERPRETED, PYTHON, Job, Served, Serving, artifact

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

MAX_NEW_TOKENS = 96
STOP_ID = 2
NUM_ANSWERS, LEAST_TAU = 32, 1.3
NUM_VARIANT_ANSWERS = 8
"""Of another format of a draft that is served, or of a damaged one."""

METHODS = {"dspark": "dspark", "eagle3": "eagle3", "in_place": "dflash", "next_token": "dspark"}


@dataclass(frozen=True)
class Decoded:
    """What we decode with a draft ourselves."""

    prompts: list[tuple[int, ...]]
    completions: list[Completion]

    def shortest(self, count: int) -> "Decoded":
        """Of the answers that ended by a stop those of the fewest rounds, in order: an interpreter is slow."""
        both = [pair for pair in zip(self.prompts, self.completions, strict=True) if pair[1].finish_reason == "stop"]
        most = sorted(len(completion.rounds) for _, completion in both)[:count][-1]
        chosen = [pair for pair in both if len(pair[1].rounds) <= most][:count]
        return Decoded([prompt for prompt, _ in chosen], [completion for _, completion in chosen])

    @property
    def rounds(self) -> int:
        return sum(len(completion.rounds) for completion in self.completions)

    @property
    def tau_from_tokens(self) -> float:
        tokens = sum(len(completion.output_ids) - 1 for completion in self.completions)
        return tokens / self.rounds


@pytest.fixture(scope="module")
def home(served_home: Home) -> Home:
    """A home with a target of the demo's shape and a trained draft of every kind; it is only read."""
    return served_home


@pytest.fixture(scope="module")
def target(home: Home) -> Path:
    return home.path / "served" / "target"


@pytest.fixture(scope="module")
def drafts(home: Home, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> a draft's directory.

    vLLM's norm on the CPU takes the first layer's weights for the keys of every layer of a draft (`rms_norm` with
    weights [layers, head_dim], 0.32.0): its rounds are ours only where the layers have them in common.
    """
    folder = tmp_path_factory.mktemp("drafts")
    for name in DRAFTS:
        shutil.copytree(artifact(home, name, "train") / "draft", folder / name)
    weights = folder / "in_place" / "model.safetensors"
    tensors, norm = load_file(weights), "layers.{}.self_attn.k_norm.weight"
    save_file({**tensors, norm.format(1): tensors[norm.format(0)].clone()}, weights)
    return {name: folder / name for name in DRAFTS}


@pytest.fixture(scope="module")
def exported(drafts: dict[str, Path], target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`draft, format` -> an exported directory that its own check takes for fine."""
    folder, found = tmp_path_factory.mktemp("exported"), {}
    for name, draft in drafts.items():
        for form in ("vllm", "speculators"):
            out = folder / f"{name}-{form}"
            FORMATS[form].write(draft, out, str(target))
            assert FORMATS[form].check(out) == []
            found[f"{name}, {form}"] = out
    return found


@pytest.fixture(scope="module")
def ours(home: Home, drafts: dict[str, Path], target: Path) -> dict[str, Decoded]:
    """What each draft does in our own engine, greedily."""
    rows = pq.read_table(artifact(home, "dspark", "evaluate") / "answers.parquet", columns=["turn", "prompt_ids"])
    prompts = [tuple(row["prompt_ids"]) for row in rows.to_pylist() if row["turn"] == 0]
    return {name: decoded(draft, target, prompts) for name, draft in drafts.items()}


def decoded(draft: Path, folder: Path, prompts: list[tuple[int, ...]]) -> Decoded:
    algorithm, threads = algorithm_of(draft), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        drafter = algorithm.drafter(algorithm.load(draft, read_spec(folder)), algorithm.read_config(draft))
        target = Target.load(folder, device="cpu", dtype="float32", layer_ids=drafter.layer_ids)
        engine = Engine(target, drafter, rows=16, sampling=Sampling(temperature=0.0))
        requests = [
            GenerationRequest(id=str(number), prompt_ids=prompt, max_new_tokens=MAX_NEW_TOKENS, seed=0)
            for number, prompt in enumerate(prompts)
        ]
        found = {completion.id: completion for completion in engine.run(requests)}
    finally:
        torch.set_num_threads(threads)
    return Decoded(prompts, [found[str(number)] for number in range(len(prompts))])


def changed(directory: Path, out: Path, **fields: Any) -> Path:
    """A copy of an exported directory whose config.json says something else."""
    shutil.copytree(directory, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **fields}))
    return out


def chosen(name: str, ours: dict[str, Decoded]) -> Decoded:
    """The answers that a job is about."""
    draft, _, what = name.partition(", ")
    return ours[draft].shortest(NUM_ANSWERS if what == "vllm" else NUM_VARIANT_ANSWERS)


@pytest.fixture(scope="module")
def served(
    exported: dict[str, Path], ours: dict[str, Decoded], target: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Served]:
    """Job -> what vLLM served; two processes at once, for its second runner needs Triton's interpreter."""
    folder = tmp_path_factory.mktemp("served")
    directories = {
        **exported,
        "eagle3, layers shifted": changed(
            exported["eagle3, vllm"], folder / "shifted", eagle_aux_hidden_state_layer_ids=[2, 4, 6]
        ),
        "next_token, other slots": changed(
            exported["next_token, vllm"], folder / "slots", sample_from_anchor=False, dspark_bonus_anchor=True
        ),
    }

    def job(name: str) -> Job:
        draft = name.partition(",")[0]
        prompts = chosen(name, ours).prompts
        return Job(name, directories[name], METHODS[draft], 5, prompts, MAX_NEW_TOKENS, STOP_ID)

    first = ("eagle3, vllm", "in_place, vllm", "eagle3, speculators", "in_place, speculators", "eagle3, layers shifted")
    second = (
        *("dspark, vllm", "next_token, vllm", "dspark, speculators", "next_token, speculators"),
        "next_token, other slots",
    )
    running = [
        Serving(target, [job(name) for name in first], folder / "first"),
        Serving(target, [job(name) for name in second], folder / "second", **INTERPRETED),
    ]
    return {name: found for serving in running for name, found in serving.results(900).items()}


@pytest.mark.parametrize(
    "name",
    [
        "eagle3, vllm",
        "eagle3, speculators",
        "in_place, vllm",
        "in_place, speculators",
        "dspark, vllm",
        "dspark, speculators",
        "next_token, vllm",
        "next_token, speculators",
    ],
)
def test_a_draft_is_served_as_it_was_measured(name: str, served: dict[str, Served], ours: dict[str, Decoded]) -> None:
    found, expected = served[name], chosen(name, ours)
    assert not found.error
    assert len(expected.prompts) == (NUM_ANSWERS if name.endswith("vllm") else NUM_VARIANT_ANSWERS)
    assert expected.tau_from_tokens > LEAST_TAU
    assert found.answers == [list(completion.output_ids) for completion in expected.completions]
    assert set(found.finished) == {"stop"}
    assert found.rounds == expected.rounds
    assert found.tau_from_tokens == expected.tau_from_tokens


@pytest.mark.parametrize("name", ["eagle3, layers shifted", "next_token, other slots"])
def test_what_costs_only_acceptance_shows_in_the_rounds(
    name: str, served: dict[str, Served], ours: dict[str, Decoded]
) -> None:
    found, expected = served[name], chosen(name, ours)
    assert not found.error
    assert found.answers == [list(completion.output_ids) for completion in expected.completions]
    assert found.rounds > expected.rounds


def test_every_architecture_is_in_vllms_registry() -> None:
    registry = next(PYTHON.parents[1].glob("lib/*/site-packages/vllm/model_executor/models/registry.py")).read_text()
    names = {cell("vllm", family, row).architecture for family in FAMILIES for row in ROWS} - {None}
    assert names == {name for name in names if f'"{name}": (' in registry}
    assert len(names) == 4
