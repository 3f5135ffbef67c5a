"""The loop on a toy objective: schedule, optimizer, splits, resumption to the bit, choice of the best weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from training_toy import Toy

from deepspec.training.checkpoint import Checkpoints
from deepspec.training.config import Config, TrainingExecution
from deepspec.training.failure import TrainingDiverged
from deepspec.training.loop import Outcome, fit
from deepspec.training.metric_stream import MetricFile, MetricTail
from deepspec.training.optimizer import AdamW, MasterWeights, clip
from deepspec.training.schedule import learning_rate
from tests.fixtures.refused import refused

torch.set_num_threads(1)


def train(toy: Toy, folder: Path, *, every: int = 1000, stop_at: int | None = None, **config: Any) -> Outcome:
    folder.mkdir(exist_ok=True)
    metrics = MetricFile(folder / "metrics.jsonl")
    steps = iter(range(10_000))
    outcome = fit(
        toy,
        Config(**{"lr": 0.05, "validate_every_steps": None, **config}),
        checkpoints=Checkpoints(folder / "checkpoints", keep=2, identity="toy"),
        metrics=metrics,
        checkpoint_every_steps=every,
        stop=lambda: next(steps) == stop_at,
    )
    metrics.close()
    return outcome


def weights(toy: Toy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in toy.module.state_dict().items()}


def same(left: Toy, right: Toy) -> bool:
    ours, theirs = weights(left), weights(right)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(step, value) for step, n, value, _ in MetricTail(folder / "metrics.jsonl").read() if n == name]


def test_schedule_is_warm_up_then_half_a_cosine() -> None:
    rates = [learning_rate(i, num_steps=100, peak=2.0, warmup_share=0.04) for i in range(100)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[4 + 48] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.5 * 2.0 * (1 + math.cos(math.pi * 95 / 96)))
    assert learning_rate(0, num_steps=10, peak=2.0, warmup_share=0.04) == 2.0  # floor(0.4) = 0 warm-up steps


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_the_published_algorithm(weight_decay: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    masters = MasterWeights(layer, torch.float32)
    optimizer = AdamW(masters.weights, betas=(0.9, 0.99), eps=1e-3, weight_decay=weight_decay)
    # Its formulas, one weight at a time, in python's float64.
    expected = {name: weight.double().flatten().tolist() for name, weight in masters.weights.items()}
    moments = {(name, i): (0.0, 0.0) for name, values in expected.items() for i in range(len(values))}
    for number in range(1, 8):
        layer(torch.randn(4, 5)).square().sum().backward()
        lr = 0.1 / number
        for (name, i), before in moments.items():
            gradient = float(masters.gradients[name].flatten()[i])
            first, second = 0.9 * before[0] + 0.1 * gradient, 0.99 * before[1] + 0.01 * gradient**2
            moments[name, i] = (first, second)
            root = math.sqrt(second / (1 - 0.99**number))
            expected[name][i] -= lr * weight_decay * expected[name][i]
            expected[name][i] -= lr * first / (1 - 0.9**number) / (root + 1e-3)
        optimizer.step(masters.gradients, number=number, lr=lr)
        masters.clear_gradients()
    for name, weight in layer.named_parameters():
        assert weight.flatten().tolist() == pytest.approx(expected[name], rel=1e-5, abs=1e-6)  # fp32 rounding


def test_clip_scales_to_the_global_norm() -> None:
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    clip(gradients, 5.0, 10.0)
    assert gradients["a"].tolist() == [3.0, 0.0]
    clip(gradients, 5.0, 1.0)
    assert gradients["a"][0] == pytest.approx(0.6, abs=1e-5)
    assert gradients["b"][0, 0] == pytest.approx(0.8, abs=1e-5)


def test_bfloat16_computes_on_float32_masters() -> None:
    toy = Toy(dtype=torch.bfloat16, split=1)
    before = weights(toy)
    masters = MasterWeights(toy.module, torch.bfloat16)
    assert toy.module[0].weight.dtype == toy.frozen.dtype == torch.bfloat16
    assert toy.module.frequencies.dtype == torch.float32
    assert torch.equal(masters.weights["0.weight"], before["0.weight"])
    for micro_batch in toy.micro_batches(0):
        toy.loss(toy.module, micro_batch, {"rows": 8.0})[0].backward()
    assert toy.module[0].weight.grad is None
    gradient = masters.gradients["0.weight"]
    assert gradient.dtype == torch.float32
    exact = Toy(split=8)
    exact.loss(exact.module, exact.micro_batches(0)[0], {"rows": 8.0})[0].backward()
    torch.testing.assert_close(gradient, exact.module[0].weight.grad, rtol=0.1, atol=0.05)  # bf16 forward, 8 bits
    masters.weights["0.weight"].zero_()
    masters.copy_to_module()
    assert not toy.module[0].weight.any()


def test_the_split_into_micro_batches_does_not_matter(tmp_path: Path) -> None:
    whole, pieces = Toy(split=8), Toy(split=3)
    train(whole, tmp_path / "whole")
    train(pieces, tmp_path / "pieces")
    torch.testing.assert_close(weights(whole), weights(pieces), rtol=1e-4, atol=1e-5)  # fp32 sums in another order
    losses = [curve(tmp_path / name, "loss") for name in ("whole", "pieces")]
    assert losses[0][0] == (1, pytest.approx(losses[1][0][1], rel=1e-6))
    assert [step for step, _ in losses[0]] == list(range(1, 13))
    assert losses[0][-1][1] < losses[0][0][1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(tmp_path: Path, dtype: str) -> None:
    kind = {"dtype": getattr(torch, dtype)}
    whole = Toy(**kind)
    train(whole, tmp_path / "whole", compute_dtype=dtype)
    first = Toy(**kind)
    outcome = train(first, tmp_path / "parts", stop_at=7, compute_dtype=dtype)
    assert not outcome.finished
    assert outcome.state.step == 7
    assert not same(first, whole)
    second = Toy(**kind, seed=5)  # other initial weights: they must not matter
    second.seed = 0
    outcome = train(second, tmp_path / "parts", compute_dtype=dtype)
    assert outcome.finished
    assert outcome.resumed_step == 7
    assert same(second, whole)
    for name in ("loss", "grad_norm", "lr"):
        assert curve(tmp_path / "parts", name) == curve(tmp_path / "whole", name)


def test_the_first_step_is_corrected_as_the_first(tmp_path: Path) -> None:
    toy = Toy(num_steps=1)
    before = weights(toy)
    train(toy, tmp_path / "run", warmup_share=0.0, lr=0.05)
    after = weights(toy)
    # AdamW's bias correction makes its first step the gradient's sign times the learning rate (but for eps).
    for name, _ in toy.module.named_parameters():
        if name != "frozen":
            torch.testing.assert_close(
                (after[name] - before[name]).abs(), torch.full_like(after[name], 0.05), rtol=1e-3, atol=0
            )


def test_lines_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    train(Toy(), tmp_path / "run", every=4, stop_at=6)
    newest = tmp_path / "run/checkpoints/step-000000006"
    (newest / "state.json").unlink()  # as if the process had been killed before it saved
    outcome = train(Toy(), tmp_path / "run", every=4)
    assert outcome.resumed_step == 4
    assert [step for step, _ in curve(tmp_path / "run", "loss")] == list(range(1, 13))


def test_the_best_validation_wins_and_the_last_weights_are_a_candidate(tmp_path: Path) -> None:
    short = Toy(num_steps=6)
    train(short, tmp_path / "short", num_steps=6)
    toy = Toy(tau={4: 3.0, 8: 2.0, 10: 2.5}, num_steps=10)
    outcome = train(toy, tmp_path / "toy", validate_every_steps=4)
    assert (outcome.chosen_step, outcome.state.best_step, outcome.state.best_score) == (4, 4, 3.0)
    four = Toy(num_steps=10)
    train(four, tmp_path / "four", stop_at=4)
    assert same(toy, four)
    assert curve(tmp_path / "toy", "tau") == [(4, 3.0), (8, 2.0), (10, 2.5)]
    last = Toy(tau={4: 3.0, 8: 2.0, 10: 3.5}, num_steps=10)
    assert train(last, tmp_path / "last", validate_every_steps=4).chosen_step == 10


def test_the_best_checkpoint_outlives_the_newest_ones_and_a_resume(tmp_path: Path) -> None:
    tau = {2: 5.0, 4: 1.0, 6: 1.0, 8: 1.0, 10: 1.0, 12: 1.0}
    train(Toy(tau=tau), tmp_path / "run", every=1, stop_at=9, validate_every_steps=2)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-000000002", "step-000000008", "step-000000009"]
    outcome = train(Toy(tau=tau), tmp_path / "run", every=1, validate_every_steps=2)
    assert (outcome.resumed_step, outcome.chosen_step) == (9, 2)


def test_early_stopping_by_acceptance(tmp_path: Path) -> None:
    tau = {2: 1.0, 4: 2.0, 6: 1.9, 8: 1.8, 10: 3.0, 12: 3.0}
    outcome = train(Toy(tau=tau), tmp_path / "run", validate_every_steps=2, patience_validations=2)
    assert outcome.finished
    assert (outcome.state.step, outcome.chosen_step) == (8, 4)


def test_nothing_to_choose_from_is_not_validated(tmp_path: Path) -> None:
    outcome = train(Toy(tau={}), tmp_path / "run", validate_every_steps=100)
    assert outcome.chosen_step == 12
    assert curve(tmp_path / "run", "tau") == []
    assert not list((tmp_path / "run/checkpoints").iterdir())  # a short run writes no checkpoint at all


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    toy = Toy(nan_at=6)
    with refused(TrainingDiverged, "loss", "nan", where="step 7") as caught:
        train(toy, tmp_path / "run", every=4)
    assert "step 4" in str(caught.value.remedy)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(toy).values())
    assert train(Toy(), tmp_path / "run", every=4).resumed_step == 4


def test_metrics_are_lines_with_units(tmp_path: Path) -> None:
    train(Toy(num_steps=1), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {line["name"]: line["unit"] for line in lines} == {
        "loss": "nats",
        "error": "units",
        "grad_norm": "1",
        "lr": "1/step",
        "tokens_per_second": "tokens/s",
    }
    assert all(line["step"] == 1 for line in lines)


def test_config_refuses_what_cannot_be() -> None:
    for wrong in (
        {"lr": 0.0},
        {"warmup_share": 1.0},
        {"betas": (0.9, 1.0)},
        {"unknown": 1},
        {"num_documents_per_step": 0},
    ):
        with pytest.raises(ValidationError):
            Config(**wrong)
    for wrong in ({"num_shards": 2}, {"parallel": "fsdp", "num_processes": 4, "num_shards": 3},
                  {"device": "cpu", "attention": "flex"}, {"parallel": "zero"}):  # fmt: skip
        with pytest.raises(ValidationError):
            TrainingExecution(**wrong)
    assert Config().betas == (0.9, 0.999)
    assert TrainingExecution().num_processes == 1
