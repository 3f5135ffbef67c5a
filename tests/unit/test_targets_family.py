"""Target specs: read from config.json, checked, refused in words."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from deepspec.errors import UnsupportedTarget
from deepspec.targets import FAMILIES, family_of, parameter_counts
from deepspec.targets.directory import read_spec, stop_token_ids
from deepspec.targets.family import default_layer_ids, rope_of
from deepspec.targets.model import Target
from deepspec.targets.rotary import Rotary, rotate
from deepspec.targets.weight_files import weight_files
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_gemma4, tiny_qwen3

QWEN = FAMILIES["qwen3"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_qwen3(tmp_path_factory.mktemp("target") / "tiny", tie_word_embeddings=True, eos_token_id=[7, 3])


@pytest.fixture
def config():
    return {
        "model_type": "qwen3",
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 61,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
    }


def read(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_spec(tmp_path)


def test_a_spec_is_what_the_directory_says(directory):
    spec = read_spec(directory)
    assert family_of(spec) is QWEN
    assert (spec.num_layers, spec.hidden_size, spec.vocab_size, spec.head_dim) == (4, 32, 61, 16)
    assert (spec.num_attention_heads, spec.num_key_value_heads, spec.intermediate_size) == (4, 2, 48)
    assert spec.attention_scale == 0.25
    assert spec.rope == {"rope_type": "default", "rope_theta": 10000.0}
    assert spec.tie_word_embeddings
    assert spec.dtype == "float32"


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (tiny_qwen3, {"tie_word_embeddings": True}),
        (tiny_gemma4, {}),
        (tiny_gemma4, {"attention_k_eq_v": False, "tie_word_embeddings": False}),
    ],
    ids=["qwen3", "gemma4", "gemma4, own values"],
)
def test_parameter_counts_are_the_models(tmp_path, make, fields):
    model = AutoModelForCausalLM.from_pretrained(make(tmp_path, **fields))
    spec = read_spec(tmp_path)
    counts = parameter_counts(spec)
    weights = model.state_dict()  # a layer's scalar is a buffer
    if spec.tie_word_embeddings:
        del weights["lm_head.weight"]
    assert counts["total"] == sum(weight.numel() for weight in weights.values())
    assert (counts["head"] == 0) is spec.tie_word_embeddings
    layers = model.get_submodule("model.layers")
    assert counts["layers"] == sum(weight.numel() for weight in layers.state_dict().values())


def test_head_dim_is_what_transformers_takes(config, tmp_path):
    assert read(config, tmp_path).head_dim == 128
    assert read(config | {"head_dim": None}, tmp_path).head_dim == 8


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"rope_theta": None}, "rope_theta"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "relu"}, "'relu'"),
    ],
)
def test_what_is_not_supported_is_said(config, tmp_path, fields, named):
    with refused(UnsupportedTarget, named, where=f"{tmp_path.name}/config.json"):
        read(config | fields, tmp_path)


def test_a_missing_or_broken_config_is_said(tmp_path):
    with refused(UnsupportedTarget, "config.json", where=str(tmp_path)):
        read_spec(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with refused(UnsupportedTarget, "JSON", where=f"{tmp_path.name}/config.json"):
        read_spec(tmp_path)


def test_pickled_weights_are_refused(config, tmp_path):
    read(config, tmp_path)
    with refused(UnsupportedTarget, "*.safetensors", where=tmp_path.name):
        Target.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with refused(UnsupportedTarget, ".bin", where=tmp_path.name):
        Target.load(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


def test_rope_in_both_notations():
    assert rope_of({"rope_theta": 5}) == {"rope_type": "default", "rope_theta": 5.0}
    old = {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}
    both = rope_of(old | new)
    assert rope_of(old) == rope_of(new) == both == {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (36, (1, 9, 17, 25, 33)),
        (40, (1, 10, 19, 28, 37)),
        (8, (1, 2, 3, 4, 5)),
        (6, (1, 2, 3)),
        (4, (1, 2)),
        (3, (0, 1)),
        (2, (0,)),
        (1, (-1,)),
    ],
)
def test_default_layers(num_layers, expected):
    assert default_layer_ids(QWEN, num_layers) == expected


def test_stop_tokens_come_from_generation_config_and_chat_format(directory, config, tmp_path):
    assert stop_token_ids(read_spec(directory)) == (3, 7)
    added = [{"id": 9, "content": "<|im_end|>"}, {"id": 4, "content": "<|im_start|>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {}, "added_tokens": added}))
    assert stop_token_ids(read(config | {"eos_token_id": 2}, tmp_path)) == (2, 9)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.4, "factor": 2.0},
    ],
    ids=lambda rope: f"{rope['rope_type']} {rope.get('partial_rotary_factor', '')}".strip(),
)
def test_rotations_are_huggingfaces(config, tmp_path, rope):
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, apply_rotary_pos_emb

    fields = {key: value for key, value in config.items() if key != "rope_theta"}
    fields |= {"rope_parameters": rope, "head_dim": 8}
    spec = read(fields, tmp_path)
    positions = torch.tensor([[0, 1, 100, 511], [5, 5, 6, 7]])
    x = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    reference = Qwen3RotaryEmbedding(Qwen3Config(**{k: v for k, v in fields.items() if k != "model_type"}))
    expected, _ = apply_rotary_pos_emb(x, x, *reference(x, positions), unsqueeze_dim=2)
    found = rotate(x, *Rotary(spec).lookup(positions, torch.float32, limit=512))
    torch.testing.assert_close(found, expected)


def test_rotation_tables_grow_and_stay_exact_in_half_precision(config, tmp_path):
    rotary = Rotary(read(config, tmp_path))
    cos, _ = rotary.lookup(torch.tensor([3]), torch.bfloat16, limit=4)
    far, _ = rotary.lookup(torch.tensor([5000]), torch.bfloat16, limit=5001)
    exact, _ = rotary.lookup(torch.tensor([3, 5000]), torch.float32, limit=5001)
    # Only the finished values are rounded: half a bf16 unit at 1.
    torch.testing.assert_close(torch.cat((cos, far)).float(), exact, rtol=0, atol=2**-9)
