"""Drafts for engines: every cell of the table is written and fine, or refused; what was changed afterwards is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.drafts import algorithm_of
from deepspec.errors import IncompatibleDraft
from deepspec.export import FORMATS
from deepspec.export.matrix import ENGINES, ROWS, cell, matrix
from deepspec.registry import draft_export
from deepspec.store import open_store
from deepspec.targets.directory import read_spec
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.published import spoil, trained
from tests.fixtures.refused import refused
from tests.unit.test_export import DEPTH

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle3": ("eagle3", {}),
    "dflash, in_place": ("dflash", {"slots": "in_place"}),
    "dflash, next_token": ("dflash", {}),
    "dspark, no head": ("dspark", {"markov_rank": 0}),
    "dspark, vanilla head": ("dspark", {}),
    "dspark, gated head": ("dspark", {"markov_head": "gated"}),
    "dspark, rnn head": ("dspark", {"markov_head": "rnn"}),
    "eagle3, several layers": ("eagle3", {"num_layers": 2}),
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {name: make(folder / name, **DEPTH[name]) for name, make in TARGETS.items()}


def test_every_kind_of_draft_has_a_row() -> None:
    assert tuple(KINDS) == ROWS
    assert {row["family"] for row in matrix()} == set(TARGETS)


@pytest.mark.parametrize("family", sorted(TARGETS))
@pytest.mark.parametrize("row", ROWS)
def test_a_cell_is_written_and_fine_or_refused(family: str, row: str, targets: dict[str, Path], tmp_path: Path) -> None:
    algorithm, fields = KINDS[row]
    draft = trained(targets[family], algorithm, tmp_path / "draft", **fields)
    before = load_file(draft / "model.safetensors")
    for form in ENGINES:
        found, out = cell(form, family, row), tmp_path / form
        if found.architecture is None:
            with refused(IncompatibleDraft, found.reason, where="config.json"):
                FORMATS[form].write(draft, out, "some/target")
            assert not out.exists()
            continue
        FORMATS[form].write(draft, out, "some/target")
        assert FORMATS[form].check(out) == []
        after = load_file(out / "model.safetensors")
        if form != "deepspec":
            assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
            assert json.loads((out / "config.json").read_text())["architectures"] == [found.architecture]
        added = {name: tensor for name, tensor in after.items() if name not in before}
        assert all(not tensor.any() for tensor in added.values())
        if form in ("vllm", "sglang"):  # what they say at the top level is ours, too
            spec = read_spec(targets[family])
            loaded = algorithm_of(out).load(out, spec)
            assert set(loaded.state_dict()) == set(after)


def test_vllm_takes_gemma_drafts_only_where_keys_serve_as_values(tmp_path: Path) -> None:
    target = TARGETS["gemma4"](tmp_path / "target", attention_k_eq_v=False, **DEPTH["gemma4"])
    draft = trained(target, "dspark", tmp_path / "draft")
    with refused(IncompatibleDraft, "attention_k_eq_v", where="draft/config.json"):
        FORMATS["vllm"].write(draft, tmp_path / "out", "some/target")
    assert not (tmp_path / "out").exists()


def test_layers_are_counted_as_the_engine_counts_them(targets: dict[str, Path], tmp_path: Path) -> None:
    draft = trained(targets["qwen3"], "eagle3", tmp_path / "draft", target_layer_ids=(-1, 2, 5))
    for form, field in (
        ("vllm", "eagle_aux_hidden_state_layer_ids"),
        ("speculators", "eagle_aux_hidden_state_layer_ids"),
    ):
        FORMATS[form].write(draft, tmp_path / form, "some/target")
        assert json.loads((tmp_path / form / "config.json").read_text())[field] == [0, 3, 6]


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "architecture": ("dspark", {"architectures": ["DSparkDraftModel"]}, "architectures"),
    "slots": ("dspark", {"sample_from_anchor": False}, "in place"),
    "slots, other name": ("dspark", {"dspark_bonus_anchor": True}, "dspark_bonus_anchor"),
    "slots not said": ("dspark", {"dspark_bonus_anchor": None}, "dspark_bonus_anchor is missing"),
    "layers of one count": ("dspark", {"eagle_aux_hidden_state_layer_ids": [0, 1, 2, 4, 6]}, "eagle_aux"),
    "layers of the other": ("eagle3", {"target_layer_ids": [1, 2, 3, 5, 6]}, "eagle_aux"),
    "layers not ascending": ("eagle3", {"target_layer_ids": [1, 0, 2, 4, 6]}, "strictly increasing"),
    "a layer twice": ("eagle3", {"target_layer_ids": [0, 0, 2, 4, 6]}, "strictly increasing"),
    "the last layer": ("eagle3", {"target_layer_ids": [0, 1, 2, 4, 7]}, "7"),
    "head's kind": ("dspark", {"markov_head_type": "gated"}, "vanilla head only"),
    "head's rank": ("dspark", {"markov_rank": 3}, "markov_head.markov_w1.weight has shape"),
    "confidence's input": ("dspark", {"confidence_head_with_markov": False}, "confidence_head"),
    "block": ("dspark", {"block_size": None}, "none of the algorithms"),
    "mask": ("dspark", {"mask_token_id": None}, "mask_token_id"),
    "head dim": ("dspark", {"head_dim": None}, "head_dim is missing"),
    "head dim, another": ("dspark", {"head_dim": 32}, "shape"),
    "rope, old notation": ("dspark", {"rope_theta": 1e6}, "rope_theta"),
    "rope, not said": ("dspark", {"rope_theta": None}, "rope_theta"),
    "rope, new notation": ("dspark", {"rope_parameters": None}, "rope_parameters is missing"),
    "tied tables": ("dspark", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    "kinds of layers": ("dspark", {"layer_types": ["sliding_attention"]}, "sliding-window"),
    "a reduced vocabulary": ("eagle3", {"draft_vocab_size": 32}, "draft_vocab_size"),
    "norms": ("eagle3", {"norm_before_residual": True}, "norm_before_residual"),
    "norms not said": ("eagle3", {"norm_before_residual": None}, "norm_before_residual is missing"),
    "dtype": ("eagle3", {"dtype": "bfloat16"}, "is float32, not bfloat16"),
    "dtype not said": ("eagle3", {"dtype": None}, "field dtype"),
    "causal": ("in_place", {"dflash_config": {"mask_token_id": 3, "target_layer_ids": [0], "causal": True}}, "causal"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_named(name: str, targets: dict[str, Path], tmp_path: Path) -> None:
    kind, fields, words = FAULTS[name]
    algorithm, given = KINDS["dflash, in_place"] if kind == "in_place" else (kind, {})
    FORMATS["vllm"].write(trained(targets["qwen3"], algorithm, tmp_path / "draft", **given), tmp_path / "out", "t")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    changed = {key: value for key, value in {**config, **fields}.items() if value is not None}
    (tmp_path / "out" / "config.json").write_text(json.dumps(changed))
    assert words in " ".join(FORMATS["vllm"].check(tmp_path / "out"))


@pytest.mark.parametrize("form", ["vllm", "sglang", "speculators"])
def test_a_fault_of_the_tensors_is_named(form: str, targets: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    FORMATS[form].write(trained(targets["qwen3"], "dspark", tmp_path / "draft"), out, "some/target")
    spoil(out, torch.bfloat16)
    flaws = " ".join(FORMATS[form].check(out))
    for words in ("norm.weight is missing", "extra.weight is not known", "fc.weight has shape", "is bfloat16, not"):
        assert words in flaws
    assert "lm_head.weight has values that are not finite" in flaws


def test_a_directory_appears_whole_and_checked_or_is_called_unchecked(targets: dict[str, Path], tmp_path: Path) -> None:
    draft, out = trained(targets["qwen3"], "dspark", tmp_path / "draft"), tmp_path / "exports" / "out"
    out.parent.mkdir()
    tensors = load_file(draft / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, draft / "model.safetensors")
    store = open_store(str(tmp_path / "store"))
    with refused(IncompatibleDraft, "lm_head.weight", "not finite", where=str(out)):
        draft_export.write(str(draft), "vllm", out, "some/target", home=tmp_path, store=store)
    assert list(out.parent.iterdir()) == []
    place = draft_export.write(str(draft), "vllm", out, "some/target", home=tmp_path, store=store, force=True)
    assert list(out.parent.iterdir()) == [place]
    assert place.name == "out-UNCHECKED"
