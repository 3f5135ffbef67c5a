"""What a run will take: the numbers' contract, the advice, the room, the budget, and lengths from a sample."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.config import SourceEntry
from deepspec.data.tokens.length_sample import ASSUMED_ANSWER_TOKENS, LengthSample, sample_lengths
from deepspec.errors import BudgetExceeded, RecipeError, StoreFull
from deepspec.planning.before_run import estimate_recipe, known_lengths, room_of, without_memory
from deepspec.planning.budget import refuse
from deepspec.planning.estimate import Room, estimate, spec_of
from deepspec.planning.gpus import GPUS
from deepspec.planning.memory import largest_micro_batch, memory
from deepspec.planning.results import Estimate, RoomEstimate
from deepspec.recipe import Recipe, flat, load_recipe
from deepspec.states.capture.writer import RunTarget, write_states
from deepspec.states.config import Config as StatesConfig
from deepspec.states.format.codec_sizes import WIDTHS, files_bytes
from deepspec.targets import parameter_counts
from deepspec.targets.capture import capture, capture_together
from deepspec.targets.model import Target
from deepspec.targets.qwen3 import FAMILY
from deepspec.training.memory.tensor_counter import LiveBytes
from tasks.runtime.records import StageRecord
from tests.fixtures.chat_templates import readable_tokenizer
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_qwen3
from tests.fixtures.tokenizers import tiny_tokenizer
from tests.fixtures.training import write_inputs

TB = 10**12
ROOM = Room("/store", 100 * TB, "/home", 100 * TB, one_disk=True, staging="/store", staging_free_bytes=100 * TB)
WOULD_RUN = [StageRecord(name, "would_run") for name in ("states", "train")]

JSON_NAMES = (
    "recipe target conversations mean_tokens tokens states.codec states.captured_tokens states.supervised_tokens"
    " states.mode recommendation.mode recommendation.reason flops.capture flops.training"
    " room.store.place room.store.needed_bytes room.store.free_bytes room.store.enough"
    " room.home.place room.home.needed_bytes room.home.free_bytes room.home.enough"
    " gpu.name gpu.num gpu.assumed_utilisation gpu.hours.capture gpu.hours.training gpu.gpu_hours gpu.cost gpu.currency"
    " memory.device memory.training_bytes memory.training.weights_gradients_moments memory.training.tables"
    " memory.training.target memory.training.largest_moment memory.micro_batch.documents memory.micro_batch.tokens"
    " memory.capture_bytes memory.fits.gpu_bytes memory.fits.training memory.fits.capture memory.fits.lower"
    " gate.prompts gate.gain gate.more_prompts gate.more_gain gate.measured wanted_tau_gain"
)


def large(*overrides: str) -> Recipe:
    return load_recipe("dspark-qwen3-4b", overrides)


def estimated(recipe: Recipe, room: Room = ROOM, **arguments: Any) -> Estimate:
    lengths = LengthSample.uniform(recipe.data, 950)
    return estimate(recipe, conversations=1_300_000, lengths=lengths, room=room, **arguments)


def room_in(estimate: Estimate) -> RoomEstimate:
    assert estimate.room is not None
    return estimate.room


def test_the_reference_layout_takes_38_tb_and_ours_a_third() -> None:
    found = estimated(large()).states.bytes_by_layout
    assert found["reference_bf16"] == 1_235_000_000 * 6 * 2560 * 2
    assert round(found["reference_bf16"] / TB) == 38
    assert all(isinstance(size, int) for size in found.values())
    assert found["int4"] < 0.3 * found["reference_bf16"]


@pytest.mark.parametrize(
    ("overrides", "room", "mode", "words"),
    [
        ([], ROOM, "online", "more than states.max_bytes (1.0 TB)"),
        (["states.max_bytes=20000000000000"], ROOM, "online", "as int8 they would fit"),
        (["states.max_bytes=50000000000000"], ROOM, "offline", "a live target would run 10 times instead of once"),
        (
            ["states.max_bytes=50000000000000"],
            replace(ROOM, store_free_bytes=30 * TB),
            "online",
            "can be used of the store's disk",
        ),
        (["states.max_bytes=50000000000000", "train.num_epochs=1"], ROOM, "online", "trained on once"),
        (
            ["states.max_bytes=50000000000000"],
            replace(ROOM, store_free_bytes=None),  # object storage: not known
            "offline",
            "instead of once",
        ),
    ],
)
def test_the_advice_follows_from_the_numbers(overrides: list[str], room: Room, mode: str, words: str) -> None:
    found = estimated(large(*overrides), room).recommendation
    assert found.mode == mode
    assert words in found.reason


def test_live_states_cost_the_targets_forward_in_every_epoch_and_no_disk() -> None:
    offline, online = (estimated(large(f"states.mode={mode}")) for mode in ("offline", "online"))
    assert set(offline.flops) == {"capture", "training"}
    expected = offline.flops["training"] + 10 * offline.flops["capture"]
    assert online.flops["training"] == pytest.approx(expected)
    assert room_in(online).store.needed_bytes < TB < room_in(offline).store.needed_bytes


def test_room_says_where_it_is_short_and_where_that_is_not_known() -> None:
    recipe = large("states.mode=offline")
    short = room_in(estimated(recipe, replace(ROOM, store_free_bytes=TB)))
    assert (short.store.enough, short.home.enough) == (False, True)
    unknown = room_in(estimated(recipe, replace(ROOM, store="s3://b/p", store_free_bytes=None, one_disk=False)))
    assert (unknown.store.enough, unknown.home.enough) == (None, True)


def test_hours_and_cost_of_named_gpus_and_no_others() -> None:
    found = [estimated(large(), gpu=gpu, num_gpus=8, price_per_gpu_hour=3.0).gpu for gpu in ("H100", "h200", "b200")]
    hours = [gpu.gpu_hours for gpu in found if gpu is not None]
    assert hours[0] == hours[1] > 2 * hours[2]
    with refused(RecipeError, "h1000") as caught:
        estimated(large(), gpu="h1000")
    assert all(gpu in str(caught.value.remedy) for gpu in GPUS)


def test_json_names_of_an_estimate(small: Recipe) -> None:
    """Scripts read them: a field may have another name in Python only."""
    taken = memory(small, conversations=200, lengths=LengthSample((100,), (70,), 1.0), device="cuda", gpu="l4")
    found = estimated(large("states.mode=offline"), gpu="l4").model_copy(update={"memory": taken})
    names = [name for name in flat(found.to_json()) if not name.startswith("states.bytes.")]
    assert " ".join(names) == JSON_NAMES
    assert "memory" not in estimated(large()).to_json()


def test_the_table_finds_the_longer_name_first() -> None:
    names = list(GPUS)
    for number, name in enumerate(names):
        assert not any(other in name for other in names[:number]), name


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe whose target and conversations are there."""
    folder = tmp_path_factory.mktemp("inputs")
    target = tiny_qwen3(folder / "target", vocab_size=400)
    tiny_tokenizer(target)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n} " * 5},
                {"role": "assistant", "content": "yes " * (n % 40 + 5)},
            ]
        }
        for n in range(200)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [f"target.path={target}", f"data.source={folder / 'rows.jsonl'}", "inputs=null"]
    return load_recipe("tiny", [*places, "data.responses.max_new_tokens=60"])


