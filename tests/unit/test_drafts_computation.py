"""How a draft computes (compiled, recomputed, with another attention) changes nothing of what it computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepspec.drafts import ALGORITHMS, layers
from deepspec.drafts.layers import Computation, DraftModule
from deepspec.states.batch import PackedStates
from deepspec.targets.directory import read_spec
from deepspec.targets.family import TargetSpec
from deepspec.training.optimizer import MasterWeights
from tests.fixtures.algorithms import TARGETS, small_config

VOCAB, HIDDEN_LAYERS = 61, (0, 1)


@pytest.fixture(scope="module", params=sorted(TARGETS))
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TargetSpec:
    return read_spec(TARGETS[request.param](tmp_path_factory.mktemp(request.param) / "target", vocab_size=VOCAB))


@pytest.fixture(params=sorted(ALGORITHMS))
def algorithm(request: pytest.FixtureRequest) -> Any:
    return ALGORITHMS[request.param]


def draft_of(algorithm: Any, config: Any, spec: TargetSpec) -> DraftModule:
    draft = algorithm.build(config, spec)
    generator = torch.Generator().manual_seed(1)
    embedding, head = (torch.randn(VOCAB, spec.hidden_size, generator=generator) for _ in range(2))
    algorithm.initialize(draft, embedding, head, 0)
    return draft


def batch_of(spec: TargetSpec, lengths: tuple[int, ...], seed: int = 0) -> PackedStates:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    return PackedStates(
        input_ids_T=torch.randint(0, VOCAB, (tokens,), generator=generator),
        loss_mask_T=torch.ones(tokens, dtype=torch.bool),
        lengths=lengths,
        document_ids=tuple(range(len(lengths))),
        states_TLD=torch.randn(tokens, len(HIDDEN_LAYERS), spec.hidden_size, generator=generator),
        final_TD=torch.randn(tokens, spec.hidden_size, generator=generator),
    )


def config_of(algorithm: Any) -> Any:
    return small_config(algorithm, target_layer_ids=HIDDEN_LAYERS, num_layers=2)


def loss_of(algorithm: Any, draft: DraftModule, config: Any, batch: PackedStates, step: int = 0) -> torch.Tensor:
    supervision = algorithm.supervise(batch, config, seed=0, step=step)
    loss: torch.Tensor = algorithm.loss(draft, batch, supervision, supervision.totals).loss
    return loss


def gradients(algorithm: Any, draft: DraftModule, config: Any, batch: PackedStates) -> dict[str, torch.Tensor]:
    loss = loss_of(algorithm, draft, config, batch)
    loss.backward()
    found = {name: weight.grad for name, weight in draft.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative Frobenius distance: sums are taken in another order."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.full)])
def test_loss_and_gradients_stay_the_same(
    algorithm: Any, spec: TargetSpec, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputed; compiled in addition for one family, and compiled alone for the other."""
    recomputed = not compiled or spec.family == "qwen3"
    # Traced and differentiated as for any compiler; inductor itself is asked in a test of its own.
    monkeypatch.setattr(layers, "COMPILER", "aot_eager")
    layers._compiled.cache_clear()
    config, batch = config_of(algorithm), batch_of(spec, (13, 5, 20))
    expected = gradients(algorithm, draft_of(algorithm, config, spec), config, batch)
    draft = draft_of(algorithm, config, spec)
    draft.compute_as(Computation(compiled=compiled, recomputed=recomputed))
    found = gradients(algorithm, draft, config, batch)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        if compiled:
            assert relative(found[name], wanted) <= 1e-5, name
        else:
            assert torch.equal(found[name], wanted), name
    layers._compiled.cache_clear()


def test_in_half_precision_a_draft_trains_and_is_written(algorithm: Any, spec: TargetSpec, tmp_path: Path) -> None:
    config, batch = config_of(algorithm), batch_of(spec, (13, 5, 20)).to("cpu", torch.bfloat16)
    exact = loss_of(algorithm, draft_of(algorithm, config, spec), config, batch.to("cpu", torch.float32))
    draft = draft_of(algorithm, config, spec)
    weights = MasterWeights(draft, torch.bfloat16)
    loss = loss_of(algorithm, draft, config, batch)
    loss.backward()
    # Eight bits. Gradients are not compared: an unroll of two new Gemma layers amplifies rounding some 200 times.
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.03)
    for name, gradient in weights.gradients.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
    algorithm.save(draft, tmp_path, config, spec)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_without_a_block_every_weight_still_has_a_gradient(algorithm: Any, spec: TargetSpec) -> None:
    """Processes that divide the weights send gradients of all of them, whatever their documents hold."""
    config, batch = config_of(algorithm), batch_of(spec, (13, 5))
    batch = replace(batch, loss_mask_T=torch.zeros(18, dtype=torch.bool))
    draft = draft_of(algorithm, config, spec)
    supervision = algorithm.supervise(batch, config, seed=0, step=0)
    algorithm.loss(draft, batch, supervision, dict.fromkeys(supervision.totals, float("inf"))).loss.backward()
    for name, weight in draft.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert not weight.grad.any(), name


