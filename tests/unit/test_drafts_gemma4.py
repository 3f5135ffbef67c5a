"""Gemma 4 drafts as directories: the public layout's field names, its tensors, and the way back."""

import json

import pytest
import torch
from safetensors.torch import load_file

from deepspec.drafts import ALGORITHMS, algorithm_of
from deepspec.drafts.layer_choice import chosen_mask_token
from deepspec.errors import IncompatibleDraft
from deepspec.targets.directory import read_spec
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_gemma4

ALGORITHM = ALGORITHMS["dspark"]
CONFIG = ALGORITHM.Config(num_draft_tokens=3, num_layers=2, target_layer_ids=(0, 2), markov_rank=4, num_anchors=9)
TARGETS = {
    "keys as values": {},
    "own values": {"attention_k_eq_v": False},
    "part of a unified model": {"composite": True, "unified": True},
}


@pytest.fixture(scope="module", params=TARGETS)
def spec(request, tmp_path_factory):
    return read_spec(tiny_gemma4(tmp_path_factory.mktemp("target") / "tiny", **TARGETS[request.param]))


@pytest.fixture
def draft(spec):
    draft = ALGORITHM.build(CONFIG, spec)
    tables = torch.randn(2, 61, 32, generator=torch.Generator().manual_seed(0))
    ALGORITHM.initialize(draft, tables[0], tables[1], 1)
    with torch.no_grad():
        for number, scalar in enumerate(draft.buffers(), start=2):
            scalar.fill_(1 / number)
    return draft


@pytest.fixture
def directory(draft, spec, tmp_path):
    ALGORITHM.save(draft, tmp_path / "draft", CONFIG, spec)
    return tmp_path / "draft"


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def test_fields_of_the_public_layout(directory, spec):
    config = config_of(directory)
    text_type = "gemma4_unified_text" if "unified" in spec.model_type else "gemma4_text"
    expected = {
        "architectures": ["Gemma4DSparkModel"],
        "model_type": text_type,
        "target_model_type": spec.model_type,
        "target_text_model_type": text_type,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "num_target_layers": 6,
        "target_layer_ids": [0, 2],
        "mask_token_id": 4,
        "block_size": 3,
        "tie_word_embeddings": False,
        "attention_k_eq_v": spec.value_from_keys,
        "head_dim": 8,
        "global_head_dim": 16,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1 if spec.value_from_keys else None,
        "final_logit_softcapping": 3.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        "dtype": "float32",
    }
    assert {field: config[field] for field in expected} == expected
    assert "per_layer_config" not in config
    assert "text_config" not in config


def test_stray_rope_keys_are_not_written(spec, tmp_path, draft):
    path = tiny_gemma4(tmp_path / "target")
    config = config_of(path)
    config["rope_parameters"] |= {"rope_type": "default", "rope_theta": None}
    (path / "config.json").write_text(json.dumps(config))
    mixed = read_spec(path)
    built = ALGORITHM.build(CONFIG, mixed)
    ALGORITHM.initialize(built, torch.zeros(61, 32), torch.zeros(61, 32), 1)
    ALGORITHM.save(built, tmp_path / "draft", CONFIG, mixed)
    assert set(config_of(tmp_path / "draft")["rope_parameters"]) == {"full_attention", "sliding_attention"}


def test_transformers_reads_the_same_body_from_it(directory, spec):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    for layer in range(2):
        theirs = config.per_layer_config[layer]
        assert (theirs.head_dim, theirs.num_key_value_heads) == (spec.head_dim, spec.num_key_value_heads)
    assert config.rope_parameters["full_attention"] == spec.rope


def test_tensors_of_a_layer(directory, spec):
    shapes = {name: list(tensor.shape) for name, tensor in load_file(directory / "model.safetensors").items()}
    keys = 16 * spec.num_key_value_heads
    layer = {name.removeprefix("layers.1."): shape for name, shape in shapes.items() if name.startswith("layers.1.")}
    expected = {
        "layer_scalar": [1],
        "self_attn.q_proj.weight": [64, 32],
        "self_attn.k_proj.weight": [keys, 32],
        "self_attn.o_proj.weight": [32, 64],
        "self_attn.q_norm.weight": [16],
        "self_attn.k_norm.weight": [16],
        "mlp.gate_proj.weight": [48, 32],
        "mlp.up_proj.weight": [48, 32],
        "mlp.down_proj.weight": [32, 48],
        "input_layernorm.weight": [32],
        "post_attention_layernorm.weight": [32],
        "pre_feedforward_layernorm.weight": [32],
        "post_feedforward_layernorm.weight": [32],
    }
    if not spec.value_from_keys:
        expected["self_attn.v_proj.weight"] = [keys, 32]
    assert layer == expected
    assert shapes["embed_tokens.weight"] == shapes["lm_head.weight"] == [61, 32]


def test_what_is_saved_is_what_is_loaded(draft, directory, spec, tmp_path):
    loaded = ALGORITHM.load(directory, spec, config=CONFIG.model_copy(update={"mask_token_id": 4}))
    assert [name for name, _ in loaded.named_buffers()] == ["layers.0.layer_scalar", "layers.1.layer_scalar"]
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, draft.state_dict()[name]), name
    assert [scalar.item() for scalar in loaded.buffers()] == pytest.approx([1 / 2, 1 / 3])
    assert algorithm_of(directory).name == "dspark"
    ALGORITHM.save(loaded, tmp_path / "again", CONFIG, spec)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"global_head_dim": 8}, ["head_dim", "8", "16", "target"]),
        ({"hidden_activation": "silu"}, ["hidden_act", "'silu'", "'gelu_pytorch_tanh'"]),
        ({"final_logit_softcapping": None}, ["logit_softcap", "None", "3.0", "target"]),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1000.0}}},
            ["rope", "'default'", "'proportional'", "target"],
        ),
        ({"global_head_dim": ...}, ["global_head_dim"]),
    ],
)
def test_a_field_that_differs_is_named_with_both_values(directory, spec, fields, named):
    config = config_of(directory) | fields
    config = {name: value for name, value in config.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(config))
    with refused(IncompatibleDraft, *named, where="draft/config.json"):
        ALGORITHM.load(directory, spec)


def test_layer_scalars_are_neither_the_targets_nor_trained(spec):
    draft = ALGORITHM.build(CONFIG, spec)
    assert [scalar.item() for scalar in draft.buffers()] == [1.0, 1.0]
    assert not any(name.endswith("layer_scalar") for name, _ in draft.named_parameters())


def test_the_familys_mask_token(spec):
    assert chosen_mask_token(None, spec) == 4