def renderer(recipe: Recipe) -> Renderer:
    return Renderer(load_tokenizer(recipe.target.path), FAMILY.chat)


def test_sampled_lengths_are_those_of_the_rows_that_are_trained_on(small: Recipe) -> None:
    found = sample_lengths(small.data, renderer(small))
    assert found is not None
    assert 0.6 < found.train_share < 0.85
    assert len(found.tokens) == round(200 * found.train_share)
    assert max(found.supervised) == 60, "no answer is longer than the limit"
    assert min(found.supervised) < 30
    kept = sample_lengths(small.data.model_copy(update={"responses": _keeping(small)}), renderer(small))
    assert kept is not None
    assert max(kept.supervised) > 60


def _keeping(recipe: Recipe) -> Any:
    return recipe.data.responses.model_copy(update={"mode": "keep"})


def test_a_large_source_is_sampled_without_being_read(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample_lengths(small.data, renderer(small))
    monkeypatch.setattr("deepspec.data.tokens.length_sample._WHOLE_BYTES", 0)
    sampled = sample_lengths(small.data, renderer(small))
    assert whole is not None
    assert sampled is not None
    assert sampled.train_share == pytest.approx(1 - 0.28)
    assert sampled.mean_tokens == pytest.approx(whole.mean_tokens, rel=0.1)
    assert sample_lengths(small.data, renderer(small)) == sampled, "the sample is seeded"


def test_prompts_without_answers_get_assumed_ones(small: Recipe, tmp_path: Path) -> None:
    rows = [json.dumps({"turns": [f"How many are {n}?"]}) for n in range(20)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    source = {
        "source": (SourceEntry(path=str(tmp_path / "prompts.jsonl")),),
        "max_length_tokens": 4096,
        "responses": _long(small),
    }
    found = sample_lengths(small.data.model_copy(update=source), renderer(small))
    assert found is not None
    assert set(found.supervised) == {ASSUMED_ANSWER_TOKENS}


@pytest.mark.parametrize("answered", [True, False])
def test_tools_and_thoughts_count_where_a_run_reads_them(small: Recipe, tmp_path: Path, answered: bool) -> None:
    tokenizer = load_tokenizer(readable_tokenizer(tmp_path / "tokenizer", "qwen3", ["a"]))
    add = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    answer = {"role": "assistant", "content": "Four is what they make.", "reasoning_content": "Easy, easy."}
    question = {"role": "user", "content": "How much are 2 and 2?"}

    def tokens(thinking: str, **fields: Any) -> list[int]:
        row = json.dumps({"messages": [question, answer] if answered else [question], **fields})
        (tmp_path / "rows.jsonl").write_text("\n".join([row] * 9))
        changed = {
            "source": (SourceEntry(path=str(tmp_path / "rows.jsonl")),),
            "thinking": thinking,
            "max_length_tokens": 4096,
        }
        splits = small.data.splits.model_copy(update=dict.fromkeys(("validation", "calibration", "gate"), 0.0))
        config = small.data.model_copy(update={**changed, "splits": splits, "responses": _keeping(small)})
        found = sample_lengths(config, Renderer(tokenizer, FAMILY.chat, thinking=config.thinking))
        assert found is not None
        return [round(found.mean_tokens), round(found.mean_tokens * found.supervised_share)]

    plain, tools = tokens("off"), tokens("off", tools=[add])
    assert tools[0] > plain[0] + 10
    assert tools[1] == plain[1]
    if answered:
        assert tokens("keep")[1] > plain[1]


def _long(recipe: Recipe) -> Any:
    return recipe.data.responses.model_copy(update={"max_new_tokens": 2000})


def test_the_largest_micro_batch_is_packed_as_a_training_packs() -> None:
    lengths = LengthSample((100, 200, 300), (50, 100, 150), 1.0)
    recipe = load_recipe("tiny", ["train.num_documents_per_step=8", "run.micro_batch_tokens=1000"])
    tokens = sum(document.tokens for document in largest_micro_batch(recipe, 1000, lengths))
    assert tokens == 1000
    alone = load_recipe("tiny", ["run.micro_batch_tokens=250"])
    assert [one.tokens for one in largest_micro_batch(alone, 1000, lengths)] == [300]


def test_memory_says_what_it_consists_of_and_whether_it_fits(small: Recipe) -> None:
    lengths = LengthSample((100,), (70,), 1.0)
    found = memory(small, conversations=200, lengths=lengths, device="cuda", gpu="l4")
    assert found.training_bytes == sum(found.training.to_json().values())
    assert found.fits is not None
    assert found.fits.gpu_bytes == round(24 * 2**30 * 0.95)
    assert (found.fits.training, found.fits.capture) == (True, True)
    assert found.fits.lower == ("run.micro_batch_tokens", "draft.num_anchors")
    narrow = memory(
        small.model_copy(update={"train": small.train.model_copy(update={"validate_every_steps": 1})}),
        conversations=200,
        lengths=lengths,
        device="cuda",
    )
    assert narrow.training.target_bytes > 0, "a validation loads the target"


def test_a_capture_takes_what_is_estimated(small: Recipe) -> None:
    layers = (-1, 0)
    target = Target.load(small.target.path, layer_ids=layers)
    recipe = small.model_copy(update={"run": small.run.model_copy(update={"capture_batch_tokens": 1024})})
    weights = parameter_counts(target.spec)["total"] * 4
    capture(target, [[0]])  # the table of rotations stays
    for device, captures in (("cpu", capture), ("cuda", capture_together)):
        found = memory(recipe, conversations=200, lengths=LengthSample((64,), (40,), 1.0), device=device).capture_bytes
        with LiveBytes() as live:
            captures(target, [torch.zeros(64, dtype=torch.int64)] * 16)
        assert found - weights == pytest.approx(live.peak, rel=0.1), device


@pytest.mark.parametrize("codec", WIDTHS)
def test_files_take_what_is_estimated(tmp_path: Path, codec: str) -> None:
    inputs = write_inputs(tmp_path)
    target = Target.load(inputs / "target", layer_ids=(0, 1, 2))
    (tmp_path / "out").mkdir()
    config = StatesConfig.model_validate({"codec": codec})
    counts = write_states(inputs / "train.parquet", tmp_path / "out", origin=RunTarget(target), config=config)
    shard = sum(path.stat().st_size for path in (tmp_path / "out").glob("states-*.parquet"))
    found = files_bytes(codec, 3, 32, tokens=counts["tokens"], supervised_tokens=counts["supervised_tokens"])
    # Of so few tokens, the file's own description (some 4 kB) is the larger part of the difference.
    assert found < shard < 1.1 * found + 6000


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["budget.max_states_bytes=1000"], "budget.max_states_bytes"),
        (["run.gpu=h100", "budget.max_gpu_hours=1e-12"], "budget.max_gpu_hours"),
        (["run.gpu=h100", "run.price_per_gpu_hour=1e15", "budget.max_cost=1"], "budget.max_cost"),
    ],
)
def test_over_budget_is_refused_naming_the_limit(
    small: Recipe, tmp_path: Path, overrides: list[str], field: str
) -> None:
    content = small.model_dump(mode="json")
    sections = {"run": dict(content["run"]), "budget": dict(content["budget"])}
    for override in overrides:
        section, _, rest = override.partition(".")
        name, _, value = rest.partition("=")
        sections[section][name] = value
    recipe = Recipe.model_validate({**content, **sections})
    with pytest.raises(BudgetExceeded) as caught:
        refuse(recipe, tmp_path, WOULD_RUN)
    assert caught.value.where == field
    assert caught.value.exit_code == 2
    refuse(recipe, tmp_path, [StageRecord(name, "hit") for name in ("states", "train")])
    refuse(small, tmp_path, WOULD_RUN)


