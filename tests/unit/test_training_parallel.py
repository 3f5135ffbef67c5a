"""Several processes train a real (tiny) draft as one does: the same losses, weights and documents."""

import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepspec.drafts import ALGORITHMS
from deepspec.training.processes.launch import launch
from tests.fixtures.algorithms import small_config
from tests.fixtures.command import forked_trainings, start
from tests.fixtures.training import LAYERS, draft_training, write_inputs

NUM_STEPS = 20

Trained = tuple[dict[str, list[float]], dict[str, Any]]
"""A training's curves, and its draft's weights."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def trained(
    inputs: Path, folder: Path, algorithm: str, *, train: dict[str, Any] | None = None, **execution: Any
) -> Trained:
    draft = small_config(ALGORITHMS[algorithm], target_layer_ids=LAYERS, mask_token_id=60, num_layers=2)
    # Five documents a step in packs of at most 60 tokens: the processes have unequal numbers of packs.
    settings = {"num_steps": NUM_STEPS, "lr": 1e-3, **(train or {})}
    job = draft_training(inputs, folder, draft=draft, execution=execution, **settings)
    curves: dict[str, list[float]] = {}

    def note(_step: int, name: str, value: float, _unit: str) -> None:
        curves.setdefault(name, []).append(value)

    with forked_trainings():
        assert launch(job, work_dir=folder / "work", metrics=note)["steps"] == NUM_STEPS
    assert len(curves["loss"]) == NUM_STEPS
    return curves, load_file(folder / "draft/model.safetensors")


CASES = [
    pytest.param("dspark", {"num_processes": 2}, id="ddp-dspark"),
    pytest.param("dspark", {"num_processes": 2, "parallel": "fsdp"}, id="fsdp-dspark", marks=pytest.mark.full),
    pytest.param(
        "dspark", {"num_processes": 4, "parallel": "fsdp", "num_shards": 2}, id="hybrid-dspark", marks=pytest.mark.full
    ),
]
MORE_CASES = [
    pytest.param("eagle3", {"num_processes": 2, "parallel": "fsdp"}, id="fsdp-eagle3"),
    pytest.param("dflash", {"num_processes": 3, "parallel": "fsdp"}, id="fsdp3-dflash"),
    pytest.param(
        "dspark",
        {"num_processes": 2, "parallel": "fsdp", "recompute_activations": True},
        id="fsdp-recomputed-dspark",
    ),
]
"""`make campaign PART=parallel`."""


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """What one process trains, once for every algorithm."""
    return cache(lambda algorithm: trained(inputs, tmp_path_factory.mktemp(algorithm), algorithm))


@pytest.mark.parametrize(("algorithm", "execution"), CASES)
def test_processes_train_what_one_does(
    inputs: Path, tmp_path: Path, alone: Callable[[str], Trained], algorithm: str, execution: dict[str, Any]
) -> None:
    equals(trained(inputs, tmp_path / "several", algorithm, **execution), alone(algorithm))


def equals(several: Trained, alone: Trained) -> None:
    """Several processes trained what one did, to rounding."""
    (found, others), (curves, weights) = several, alone
    for name in ("loss", "grad_norm", "tau_probabilistic"):
        assert found[name] == pytest.approx(curves[name], rel=1e-5), name  # fp32 sums in another order
    assert others.keys() == weights.keys()
    for name, weight in weights.items():
        assert float((others[name] - weight).norm() / weight.norm()) <= 1e-4, name


@pytest.mark.full
def test_divided_weights_are_put_together_to_validate(inputs: Path, tmp_path: Path) -> None:
    train = {"validate_every_steps": 10, "num_validation_prompts": 2, "validation_max_new_tokens": 6}
    alone, _ = trained(inputs, tmp_path / "one", "dspark", train=train)
    found, _ = trained(inputs, tmp_path / "two", "dspark", train=train, num_processes=2, parallel="fsdp")
    assert len(found["tau"]) == 2
    for name in ("validation_loss", "validation_tau_probabilistic"):
        assert found[name] == pytest.approx(alone[name], rel=1e-4), name  # of weights that differ by rounding


@pytest.mark.full
def test_half_precision_shards_keep_fp32_masters(inputs: Path, tmp_path: Path) -> None:
    train = {"compute_dtype": "bfloat16", "lr": 1e-2}
    losses = {}
    for parallel in ("ddp", "fsdp"):
        curves, weights = trained(
            inputs, tmp_path / parallel, "dspark", train=train, num_processes=2, parallel=parallel
        )
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        losses[parallel] = curves["loss"]
    # Sharded sums add fp32 gradients of bf16 products, as masters do, in another order.
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=2e-2)
    assert losses["fsdp"][-1] < 0.9 * losses["fsdp"][0]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.full  # processes
def test_a_step_is_the_same_on_two_ranks_in_fp64(inputs: Path, tmp_path: Path) -> None:
    """Loss and gradient of a step: 1x8 = 2x4 = 8x1 = 2 ranks, whichever way the ranks share the weights."""
    results = {}
    for name, (processes, *arguments) in {
        "1x8": (1, "10000"),
        "2x4": (1, "80"),
        "8x1": (1, "1"),
        "2 ranks": (2, "1"),
        "2 ranks, sharded": (2, "1", "fsdp"),
    }.items():
        out = tmp_path / f"{name}.pt"
        environment = {
            **os.environ,
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        logs = [tmp_path / f"{name}-{rank}.txt" for rank in range(processes)]
        ranks = [
            start(
                [str(inputs), str(out), *arguments],
                {**environment, "RANK": str(rank)},
                out=log,
                err=log,
                module="tests.fixtures.one_step",
            )
            for rank, log in enumerate(logs)
        ]
        assert [rank.wait(120) for rank in ranks] == [0] * processes, [log.read_text() for log in logs]
        results[name] = torch.load(out, weights_only=True)
    whole = results.pop("1x8")
    assert whole["micro_batches"] == 1
    assert results["8x1"]["micro_batches"] == 8
    for name, found in results.items():
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6), name
        for weight, gradient in whole["gradients"].items():
            distance = float((found["gradients"][weight] - gradient).norm() / gradient.norm())
            assert distance <= 1e-6, (name, weight)
