"""Gemma 4 specs: both notations of config.json, what a draft copies, and everything that is refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.errors import UnsupportedTarget
from deepspec.targets import FAMILIES, family_of, parameter_counts
from deepspec.targets.cache import RowCache
from deepspec.targets.directory import read_spec, stop_token_ids
from deepspec.targets.family import LayerShape, default_layer_ids
from deepspec.targets.model import Target
from deepspec.targets.published import PUBLISHED
from deepspec.targets.rotary import Rotary, rotate
from deepspec.targets.weights import Weights, read_tables
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_gemma4

GEMMA = FAMILIES["gemma4"]
FULL_ROPE = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
SLIDING_ROPE = {"rope_type": "default", "rope_theta": 1e4}
SLIDING = LayerShape(num_key_value_heads=4, head_dim=8, window=16)
FULL = LayerShape(num_key_value_heads=1, head_dim=32, value_from_keys=True)


def old(**fields):
    """A text configuration in the notation of transformers 5.10."""
    config = {
        "model_type": "gemma4_text",
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "intermediate_size": 96,
        "vocab_size": 61,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "rope_parameters": {"full_attention": FULL_ROPE, "sliding_attention": SLIDING_ROPE},
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "dtype": "bfloat16",
    }
    return {name: value for name, value in (config | fields).items() if value is not ...}


def new(**fields):
    """The same in the notation of transformers 5.23."""
    overrides = {"02": {"head_dim": 32, "num_key_value_heads": 1}}
    notation = {"global_head_dim": ..., "num_global_key_value_heads": ..., "per_layer_config": overrides}
    return old(**(notation | fields))


def read(config, path):
    (path / "config.json").write_text(json.dumps(config))
    return read_spec(path)


@pytest.mark.parametrize("notation", [old, new])
def test_a_spec_is_that_of_the_full_attention_layers(tmp_path, notation):
    spec = read(notation(), tmp_path)
    assert family_of(spec) is GEMMA
    assert (spec.head_dim, spec.num_key_value_heads, spec.num_attention_heads) == (32, 1, 4)
    assert spec.value_from_keys
    assert spec.attention_scale == 1.0
    assert spec.embedding_scale == 48**0.5
    assert spec.logit_softcap == 30.0
    assert spec.rope == FULL_ROPE
    assert spec.hidden_act == "gelu_pytorch_tanh"
    assert spec.tie_word_embeddings, "the models' default, which old configurations leave out"
    assert spec.layers == (SLIDING, SLIDING, FULL)


@pytest.mark.parametrize("notation", [old, new])
def test_own_values_mean_the_usual_key_value_heads(tmp_path, notation):
    fields = {"attention_k_eq_v": False}
    if notation is new:
        fields["per_layer_config"] = {"2": {"head_dim": 32}}
    spec = read(notation(**fields), tmp_path)
    assert (spec.head_dim, spec.num_key_value_heads, spec.value_from_keys) == (32, 4, False)


def test_stray_rope_keys_beside_the_entries_are_passed_over(tmp_path):
    mixed = {"full_attention": FULL_ROPE, "sliding_attention": SLIDING_ROPE, "rope_type": "default", "rope_theta": None}
    assert read(old(rope_parameters=mixed), tmp_path).rope == FULL_ROPE


def test_layer_types_that_are_not_said_are_the_models(tmp_path):
    from transformers import Gemma4TextConfig

    config = old(num_hidden_layers=8, layer_types=...)
    windows = [layer.window is not None for layer in read(config, tmp_path).layers]
    theirs = Gemma4TextConfig(**{name: value for name, value in config.items() if name != "model_type"}).layer_types
    assert windows == [kind == "sliding_attention" for kind in theirs]
    assert windows[5:] == [False, True, False]


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("composite", [False, True])
def test_configurations_that_transformers_writes(tmp_path, unified, composite):
    path = tiny_gemma4(tmp_path / "target", unified=unified, composite=composite, eos_token_id=[7, 3])
    spec = read_spec(path)
    assert spec.model_type == "gemma4" + "_unified" * unified + "_text" * (not composite)
    assert (spec.head_dim, spec.num_key_value_heads, spec.hidden_size, spec.dtype) == (16, 1, 32, "float32")
    assert spec.rope == {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}
    assert [layer.window for layer in spec.layers] == [6, 6, None, 6, 6, None]
    assert stop_token_ids(spec) == (3, 7)


def test_stop_tokens_of_a_larger_model_are_its_text_models(tmp_path):
    path = tiny_gemma4(tmp_path, composite=True)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    config.pop("eos_token_id", None)
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").unlink()
    added = [{"id": 9, "content": "<turn|>"}, {"id": 4, "content": "<|turn>"}]
    (path / "tokenizer.json").write_text(json.dumps({"model": {}, "added_tokens": added}))
    assert stop_token_ids(read_spec(path)) == (5, 9)


def test_a_larger_model_says_whether_tables_are_tied_and_which_dtype(tmp_path):
    text = old(tie_word_embeddings=True, dtype=...)
    outer = {"model_type": "gemma4", "text_config": text, "tie_word_embeddings": False, "dtype": "bfloat16"}
    spec = read(outer, tmp_path)
    assert not spec.tie_word_embeddings
    assert spec.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"enable_moe_block": True}, "mixture-of-experts"),
        ({"hidden_size_per_layer_input": 256}, "per-layer inputs"),
        ({"hidden_size_per_layer_input": ...}, "per-layer inputs"),
        ({"num_kv_shared_layers": 1}, "share keys and values"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": "all"}, "only causal"),
        ({"global_head_dim": ...}, "global_head_dim"),
        ({"rope_parameters": FULL_ROPE}, "rope_parameters.full_attention"),
        ({"rope_parameters": ...}, "rope_parameters.full_attention"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types"),
        ({"sliding_window": None}, "sliding_window is None"),
        ({"head_dim": "wide"}, "head_dim is 'wide'"),
        ({"num_hidden_layers": ...}, "num_hidden_layers is None"),
        ({"per_layer_config": {"1": {"head_dim": 64}, "2": {"head_dim": 32}}}, "sliding_attention layers differ"),
        ({"per_layer_config": {"2": {"intermediate_size": 8}}}, "intermediate_size"),
        ({"hidden_activation": "relu"}, "'relu'"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path, fields, named):
    with refused(UnsupportedTarget, named, where=f"{tmp_path.name}/config.json"):
        read(old(**fields), tmp_path)


def test_unified_text_models_have_no_per_layer_inputs(tmp_path):
    assert read(old(model_type="gemma4_unified_text", hidden_size_per_layer_input=...), tmp_path).num_layers == 3


def published():
    """The released 12B's configuration."""
    return dict(PUBLISHED["google/gemma-4-12B-it"])


