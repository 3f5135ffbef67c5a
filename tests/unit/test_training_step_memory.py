"""What a estimated step takes is what the step takes: the same code, with and without content."""

from typing import Any

import pytest
import torch

from deepspec.drafts import ALGORITHMS
from deepspec.drafts.layers import Computation
from deepspec.states.batch import PackedTokens
from deepspec.targets.directory import read_spec
from deepspec.targets.family import TargetSpec
from deepspec.training.memory.step_estimate import DocumentSize, estimate_step_memory
from deepspec.training.memory.tensor_counter import LiveBytes, bytes_held
from deepspec.training.optimizer import MasterWeights
from tests.fixtures.targets import tiny_qwen3

DOCUMENTS = (DocumentSize(60, 40), DocumentSize(35, 20), DocumentSize(80, 50))
LAYERS = (0, 1, 2)
DRAFTS = {
    "dspark": {"num_layers": 1, "num_anchors": 12, "markov_rank": 8, "mask_token_id": 60},
    "dflash": {"num_layers": 1, "num_anchors": 12, "mask_token_id": 60},
    "eagle3": {},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TargetSpec:
    return read_spec(tiny_qwen3(tmp_path_factory.mktemp("target"), vocab_size=61))


def draft_config(name: str) -> Any:
    return ALGORITHMS[name].Config(**{"target_layer_ids": LAYERS, **DRAFTS[name]})


def measured(name: str, spec: TargetSpec, dtype: str, *, recomputed: bool) -> int:
    """Bytes that a real forward and backward have alive at most."""
    algorithm, config = ALGORITHMS[name], draft_config(name)
    draft = algorithm.build(config, spec)
    table_VD = torch.zeros(spec.vocab_size, spec.hidden_size)
    algorithm.initialize(draft, table_VD, table_VD, 0)
    draft.compute_as(Computation("sdpa", recomputed=recomputed))
    weights = MasterWeights(draft, getattr(torch, dtype))
    total = sum(document.tokens for document in DOCUMENTS)
    masks = [torch.arange(one.tokens) >= one.tokens - one.supervised for one in DOCUMENTS]
    tokens = PackedTokens(
        input_ids_T=torch.zeros(total, dtype=torch.int64),
        loss_mask_T=torch.cat(masks),
        lengths=tuple(document.tokens for document in DOCUMENTS),
        document_ids=(0, 1, 2),
    )
    supervision = algorithm.supervise(tokens, config, seed=0, step=0)
    weights.clear_gradients()
    with LiveBytes() as live:
        states = torch.zeros(total, len(LAYERS), spec.hidden_size, dtype=torch.bfloat16)
        final = torch.zeros(total, spec.hidden_size, dtype=torch.bfloat16)
        full = tokens.with_states(states, final).to("cpu", getattr(torch, dtype))
        del states, final
        algorithm.loss(draft, full, supervision, supervision.totals).loss.backward()
    return live.peak


@pytest.mark.parametrize(
    ("name", "dtype", "recomputed"),
    [
        ("dspark", "float32", False),
        ("dspark", "bfloat16", True),
        ("dflash", "float32", True),
        ("eagle3", "float32", False),
        ("eagle3", "bfloat16", True),
    ],
)
def test_an_estimated_step_takes_what_the_step_takes(
    spec: TargetSpec, name: str, dtype: str, *, recomputed: bool
) -> None:
    found = estimate_step_memory(
        ALGORITHMS[name], draft_config(name), spec, DOCUMENTS, dtype=dtype, device="cpu", recomputed=recomputed
    )
    assert found.step == pytest.approx(measured(name, spec, dtype, recomputed=recomputed), rel=0.03)


def test_a_large_micro_batch_is_reckoned_from_smaller_ones(spec: TargetSpec) -> None:
    arguments = (ALGORITHMS["dflash"], draft_config("dflash"), spec)
    steps = [
        estimate_step_memory(*arguments, [DocumentSize(60, 40)] * count, dtype="float32", device="cpu").step
        for count in (34, 68, 102)
    ]
    # The loss's chunks are not all full: their rows are divided evenly.
    assert steps[2] == pytest.approx(steps[1] + steps[1] - steps[0], rel=0.02)


def test_only_what_was_made_and_is_still_held_counts() -> None:
    before = torch.zeros(100)
    with LiveBytes() as live:
        before.add_(1)
        made = torch.zeros(250)
        view = made[10:]
        del made
        assert live.now == 1000
        del view
        assert live.now == 0
        torch.zeros(50)
    assert (live.now, live.peak) == (0, 1000)
    assert bytes_held([before, before[3:], torch.zeros(5)]) == 420
