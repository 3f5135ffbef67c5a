"""Exported drafts: exactly the tensors and fields of the format, read back, and checked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepspec.drafts import ALGORITHMS
from deepspec.errors import IncompatibleDraft
from deepspec.export import FORMATS
from deepspec.targets.directory import read_spec
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.published import spoil, trained
from tests.fixtures.refused import refused

FORMAT = FORMATS["deepspec"]


DEPTH = {"qwen3": {"num_layers": 8}, "gemma4": {"layer_types": "ssfssssf"}}


@pytest.fixture(params=sorted(TARGETS))
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return TARGETS[request.param](tmp_path / "target", **DEPTH[request.param])


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_names_shapes_and_dtypes_are_the_formats_and_it_loads_back(target: Path, name: str, tmp_path: Path) -> None:
    draft, out = trained(target, name, tmp_path / "draft"), tmp_path / "out"
    FORMAT.write(draft, out, "some/target")
    assert FORMAT.check(out) == []
    ours, theirs = load_file(draft / "model.safetensors"), load_file(out / "model.safetensors")
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    assert {tensor.dtype for tensor in theirs.values()} == {torch.bfloat16}
    assert "embed_tokens.weight" in theirs
    config = json.loads((out / "config.json").read_text())
    assert config["target_layer_ids"] == [0, 1, 2, 4, 6]
    assert config["num_target_layers"] == 8
    assert set(config["layer_types"]) == {"full_attention"}
    present = {"eagle3": {"ttt_length", "step_loss_decay", "draft_num_hidden_layers", "target_model_name_or_path"}}
    blocks = {"block_size", "mask_token_id", "num_anchors", "enable_confidence_head", "markov_rank"}
    assert present.get(name, blocks) <= config.keys()
    assert ("markov_head_type" in config) == (name == "dspark")
    loaded = ALGORITHMS[name].load(out, read_spec(target), dtype="bfloat16")
    assert all(torch.equal(theirs[key], weight) for key, weight in loaded.state_dict().items())


def public_reader(config: dict[str, Any]) -> int:
    """What the public DSpark classes ask of config.json, written from theirs; the confidence head's input width."""
    needed = {"target_layer_ids", "mask_token_id", "num_anchors", "enable_confidence_head", "markov_rank", "block_size"}
    needed |= {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "rms_norm_eps", "layer_types"}
    needed |= {"markov_head_type"} if config.get("markov_rank", 0) > 0 else set()
    needed |= {"confidence_head_with_markov"} if config.get("enable_confidence_head") else set()
    missing = needed - config.keys()
    if missing:
        raise LookupError(missing)
    if not (config["enable_confidence_head"] and config["confidence_head_with_markov"]):
        return int(config["hidden_size"])
    if not config["markov_rank"]:
        raise ValueError("confidence_head_with_markov")
    return int(config["hidden_size"] + config["markov_rank"])


HEADS = {
    "confidence alone": {"markov_rank": 0},
    "confidence without markov": {"confidence_head_with_markov": False},
    "markov alone": {"confidence_head": False},
    "both": {},
}


@pytest.mark.parametrize("heads", HEADS)
def test_the_public_reader_reads_every_kind_of_heads(target: Path, heads: str, tmp_path: Path) -> None:
    draft, out = trained(target, "dspark", tmp_path / "draft", **HEADS[heads]), tmp_path / "out"
    FORMAT.write(draft, out, "some/target")
    assert FORMAT.check(out) == []
    config, weights = json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors")
    if config["enable_confidence_head"]:
        assert weights["confidence_head.proj.weight"].shape == (1, public_reader(config))
    public_reader(json.loads((draft / "config.json").read_text()))  # a draft that is served as it was registered
    ALGORITHMS["dspark"].load(out, read_spec(target), config=None)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_what_a_reader_cannot_supply_is_no_fine_directory(target: Path, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields = {"markov_rank": 0} if name == "dspark" else {}
    FORMAT.write(trained(target, name, tmp_path / "draft", **fields), out, "some/target")
    whole = json.loads((out / "config.json").read_text())
    accepted = set()
    for field in whole:
        config = {key: value for key, value in whole.items() if key != field}
        (out / "config.json").write_text(json.dumps(config))
        if not FORMAT.check(out):
            accepted.add(field)
            if name != "eagle3":
                public_reader(config)
    head_dim = "global_head_dim" if "global_head_dim" in whole else "head_dim"
    assert not accepted & {head_dim, "layer_types", "tie_word_embeddings", "dtype", "architectures"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("confidence_head_with_markov", True),
        ("dspark_bonus_anchor", True),
        ("layer_types", ["full_attention", "full_attention"]),
        ("architectures", ["DSparkDraftModel"]),
    ],
)
def test_a_field_that_readers_take_otherwise_is_named(target: Path, field: str, value: object, tmp_path: Path) -> None:
    out = tmp_path / "out"
    FORMAT.write(trained(target, "dspark", tmp_path / "draft", markov_rank=0), out, "some/target")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {field: value}))
    assert field in " ".join(FORMAT.check(out))