def as_gemma4(config):
    """The same model under the type that the family's other members have."""
    text = {**config["text_config"], "model_type": "gemma4_text", "hidden_size_per_layer_input": 0}
    return {**config, "model_type": "gemma4", "text_config": text}


def written(config, path, *, text_only):
    """What transformers writes of a configuration."""
    from transformers import AutoConfig

    read_in = AutoConfig.for_model(**config)
    (read_in.text_config if text_only else read_in).save_pretrained(path)
    return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("as_type", [dict, as_gemma4], ids=["gemma4_unified", "gemma4"])
@pytest.mark.parametrize(
    "form",
    [
        lambda config, _: config,
        lambda config, _: config["text_config"],
        lambda config, path: written(config, path, text_only=False),
        lambda config, path: written(config, path, text_only=True),
        lambda config, _: {**config, "text_config": {**config["text_config"], "layer_types": None}},
        lambda config, _: {**config, "text_config": omitted(config["text_config"], "dtype", "tie_word_embeddings")},
        lambda config, _: {**omitted(config, "dtype"), "torch_dtype": "bfloat16"},
        lambda config, _: {**config, "text_config": omitted(config["text_config"], "model_type")},
    ],
    ids=["published", "text", "written", "written text", "default layers", "said once", "old dtype", "no text type"],
)
def test_every_form_of_the_12b_is_one_spec(tmp_path, as_type, form):
    def plain(spec):
        return replace(spec, path=tmp_path, model_type="", raw={})

    spec = read(form(as_type(published()), tmp_path), tmp_path)
    expected = read(published(), tmp_path)
    assert plain(spec) == plain(expected)
    # What a draft's config.json says of its body reads back as the same shape, too.
    again = read(GEMMA.draft_fields(spec), tmp_path)
    assert plain(again) == plain(expected)


def omitted(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


def test_the_12b_has_the_published_number_of_text_parameters(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = read(published(), tmp_path)
    assert spec.layers == (*[LayerShape(8, 256, window=1024)] * 5, LayerShape(1, 512, value_from_keys=True)) * 8
    counts = parameter_counts(spec)
    assert counts["total"] == 11_907_350_320
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**published()).text_config)
    weights = omitted(model.state_dict(), "lm_head.weight")
    assert counts["total"] == sum(weight.numel() for weight in weights.values())