def test_the_budget_counts_the_hours_of_all_gpus(small: Recipe, tmp_path: Path) -> None:
    content = small.model_dump(mode="json")
    run = {**content["run"], "gpu": "h100", "num_processes": 4}
    budgets = [{"max_gpu_hours": share * _gpu_hours(content, run, tmp_path)} for share in (0.9, 1.1)]
    too_small, enough = (Recipe.model_validate({**content, "run": run, "budget": budget}) for budget in budgets)
    with refused(BudgetExceeded, where="budget.max_gpu_hours"):
        refuse(too_small, tmp_path, WOULD_RUN)
    refuse(enough, tmp_path, WOULD_RUN)


def _gpu_hours(content: dict[str, Any], run: dict[str, Any], home: Path) -> float:
    """Hours that one GPU takes, as estimated: of all together as many."""
    one = Recipe.model_validate({**content, "run": {**run, "num_processes": 1}})
    gpu = without_memory(one, *known_lengths(one, None, None), room_of(one, home)).gpu
    assert gpu is not None
    return sum(gpu.hours.values())


def test_a_disk_without_room_is_refused(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with refused(StoreFull, "1.0 kB"):
        refuse(small, tmp_path, WOULD_RUN)
    refuse(small, tmp_path, [StageRecord("states", "hit"), StageRecord("train", "would_run")])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["budget.max_gpu_hours=1"], ["budget.max_gpu_hours", "run.gpu:"]),
        (["budget.max_cost=1", "run.gpu=h100"], ["budget.max_cost", "run.price_per_gpu_hour"]),
    ],
)
def test_a_budget_that_cannot_be_reckoned_is_no_recipe(overrides: list[str], named: list[str]) -> None:
    with refused(RecipeError, *named):
        large(*overrides)