def test_the_public_checkpoints_are_fine_as_they_are(target: Path, tmp_path: Path) -> None:
    """They say neither which token a position predicts nor the old notation of rotary parameters."""
    out = tmp_path / "out"
    FORMAT.write(trained(target, "dspark", tmp_path / "draft", confidence_head=False), out, "some/target")
    config = json.loads((out / "config.json").read_text())
    ours = {"sample_from_anchor", "dspark_bonus_anchor", "rope_theta", "confidence_head_with_markov"}
    (out / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in ours}))
    assert FORMAT.check(out) == []


def sglang_reads(text: str, gamma: int) -> bool:
    """Whether SGLang's typed reader takes a file of temperatures, written from its own."""
    value = json.loads(text, parse_constant=pytest.fail)
    lists = [value["temperatures"], value.get("ece_before", []), value.get("ece_after", [])]
    are_numbers = all(type(one) in (int, float) for numbers in lists for one in numbers)
    return are_numbers and len(value["temperatures"]) == gamma and min(value["temperatures"]) > 0


@pytest.mark.parametrize(
    ("fields", "fine"),
    [
        ({"temperatures": [1.5, 1, 0.5, 1.0], "ece_before": [0.1, 0.2], "auc": [0.5, 0.9]}, True),
        ({"temperatures": [1.5, 1.0, 0.5, 1.0], "ece_before": [0.1, None]}, False),
        ({"temperatures": [1.5, 1.0, 0.5, None]}, False),
        ({"temperatures": [1.5, 1.0, 0.5]}, False),
        ({"temperatures": [1.5, 1.0, 0.0, 1.0]}, False),
        ({"temperatures": ["1.5", 1.0, 0.5, 1.0]}, False),
    ],
)
def test_a_calibration_that_sglang_cannot_read_is_named(
    target: Path, fields: dict[str, Any], fine: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    FORMAT.write(trained(target, "dspark", tmp_path / "draft"), out, "some/target")
    text = json.dumps({"applicable": True, **fields})
    (out / "calibration.json").write_text(text)
    assert sglang_reads(text, 4) == fine
    assert ("calibration.json" in " ".join(FORMAT.check(out))) == (not fine)


@pytest.mark.parametrize("text", ['{"a": [0.5, null]}', '{"a": NaN}', '{"a": {"b": [[1, -Infinity]]}}', "{"])
def test_json_that_is_not_strict_is_named_whichever_file_it_is_in(target: Path, text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    FORMAT.write(trained(target, "eagle3", tmp_path / "draft"), out, "some/target")
    (out / "generation_config.json").write_text(text)
    assert "generation_config.json" in " ".join(FORMAT.check(out))


def test_a_config_that_is_not_strict_is_not_written(target: Path, tmp_path: Path) -> None:
    draft = trained(target, "dspark", tmp_path / "draft")
    config = json.loads((draft / "config.json").read_text()) | {"eos_token_id": [1, None]}
    (draft / "config.json").write_text(json.dumps(config))
    with refused(IncompatibleDraft, "eos_token_id", where="config.json"):
        FORMAT.write(draft, tmp_path / "out", "some/target")
    assert not (tmp_path / "out").exists()


def test_what_the_format_cannot_hold_is_refused(target: Path, tmp_path: Path) -> None:
    in_place = trained(target, "dflash", tmp_path / "in-place", slots="in_place")
    with refused(IncompatibleDraft, "predict in place", where="config.json"):
        FORMAT.write(in_place, tmp_path / "out", "some/target")
    few = trained(target, "eagle3", tmp_path / "few", target_layer_ids=(0, 2))
    with refused(IncompatibleDraft, "[0, 2]", "5", where="config.json"):
        FORMAT.write(few, tmp_path / "out", "some/target")
    embedding = trained(target, "eagle3", tmp_path / "embedding", target_layer_ids=(-1, 0, 2, 4, 6))
    with refused(IncompatibleDraft, "[-1, 0, 2, 4, 6]", "embedding", where="config.json"):
        FORMAT.write(embedding, tmp_path / "out", "some/target")
    assert not (tmp_path / "out").exists()


def test_every_flaw_is_named(target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    FORMAT.write(trained(target, "dspark", tmp_path / "draft"), out, "some/target")
    spoil(out, torch.float32)
    flaws = " ".join(FORMAT.check(out))
    for words in (
        "norm.weight is missing",
        "extra.weight is not known",
        "fc.weight has shape",
        "hidden_norm.weight is float32",
        "lm_head.weight has values that are not finite",
    ):
        assert words in flaws
    (out / "config.json").write_text("{}")
    assert "eagle3, dflash, dspark" in FORMAT.check(out)[0]
