"""The target's objective: order, losses, and what is written; and one training in a process of its own."""

import json
import math

import pytest
import torch

from deepspec.demo.config import Config, Corpus, TargetShape, Tokenizer
from deepspec.demo.corpus import HELD_OUT, KINDS, write_corpus
from deepspec.demo.target import TargetObjective, data_order, encode_rows, write_target
from deepspec.demo.tokenizer import write_tokenizer
from deepspec.errors import DataError
from deepspec.targets import parameter_counts
from deepspec.targets.model import Target
from deepspec.training.checkpoint import Checkpoints
from deepspec.training.config import Config as TrainConfig
from deepspec.training.config import TrainingExecution
from deepspec.training.loop import fit
from deepspec.training.metric_stream import NoMetrics
from deepspec.training.objective import Placement
from tests.fixtures.refused import refused

SMALL = Config(
    corpus=Corpus(num_conversations=6, num_target_conversations=24, num_benchmark_prompts=3),
    tokenizer=Tokenizer(vocab_size=320),
    target=TargetShape(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=384,
    ),
    train=TrainConfig(lr=1e-2, num_documents_per_step=4, num_epochs=2, warmup_share=0.1, validate_every_steps=None),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_corpus(SMALL, folder / "corpus")
    write_tokenizer(SMALL, folder / "corpus", folder / "tokenizer")
    return folder


def make(inputs, config=SMALL, *, rank=0, world_size=1, micro_batch_tokens=16384) -> TargetObjective:
    placement = Placement(torch.device("cpu"), torch.float32, rank, world_size)
    folders = inputs / "corpus", inputs / "tokenizer"
    return TargetObjective(config, *folders, placement, micro_batch_tokens=micro_batch_tokens)


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own():
    lengths = [(7 * row) % 50 + 10 for row in range(201)]
    orders = [data_order(lengths, seed=1, epoch=epoch, batch=4) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert sorted(row for rows in order for row in rows) == list(range(201))
        assert len(order) == math.ceil(201 / 4)
    # Rows of a batch are alike: padding them to the longest costs little.
    padded = sum(max(lengths[row] for row in rows) * len(rows) for rows in orders[0])
    assert padded < 1.1 * sum(lengths)


def gradients(objective, step, parts_of):
    """Gradient of one optimizer step from the micro-batches of several objectives with the same weights."""
    micro_batches = [batch for part in parts_of for batch in part.micro_batches(step)]
    totals = {"weight": sum(objective.totals(batch)["weight"] for batch in micro_batches)}
    objective.module.zero_grad()
    for batch in micro_batches:
        objective.loss(objective.module, batch, totals)[0].backward()
    return {name: weight.grad.clone() for name, weight in objective.module.named_parameters()}


def test_a_step_does_not_depend_on_how_it_is_split(inputs):
    whole = make(inputs)
    expected = gradients(whole, 2, [whole])
    small_parts = make(inputs, micro_batch_tokens=150)
    assert len(small_parts.micro_batches(2)) > 1
    ranks = [make(inputs, rank=rank, world_size=3) for rank in range(3)]
    assert [sum(len(batch.numbers) for batch in rank.micro_batches(2)) for rank in ranks] == [2, 1, 1]
    for parts in ([small_parts], ranks):
        found = gradients(whole, 2, parts)
        for name, gradient in expected.items():
            # fp32 sums in another order, and another padding.
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_loss_is_the_weighted_mean_over_predicted_tokens(inputs):
    config = SMALL.model_copy(update={"target": SMALL.target.model_copy(update={"prompt_loss_weight": 0.25})})
    target = make(inputs, config)
    (batch,) = target.micro_batches(0)
    loss, sums = target.loss(target.module, batch, target.totals(batch))
    weighted, weights, answers, num_answers = 0.0, 0.0, 0.0, 0
    for number in batch.numbers:
        row = target._rows[number]
        ids = torch.tensor(row.input_ids)
        with torch.no_grad():
            log_TV = target.module.lm_head(target.module(ids[None])[0]).log_softmax(-1)
        for place in range(1, len(ids)):
            nats = -float(log_TV[place - 1, ids[place]])
            in_answer = place >= row.num_prompt_tokens
            weight = 1.0 if in_answer else 0.25
            weighted, weights = weighted + weight * nats, weights + weight
            answers, num_answers = answers + in_answer * nats, num_answers + in_answer
    assert target.totals(batch)["weight"] == pytest.approx(weights)
    assert loss.item() == pytest.approx(weighted / weights, rel=1e-4)
    assert sums["answer_loss"].tolist() == [pytest.approx(answers, rel=1e-4), num_answers]


def test_held_out_entropy_of_a_uniform_distribution_is_log_of_its_size(inputs):
    target = make(inputs)
    with torch.no_grad():
        target.module.lm_head.weight.zero_()
    result = target.held_out()
    answers = encode_rows(inputs / "corpus" / HELD_OUT, inputs / "tokenizer")
    assert list(result) == list(KINDS)
    assert sum(numbers["tokens"] for numbers in result.values()) == sum(
        len(row.input_ids) - row.num_prompt_tokens for row in answers
    )
    for numbers in result.values():
        assert numbers["entropy"] == pytest.approx(math.log(320), rel=1e-5)
        assert numbers["loss"] == pytest.approx(math.log(320), rel=1e-5)
    assert target.validate(0)["held_out_loss"] == pytest.approx(math.log(320), rel=1e-5)


def test_learns_and_leaves_a_directory_that_loads(inputs, tmp_path):
    target = make(inputs)
    before = target.validate(0)["held_out_loss"]
    outcome = fit(
        target, SMALL.train, checkpoints=Checkpoints(tmp_path / "work", keep=1, identity="test"), metrics=NoMetrics()
    )
    assert outcome.state.step == target.num_steps == 12
    (tmp_path / "out").mkdir()
    exported = target.export(tmp_path / "out")
    loaded = Target.load(tmp_path / "out")
    assert json.dumps(exported)
    assert target.validate(0)["held_out_loss"] < 0.9 * before
    assert exported["num_parameters"] == parameter_counts(loaded.spec)["total"]
    assert loaded.spec.max_position_embeddings == 384
    assert loaded.eos_token_ids == (2,)
    row = encode_rows(inputs / "corpus" / HELD_OUT, inputs / "tokenizer")[0]
    ids_BT = torch.tensor([row.input_ids])
    with torch.inference_mode():
        ours = target.module(ids_BT)
        theirs = loaded.forward(ids_BT).final_BQD
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rows_longer_than_the_target_are_refused(inputs):
    short = SMALL.target.model_copy(update={"max_position_embeddings": 64})
    with refused(DataError, "64 positions", where="target.max_position_embeddings"):
        make(inputs, SMALL.model_copy(update={"target": short}))


def test_write_target_trains_in_a_process_of_its_own(inputs, tmp_path):
    seen = []
    result = write_target(
        SMALL,
        inputs / "corpus",
        inputs / "tokenizer",
        tmp_path / "out",
        tmp_path / "work",
        TrainingExecution(device="cpu", num_threads=1),
        lambda step, name, value, unit: seen.append((step, name, value, unit)),
    )
    assert result["steps"] == 12
    assert set(result["held_out"]) == set(KINDS)
    losses = [value for _, name, value, unit in seen if name == "answer_loss" and unit == "nats"]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert Target.load(tmp_path / "out").spec.num_layers == 2