def test_recomputing_keeps_less(algorithm: Any, spec: TargetSpec) -> None:
    config, batch = config_of(algorithm), batch_of(spec, (40, 30))
    kept = []
    for recomputed in (False, True):
        draft = draft_of(algorithm, config, spec)
        draft.compute_as(Computation(recomputed=recomputed))
        own = {weight.untyped_storage().data_ptr() for weight in draft.parameters()}
        storages: dict[int, int] = {}

        def note(tensor: torch.Tensor, own: set[int] = own, storages: dict[int, int] = storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss_of(algorithm, draft, config, batch)
        kept.append(sum(storages.values()))
    assert kept[1] < 0.75 * kept[0]


def no_recompilation(algorithm: Any, spec: TargetSpec, steps: int) -> int:
    """Train on batches of other lengths each; how many graphs were compiled, all of them in the first three steps."""
    from torch._dynamo.utils import counters  # a second to import, for everyone who only collects tests

    layers._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    config = config_of(algorithm)
    draft = draft_of(algorithm, config, spec)
    draft.compute_as(Computation(compiled=True))
    random = torch.Generator().manual_seed(0)
    graphs = []
    for step in range(steps):
        lengths = torch.randint(2, 40, (1 + step % 4,), generator=random).tolist()
        with torch.compiler.set_stance("default" if step < 3 else "fail_on_recompile"):
            loss_of(algorithm, draft, config, batch_of(spec, tuple(lengths), step), step).backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[2] >= 2  # a layer's two regions, at least
    assert graphs[-1] == graphs[2]
    layers._compiled.cache_clear()
    return int(graphs[-1])


@pytest.mark.full  # compiles
@pytest.mark.parametrize("algorithm", ["dflash", "eagle3"], indirect=True)
def test_nothing_is_compiled_again_for_other_lengths(
    algorithm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DSpark's, whose body is DFlash's, are counted where inductor compiles them."""
    spec = read_spec(TARGETS["qwen3"](tmp_path / "target", vocab_size=VOCAB))
    monkeypatch.setattr(layers, "COMPILER", "aot_eager")
    no_recompilation(algorithm, spec, 12)


def keeps_the_loss_compiled(algorithm: Any, spec: TargetSpec, steps: int = 50) -> int:
    """Train a draft that inductor compiles on batches of many lengths; how many graphs it compiled."""
    num_graphs = no_recompilation(algorithm, spec, steps)
    config, batch = config_of(algorithm), batch_of(spec, (13, 5, 20))
    expected = gradients(algorithm, draft_of(algorithm, config, spec), config, batch)
    draft = draft_of(algorithm, config, spec)
    draft.compute_as(Computation(compiled=True))
    for name, found in gradients(algorithm, draft, config, batch).items():
        # fp32 sums in another order; an unroll of two new Gemma layers amplifies rounding some 200 times.
        assert relative(found, expected[name]) <= 2e-4, name
    return num_graphs


@pytest.mark.full  # inductor compiles C++
@pytest.mark.parametrize(("name", "family"), [("dspark", "qwen3")])
def test_inductor_compiles_once_and_keeps_the_loss(tmp_path: Path, name: str, family: str) -> None:
    """A quarter of a minute of g++; every algorithm with every family is the campaign's part `computation`."""
    spec = read_spec(TARGETS[family](tmp_path / "target", vocab_size=VOCAB))
    keeps_the_loss_compiled(ALGORITHMS[name], spec, steps=12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_makes_the_same_loss(algorithm: Any, spec: TargetSpec) -> None:
    config, batch = config_of(algorithm), batch_of(spec, (13, 5, 140))
    draft = draft_of(algorithm, config, spec)
    expected = loss_of(algorithm, draft, config, batch)
    draft.compute_as(Computation(attention="flex"))
    torch.testing.assert_close(loss_of(algorithm, draft, config, batch), expected)