def test_the_plan_takes_gpus_from_the_recipe_or_the_command_line(tmp_path: Path) -> None:
    overrides = ["run.gpu=h100", "run.num_processes=4", "run.price_per_gpu_hour=2"]
    said = estimate_recipe("dspark-qwen3-4b", overrides, 100, 950.0, None, None, None, home=tmp_path)
    asked = estimate_recipe("dspark-qwen3-4b", [], 100, 950.0, "h100", 4, 2.0, home=tmp_path)
    assert said.gpu == asked.gpu
    assert said.gpu is not None
    assert said.gpu.num_gpus == 4
    assert said.memory is not None
    assert said.memory.device == "cuda"


@pytest.mark.parametrize("name", ["eagle3-gemma4-12b", "dflash-gemma4-12b", "dspark_gemma4_12b_block7"])
def test_a_published_target_is_planned_by_name(tmp_path: Path, name: str) -> None:
    found = estimate_recipe(name, [], 100, 950.0, "h200", 8, None, home=tmp_path)
    assert found.states.bytes_by_layout["reference_bf16"] == 95_000 * 6 * 3840 * 2
    assert found.memory is not None
    assert found.memory.capture_bytes > 2 * 11_907_350_320
    assert found.memory.fits is not None
    assert found.memory.fits.capture