def test_layers_that_drafts_read():
    assert default_layer_ids(GEMMA, 48) == (5, 17, 29, 41, 46)
    assert GEMMA.mask_token_id == 4


def test_caches_have_each_layers_shape(tmp_path):
    cache = RowCache.allocate(read(old(), tmp_path), 2, 10)
    assert [tuple(keys.shape) for keys in cache._keys] == [(2, 4, 10, 8), (2, 4, 10, 8), (2, 1, 10, 32)]
    assert [values.shape for values in cache._values] == [keys.shape for keys in cache._keys]


def test_rotations_are_those_of_full_attention(tmp_path):
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding, apply_rotary_pos_emb

    config = old()
    spec = read(config, tmp_path)
    positions = torch.tensor([[0, 1, 100, 511], [5, 5, 6, 7]])
    x = torch.randn(2, 4, 3, 32, generator=torch.Generator().manual_seed(0))
    theirs = Gemma4TextRotaryEmbedding(Gemma4TextConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    cos, sin = theirs(x, positions, "full_attention")
    expected = apply_rotary_pos_emb(x, cos, sin, unsqueeze_dim=2)
    rotary = Rotary(spec)
    found = rotate(x, *rotary.lookup(positions, torch.float32, limit=512))
    torch.testing.assert_close(found, expected)
    # A quarter of the pairs turns; the others are left as they are.
    assert torch.equal(found[..., 4:16], x[..., 4:16])
    assert not torch.equal(found[0, 1:, :, :4], x[0, 1:, :, :4])
    # Frequencies stay fp32 whatever is asked for.
    assert rotary._inverse_frequency.dtype == torch.float32
    half, _ = rotary.lookup(positions, torch.bfloat16, limit=512)
    exact, _ = rotary.lookup(positions, torch.float32, limit=512)
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=2**-9)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), ["missing", "model.layers.1.mlp.up_proj.weight"]),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight_scale": torch.ones(1)}),
            ["not known", "model.layers.0.self_attn.q_proj.weight_scale"],
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(8)}), ["model.norm.weight", "[8]", "[32]"]),
    ],
    ids=["missing", "unknown", "another shape"],
)
def test_other_weights_than_the_configurations_are_refused(tmp_path, change, named):
    path = tiny_gemma4(tmp_path / "target")
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with refused(UnsupportedTarget, *named, where=str(path)):
        Target.load(path)


@pytest.mark.parametrize("fields", [{"composite": True}, {"tie_word_embeddings": False}], ids=str)
def test_tables_read_from_the_files_are_the_loaded_targets(tmp_path, fields):
    path = tiny_gemma4(tmp_path, **fields)
    target = Target.load(path)
    embedding_VD, head_VD = read_tables(Weights(path), read_spec(path), dtype=torch.float32)
    assert torch.equal(embedding_VD, target.embedding_weight)
    assert torch.equal(head_VD, target.head_weight)
    assert (embedding_VD is head_VD) is fields.get("tie_word_embeddings", True)


def test_masks_of_windowed_layers_are_per_row():
    cache = RowCache([torch.zeros(3, 1, 9, 2)], [torch.zeros(3, 1, 9, 2)], [0, 0, 0])
    assert cache.mask(3, 3) is None
    assert cache.mask(4, 3)[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]
    cache._lengths[:] = [4, 1, 0]
    mask = cache.mask(2, 3)
    assert mask.shape == (3, 1, 2, 6)
    assert mask[0, 0].int().tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert mask[1, 0].int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert mask[2, 0].int().tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    # One query behind equal rows: the plain rule holds until the window is full.
    cache._lengths[:] = [2, 2, 2]
    assert cache.mask(1, 3) is None
    cache._lengths[:] = [3, 3, 3]
    assert cache.mask(1, 3)[0, 0].int().tolist() == [[0, 1, 1, 1]]


def test_families_differ_in_their_table_alone():
    """Nothing outside the family's own file asks which family a target has."""
    from pathlib import Path

    import deepspec

    asked = re.compile(r"family(\.name)?\s*(==|!=|in)\s|[\"']gemma4[\"']")
    root = Path(deepspec.__file__).parent
    found = [
        f"{file.relative_to(root)}: {line.strip()}"
        for file in sorted(root.rglob("*.py"))
        if file.name not in {"gemma4.py", "formats.py"}
        for line in file.read_text().splitlines()
        if asked.search(line) and not re.search(r"for .* in FAMILIES|for family in", line)
    ]
    assert found == []
