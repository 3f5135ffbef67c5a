"""Reading a target's tensors from its files: what is found, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.errors import UnsupportedTarget
from deepspec.targets.directory import read_spec
from deepspec.targets.model import Target
from deepspec.targets.weights import Weights, read_tables
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_qwen3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_qwen3(tmp_path / "target")


def rewrite(folder: Path, change: object) -> None:
    """Save the weights again after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_tables_are_the_files_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    embedding_VD, head_VD = read_tables(Weights(folder), read_spec(folder), dtype=torch.float32)
    assert torch.equal(embedding_VD, tensors["model.embed_tokens.weight"])
    assert torch.equal(head_VD, tensors["lm_head.weight"])


def test_a_stored_head_is_the_head_also_of_tied_tables(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = load_file(folder / "model.safetensors")
    _, head_VD = read_tables(Weights(folder), read_spec(folder), dtype=torch.float32)
    assert torch.equal(head_VD, tensors["lm_head.weight"])
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    embedding_VD, head_VD = read_tables(Weights(folder), read_spec(folder), dtype=torch.float32)
    assert embedding_VD is head_VD


def test_tied_tables_are_one_tensor(tmp_path: Path) -> None:
    tied = tiny_qwen3(tmp_path / "tied", tie_word_embeddings=True)
    embedding_VD, head_VD = read_tables(Weights(tied), read_spec(tied), dtype=torch.bfloat16)
    assert embedding_VD is head_VD
    assert embedding_VD.dtype == torch.bfloat16
    assert Target.load(tied).head_weight is not None


def test_shards_are_found_through_the_index_alone(folder: Path) -> None:
    whole = Target.load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    mapping = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        mapping |= dict.fromkeys(part, file)
    save_file(tensors, folder / "consolidated.safetensors")
    with refused(UnsupportedTarget, "consolidated.safetensors", "model-00001", where=str(folder)):
        Target.load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    ids = torch.arange(9)[None]
    assert torch.equal(Target.load(folder).forward(ids).final_BQD, whole.forward(ids).final_BQD)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with refused(UnsupportedTarget, "model-00002-of-00002.safetensors", where=str(folder)):
        Target.load(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.norm.weight"), ["missing", "model.norm.weight"]),
        (lambda t: t.pop("lm_head.weight"), ["0 tensors", "lm_head.weight"]),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), ["missing", "layers.1.mlp.up_proj.weight"]),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(4)}),
            ["not known", "layers.0.self_attn.q_proj.bias"],
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:-1].clone()}),
            ["model.embed_tokens.weight", "config.json"],
        ),
    ],
    ids=["no norm", "no head", "no projection", "a bias", "another vocabulary"],
)
def test_other_tensors_than_the_configurations_are_refused(folder: Path, change: object, named: list[str]) -> None:
    rewrite(folder, change)
    with refused(UnsupportedTarget, *named, where=str(folder)):
        Target.load(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with refused(UnsupportedTarget, "bytes", where=str(file)):
        Target.load(folder)


def test_old_rotary_buffers_are_passed_over(folder: Path) -> None:
    expected = Target.load(folder)
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    ids = torch.arange(9)[None]
    assert torch.equal(Target.load(folder).forward(ids).final_BQD, expected.forward(ids).final_BQD)