def test_layers_with_a_window_attend_to_no_more() -> None:
    recipe = load_recipe("dspark-gemma4-12b")

    def attention(length: int) -> float:
        lengths = LengthSample.uniform(recipe.data.model_copy(update={"max_length_tokens": length}), length)
        tokens = 10 * lengths.train_share * lengths.mean_tokens
        weights = 2.0 * parameter_counts(spec_of(recipe))["layers"] * tokens
        return (estimate(recipe, conversations=10, lengths=lengths).flops["capture"] - weights) / tokens

    # Twice as long: the 8 full layers (head dim 512) attend to twice as much, the 40 others (256) to their window.
    full, windowed = 4 * 16 * 512 * 8, 4 * 16 * 256 * 40
    assert attention(512) == pytest.approx((full + windowed) * 256)
    assert attention(8192) == pytest.approx(full * 4096 + windowed * (1024 - 64))


@pytest.mark.parametrize(
    ("name", "engines"), [("eagle3-qwen3-4b", ["sglang"]), ("dspark-gemma4-12b", ["sglang"]), ("dflash-qwen3-8b", [])]
)
def test_an_engine_that_loads_no_such_draft_is_said_before_anything_is_trained(name: str, engines: list[str]) -> None:
    recipe = load_recipe(name, ["gates.engines=[vllm, sglang]"])
    found = estimated(recipe).not_loaded
    assert found is not None
    assert list(found) == engines
    assert all("vllm" in reason for reason in found.values())
    assert "not_loaded" not in estimated(load_recipe(name)).to_json()
