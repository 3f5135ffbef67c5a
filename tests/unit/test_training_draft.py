"""Training a real (tiny) draft on real (tiny) states: learns, resumes, splits, validates, is written, refuses."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from deepspec.drafts import ALGORITHMS
from deepspec.errors import DataError, IncompatibleDraft
from deepspec.targets.directory import read_spec
from deepspec.targets.weights import Weights, read_tables
from deepspec.training.checkpoint import Checkpoints
from deepspec.training.draft_objective import objective
from deepspec.training.job import TrainJob
from deepspec.training.loop import Outcome, fit
from deepspec.training.metric_stream import MetricFile, MetricTail
from deepspec.training.objective import Placement
from deepspec.training.optimizer import AdamW, MasterWeights
from tests.fixtures.algorithms import small_config
from tests.fixtures.refused import refused
from tests.fixtures.training import DRAFT, LAYERS, draft_training, write_inputs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def job(inputs: Path, folder: Path, *, budget: int = 60, **settings: Any) -> TrainJob:
    return draft_training(inputs, folder, execution={"micro_batch_tokens": budget}, **settings)


def run(job: TrainJob, folder: Path, stop_at: int | None = None) -> tuple[Outcome, dict[str, torch.Tensor]]:
    folder.mkdir(exist_ok=True)
    job = TrainJob.model_validate_json(job.model_dump_json())
    what = objective(job, Placement(torch.device("cpu"), torch.float32))
    metrics = MetricFile(folder / "metrics.jsonl")
    steps = iter(range(1000))
    outcome = fit(
        what,
        job.train,
        checkpoints=Checkpoints(folder / "checkpoints", keep=2, identity=job.identity),
        metrics=metrics,
        stop=lambda: next(steps) == stop_at,
    )
    metrics.close()
    if outcome.finished:
        what.export(job.out)
    return outcome, {name: weight.clone() for name, weight in what.module.state_dict().items()}


def curve(folder: Path, name: str) -> list[float]:
    return [value for _, n, value, _ in MetricTail(folder / "metrics.jsonl").read() if n == name]


def test_a_draft_learns_and_is_written(inputs: Path, tmp_path: Path) -> None:
    outcome, weights = run(job(inputs, tmp_path, num_epochs=8), tmp_path / "work")
    assert outcome.state.step == 8 * 20 // 5
    losses = curve(tmp_path / "work", "loss")
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    for name in ("loss_ce", "loss_tv", "accept_rate@0", "accept_rate@2", "tau_probabilistic", "lr", "grad_norm"):
        assert len(curve(tmp_path / "work", name)) == len(losses)
    spec = read_spec(inputs / "target")
    loaded = ALGORITHMS["dspark"].load(tmp_path / "draft", spec, config=DRAFT)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, weights[name])
    embedding_VD, head_VD = read_tables(Weights(inputs / "target"), spec, dtype=torch.float32)
    assert torch.equal(weights["embed_tokens.weight"], embedding_VD)
    assert torch.equal(weights["lm_head.weight"], head_VD)


def test_resumed_in_the_middle_it_is_the_same_to_the_bit(inputs: Path, tmp_path: Path) -> None:
    _, whole = run(job(inputs, tmp_path), tmp_path / "whole")
    outcome, _ = run(job(inputs, tmp_path), tmp_path / "parts", stop_at=5)
    assert not outcome.finished
    outcome, parts = run(job(inputs, tmp_path), tmp_path / "parts")
    assert outcome.resumed_step == 5
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert curve(tmp_path / "whole", "loss") == curve(tmp_path / "parts", "loss")


def test_micro_batches_do_not_matter(inputs: Path, tmp_path: Path) -> None:
    run(job(inputs, tmp_path, budget=10_000), tmp_path / "whole")
    run(job(inputs, tmp_path, budget=1), tmp_path / "pieces")
    whole, pieces = (curve(tmp_path / name, "loss") for name in ("whole", "pieces"))
    assert whole == pytest.approx(pieces, rel=1e-4)  # fp32 sums in another order, over 12 steps of AdamW


def test_ranks_share_a_step_without_overlap_or_omission(inputs: Path, tmp_path: Path) -> None:
    def documents(rank: int, world_size: int) -> list[list[int]]:
        placement = Placement(torch.device("cpu"), torch.float32, rank, world_size)
        what = objective(job(inputs, tmp_path, budget=30), placement)
        return [
            [number for batch in what.micro_batches(step) for number in batch.tokens.document_ids] for step in range(4)
        ]

    alone = documents(0, 1)
    assert sorted(sum(alone, [])) == list(range(20))  # noqa: RUF017  four lists
    for step, (one, two) in enumerate(zip(documents(0, 2), documents(1, 2), strict=True)):
        assert sorted(one + two) == sorted(alone[step])
        assert one
        assert two


def test_validation_decodes_for_real_and_chooses(inputs: Path, tmp_path: Path) -> None:
    train = {"validate_every_steps": 5, "num_validation_prompts": 3, "validation_max_new_tokens": 12}
    outcome, _ = run(job(inputs, tmp_path, **train), tmp_path / "work")
    taus = curve(tmp_path / "work", "tau")
    assert len(taus) == 3  # steps 5, 10 and the last one, 12
    assert all(1.0 <= tau <= DRAFT.num_draft_tokens + 1 for tau in taus)
    assert outcome.state.best_score == max(taus)
    assert outcome.chosen_step == [5, 10, 12][taus.index(max(taus))]
    proxies, gaps = (curve(tmp_path / "work", name) for name in ("validation_tau_probabilistic", "tau_gap"))
    assert gaps == [proxy - tau for proxy, tau in zip(proxies, taus, strict=True)]
    assert all(1.0 <= proxy <= DRAFT.num_draft_tokens + 1 for proxy in proxies)
    losses = curve(tmp_path / "work", "validation_loss")
    assert len(losses) == 3
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_live_target_trains_as_captured_states_do(inputs: Path, tmp_path: Path, name: str) -> None:
    draft = small_config(ALGORITHMS[name], target_layer_ids=LAYERS, mask_token_id=60)
    run(job(inputs, tmp_path, draft=draft), tmp_path / "offline")
    run(job(inputs, tmp_path, draft=draft, captured=False), tmp_path / "online")
    losses = [curve(tmp_path / mode, "loss") for mode in ("offline", "online")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_frozen_tensors_are_held_once_and_without_gradient_or_moments(
    inputs: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    """Everything alive that a training of a live target holds, storage by storage."""
    draft = small_config(ALGORITHMS[name], target_layer_ids=LAYERS, mask_token_id=60)
    what = job(inputs, tmp_path, draft=draft, captured=False, compute_dtype=dtype)
    what = what.model_copy(update={"config": {**what.config, "target_dtype": dtype}})
    made = objective(what, Placement(torch.device("cpu"), getattr(torch, dtype)))
    masters = MasterWeights(made.module, getattr(torch, dtype))
    optimizer = AdamW(masters.weights, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    micro_batch = made.micro_batches(0)[0]
    loss, _ = made.loss(made.module, micro_batch, made.totals(micro_batch))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step(masters.gradients, number=1, lr=1e-3)
    del loss

    target = made._target()
    tables = [made.module.embed_tokens.weight, made.module.lm_head.weight]
    assert {table.data_ptr() for table in tables} == {
        target.embedding_weight.data_ptr(), target.head_weight.data_ptr()
    }  # fmt: skip
    trained = sum(weight.numel() for weight in made.module.parameters() if weight.requires_grad)
    held = [
        *made.module.parameters(),
        *(weight.grad for weight in made.module.parameters() if weight.grad is not None),
        *(target.embedding_weight, target.head_weight),
        *(tensor for part in (masters, optimizer) for tensors in vars(part).values()
          if isinstance(tensors, dict) for tensor in tensors.values()),
    ]  # fmt: skip
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    width = getattr(torch, dtype).itemsize
    # Weight, gradient and two moments in fp32; what computes in bfloat16 has its weights in it, too.
    per_trained = 4 * 4 + (width if dtype == "bfloat16" else 0)
    distinct = {table.untyped_storage().data_ptr(): table.numel() * width for table in tables}
    assert sum(storages.values()) == trained * per_trained + sum(distinct.values())


def test_a_training_starts_from_an_earlier_draft(inputs: Path, tmp_path: Path) -> None:
    _, first = run(job(inputs, tmp_path / "first", num_epochs=4), tmp_path / "first-work")
    earlier = tmp_path / "first" / "draft"
    fresh = objective(job(inputs, tmp_path), Placement(torch.device("cpu"), torch.float32)).module.state_dict()
    warm = objective(job(inputs, tmp_path, init=earlier), Placement(torch.device("cpu"), torch.float32))
    for name, weight in warm.module.state_dict().items():
        assert torch.equal(weight, first[name]), name
        assert torch.equal(weight, fresh[name]) == (name in ("embed_tokens.weight", "lm_head.weight")), name
    other = DRAFT.model_copy(update={"markov_rank": 4})
    with refused(IncompatibleDraft, "markov_rank", "8", "4", where="config.json"):
        objective(job(inputs, tmp_path, draft=other, init=earlier), Placement(torch.device("cpu"), torch.float32))


def test_states_of_other_layers_are_refused(inputs: Path, tmp_path: Path) -> None:
    other = DRAFT.model_copy(update={"target_layer_ids": (0, 2)})
    with refused(IncompatibleDraft, "[0, 1, 2]", "[0, 2]", where="draft.target_layer_ids"):
        run(job(inputs, tmp_path, draft=other), tmp_path / "work")


def test_a_validation_without_prompts_is_refused(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "validation.parquet"
    pq.write_table(pq.read_table(inputs / "validation.parquet").slice(0, 0), path, write_page_checksum=True)
    wrong = job(inputs, tmp_path, validate_every_steps=2)
    wrong = wrong.model_copy(update={"config": {**wrong.config, "validation": str(path)}})
    with refused(DataError, where="validation.parquet"):
        run(wrong, tmp_path / "work")
