"""Draft directories: what is written, and everything that must not be read."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.data.chat.tokenizer import tokenizer_identity
from deepspec.drafts import ALGORITHMS, algorithm_of
from deepspec.errors import IncompatibleDraft
from deepspec.targets.directory import read_spec
from tests.fixtures.published import split
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_qwen3
from tests.fixtures.tokenizers import CHAT_TEMPLATE, tiny_tokenizer

ALGORITHM = ALGORITHMS["dspark"]
CONFIG = ALGORITHM.Config(
    num_draft_tokens=3, num_layers=1, target_layer_ids=(0, 2), mask_token_id=60, markov_rank=4, num_anchors=9
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return read_spec(tiny_qwen3(tmp_path_factory.mktemp("target") / "tiny"))


@pytest.fixture
def draft(spec):
    draft = ALGORITHM.build(CONFIG, spec)
    tables = torch.randn(2, 61, 32, generator=torch.Generator().manual_seed(0))
    ALGORITHM.initialize(draft, tables[0], tables[1], 1)
    return draft


@pytest.fixture
def directory(draft, spec, tmp_path):
    ALGORITHM.save(draft, tmp_path / "draft", CONFIG, spec)
    return tmp_path / "draft"


def change_config(directory, **fields):
    file = directory / "config.json"
    config = json.loads(file.read_text())
    for field, value in fields.items():
        if value is None:
            del config[field]
        else:
            config[field] = value
    file.write_text(json.dumps(config))


def change_tensors(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_weights_are_nan_until_they_are_set(spec):
    draft = ALGORITHM.build(CONFIG, spec)
    assert all(torch.isnan(weight).all() for weight in draft.parameters())


def test_initialisation_follows_the_target(draft, spec):
    weights = dict(draft.named_parameters())
    frozen = {name for name, weight in weights.items() if not weight.requires_grad}
    assert frozen == {"embed_tokens.weight", "lm_head.weight"}
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif name.endswith(".bias"):
            assert torch.equal(weight, torch.zeros_like(weight)), name
    assert weights["fc.weight"].std().item() == pytest.approx(spec.initializer_range, rel=0.1)
    again = ALGORITHM.build(CONFIG, spec)
    ALGORITHM.initialize(again, weights["embed_tokens.weight"], weights["lm_head.weight"], 1)
    for name, weight in again.named_parameters():
        assert torch.equal(weight, weights[name]), name
    ALGORITHM.initialize(again, weights["embed_tokens.weight"], weights["lm_head.weight"], 2)
    assert not torch.equal(again.fc.weight, weights["fc.weight"])


def test_what_is_saved_is_what_is_loaded(draft, directory, spec):
    loaded = ALGORITHM.load(directory, spec, config=CONFIG)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, draft.state_dict()[name]), name
    assert algorithm_of(directory).name == "dspark"
    assert ALGORITHM.read_config(directory) == CONFIG
    assert not loaded.lm_head.weight.requires_grad


def test_equal_drafts_have_equal_bytes(draft, directory, spec, tmp_path):
    ALGORITHM.save(ALGORITHM.load(directory, spec), tmp_path / "again", CONFIG, spec)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes()


def test_weights_in_several_files_are_read_through_their_index(draft, directory, spec):
    split(directory)
    loaded = ALGORITHM.load(directory, spec)
    assert all(torch.equal(weight, draft.state_dict()[name]) for name, weight in loaded.state_dict().items())
    part = directory / "model-00002-of-00003.safetensors"
    tensors = load_file(part)
    save_file({name: tensor * torch.nan for name, tensor in tensors.items()}, part)
    with refused(IncompatibleDraft, min(tensors), "not finite", where="draft/model.safetensors.index.json"):
        ALGORITHM.load(directory, spec)
    part.unlink()
    with refused(IncompatibleDraft, part.name, "missing", where="draft/model.safetensors.index.json"):
        ALGORITHM.load(directory, spec)


def test_fields_of_the_public_layout(directory):
    config = json.loads((directory / "config.json").read_text())
    expected = {
        "architectures": ["Qwen3DSparkModel"],
        "model_type": "qwen3",
        "block_size": 3,
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "target_layer_ids": [0, 2],
        "num_target_layers": 4,
        "mask_token_id": 60,
        "num_anchors": 9,
        "markov_rank": 4,
        "markov_head_type": "vanilla",
        "enable_confidence_head": True,
        "confidence_head_with_markov": True,
        "tie_word_embeddings": False,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "dtype": "float32",
    }
    assert {field: config[field] for field in expected} == expected


def qwen3_4b(tmp_path):
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_spec(tmp_path)


def test_tensors_of_the_public_checkpoint(tmp_path):
    spec = qwen3_4b(tmp_path)
    config = ALGORITHM.Config()
    assert ALGORITHM.layer_ids(config, spec) == (1, 9, 17, 25, 33)
    with torch.device("meta"):
        draft = ALGORITHM.build(config, spec)
    assert draft.mask_token_id == 151669
    shapes = {name: list(weight.shape) for name, weight in draft.state_dict().items()}
    assert len(shapes) == 64
    assert sum(weight.numel() for weight in draft.parameters()) == pytest.approx(1393.1e6, abs=5e4)
    layer = {name.removeprefix("layers.4."): shape for name, shape in shapes.items() if name.startswith("layers.4.")}
    assert layer == {
        "self_attn.q_proj.weight": [4096, 2560],
        "self_attn.k_proj.weight": [1024, 2560],
        "self_attn.v_proj.weight": [1024, 2560],
        "self_attn.o_proj.weight": [2560, 4096],
        "self_attn.q_norm.weight": [128],
        "self_attn.k_norm.weight": [128],
        "mlp.gate_proj.weight": [9728, 2560],
        "mlp.up_proj.weight": [9728, 2560],
        "mlp.down_proj.weight": [2560, 9728],
        "input_layernorm.weight": [2560],
        "post_attention_layernorm.weight": [2560],
    }
    assert {name: shape for name, shape in shapes.items() if not name.startswith("layers.")} == {
        "embed_tokens.weight": [151936, 2560],
        "lm_head.weight": [151936, 2560],
        "fc.weight": [2560, 12800],
        "hidden_norm.weight": [2560],
        "norm.weight": [2560],
        "markov_head.markov_w1.weight": [151936, 256],
        "markov_head.markov_w2.weight": [151936, 256],
        "confidence_head.proj.weight": [1, 2816],
        "confidence_head.proj.bias": [1],
    }


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vocab_size": 62}, ["vocab_size", "62", "61", "target"]),
        ({"hidden_size": 48}, ["hidden_size", "48", "32", "target"]),
        ({"num_target_layers": 5}, ["num_target_layers", "5", "4", "target"]),
        ({"rms_norm_eps": 1e-5}, ["rms_norm_eps", "1e-05", "1e-06", "target"]),
        ({"head_dim": 8}, ["head_dim", "8", "16", "target"]),
        ({"target_layer_ids": [0, 1]}, ["target_layer_ids", "[0, 1]", "[0, 2]", "recipe"]),
        ({"markov_head_type": "rnn"}, ["markov_head_type", "rnn", "vanilla", "recipe"]),
        ({"block_size": None}, ["block_size", "missing"]),
        ({"block_size": 0}, ["block_size", "0", "greater than or equal to 1"]),
        ({"enable_confidence_head": "yes"}, ["enable_confidence_head", "'yes'", "bool"]),
        ({"target_layer_ids": [0, "2"]}, ["target_layer_ids", "[0, '2']", "int"]),
        ({"sample_from_anchor": False}, ["predict in place", "dspark"]),
        ({"mask_token_id": "x"}, ["mask_token_id", "'x'", "int"]),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            ["rope", "500000.0", "10000.0", "target"],
        ),
    ],
)
def test_a_field_that_differs_is_named_with_both_values(directory, spec, fields, named):
    change_config(directory, **fields)
    with refused(IncompatibleDraft, *named, where="draft/config.json"):
        ALGORITHM.load(directory, spec, config=CONFIG)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("fc.weight"), ["fc.weight", "missing"]),
        (lambda t: t.update({"d2t": torch.zeros(3)}), ["d2t", "not known"]),
        (
            lambda t: t.update({"norm.weight": torch.ones(16)}),
            ["norm.weight", "[16]", "[32]"],
        ),
        (lambda t: t.update({"norm.weight": torch.full((32,), torch.nan)}), ["norm.weight", "not finite"]),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(directory, spec, change, named):
    change_tensors(directory, change)
    with refused(IncompatibleDraft, *named, where="draft/model.safetensors"):
        ALGORITHM.load(directory, spec)


def test_unreadable_directories(directory, spec, tmp_path):
    with refused(IncompatibleDraft, "config.json", where=str(tmp_path / "nothing")):
        algorithm_of(tmp_path / "nothing")
    (directory / "model.safetensors").write_bytes(b"\x00" * 40)
    with refused(IncompatibleDraft, "safetensors", where="draft/model.safetensors"):
        ALGORITHM.load(directory, spec)
    (directory / "model.safetensors").unlink()
    with refused(IncompatibleDraft, "weights", where="draft"):
        ALGORITHM.load(directory, spec)
    change_config(directory, block_size=None)
    with refused(IncompatibleDraft, "eagle3, dflash, dspark", where="draft"):
        algorithm_of(directory)
    (directory / "config.json").write_text("[1")
    with refused(IncompatibleDraft, "JSON", where="draft/config.json"):
        algorithm_of(directory)


def test_unfinished_weights_are_not_saved(spec, tmp_path):
    with refused(IncompatibleDraft, "not finite"):
        ALGORITHM.save(ALGORITHM.build(CONFIG, spec), tmp_path / "draft", CONFIG, spec)
    assert not (tmp_path / "draft").exists()


def test_a_draft_of_a_newer_deepspec_is_refused(directory, spec):
    change_config(directory, deepspec_format=1)
    ALGORITHM.load(directory, spec)
    change_config(directory, deepspec_format=2)
    with refused(IncompatibleDraft, "draft", "format 2", where="draft/config.json"):
        ALGORITHM.load(directory, spec)
    with refused(IncompatibleDraft, "format 2", where="draft/config.json"):
        algorithm_of(directory)


def with_tokenizer(spec, folder, **arguments):
    """The same target with a tokenizer of its own."""
    shutil.copytree(spec.path, folder)
    tiny_tokenizer(folder, **arguments)
    return read_spec(folder)


def test_a_draft_knows_its_tokenizer(draft, spec, tmp_path, caplog):
    own = with_tokenizer(spec, tmp_path / "own")
    ALGORITHM.save(draft, tmp_path / "draft", CONFIG, own)
    written = json.loads((tmp_path / "draft" / "config.json").read_text())["tokenizer_fingerprint"]
    assert written == asdict(tokenizer_identity(own.path))
    ALGORITHM.load(tmp_path / "draft", own)
    assert not caplog.records
    other = with_tokenizer(spec, tmp_path / "other", vocab_size=300)
    with refused(IncompatibleDraft, "another tokenizer", "300", where="draft/config.json"):
        ALGORITHM.load(tmp_path / "draft", other)
    swapped = with_tokenizer(spec, tmp_path / "swapped", added_tokens=("</think>", "<think>"))
    with refused(IncompatibleDraft, "another tokenizer", where="draft/config.json"):
        ALGORITHM.load(tmp_path / "draft", swapped)
    with refused(IncompatibleDraft, "tokenizer.json", str(spec.path), where="draft/config.json"):
        ALGORITHM.load(tmp_path / "draft", spec)
    mended = with_tokenizer(spec, tmp_path / "mended", chat_template=CHAT_TEMPLATE + " ")
    ALGORITHM.load(tmp_path / "draft", mended)
    assert "another chat template" in caplog.text


def test_a_draft_that_says_nothing_of_a_tokenizer_is_taken(directory, spec, tmp_path):
    assert "tokenizer_fingerprint" not in json.loads((directory / "config.json").read_text())
    ALGORITHM.load(directory, with_tokenizer(spec, tmp_path / "any"))
