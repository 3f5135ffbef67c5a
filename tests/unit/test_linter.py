"""`export --check`: faults seeded into exports of every format, each named; and the other formats that engines read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.errors import RecipeError
from deepspec.export import FORMATS
from deepspec.export.engines import check_for
from deepspec.export.matrix import ENGINES, READS, cell
from deepspec.registry import draft_export
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.published import split, trained
from tests.fixtures.refused import refused
from tests.unit.test_export import DEPTH
from tests.unit.test_export_engines import KINDS

EAGLE, IN_PLACE, NEXT_TOKEN, NO_HEAD, BLOCK = list(KINDS)[:5]
GATED = "dspark, gated head"
WEIGHTS, BODY = "model.safetensors", "transformer_layer_config"
AUX, EAGLE_AUX = "aux_hidden_state_layer_ids", "eagle_aux_hidden_state_layer_ids"

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(format, row) -> a fine directory."""
    folder = tmp_path_factory.mktemp("exports")
    target, found = TARGETS["qwen3"](folder / "target", **DEPTH["qwen3"]), {}
    for row, (algorithm, fields) in KINDS.items():
        draft = trained(target, algorithm, folder / row, **fields)
        for form in ENGINES:
            if cell(form, "qwen3", row).architecture:
                found[form, row] = folder / f"{row}, {form}"
                FORMATS[form].write(draft, found[form, row], "some/target")
    return found


def config(within: str = "", **fields: Any) -> Change:
    """Set fields of config.json, or of a part of it; None removes one."""

    def change(directory: Path) -> None:
        written = json.loads((directory / "config.json").read_text())
        part = written[within] if within else written
        part.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del part[name]
        (directory / "config.json").write_text(json.dumps(written))

    return change


def tensors(change_them: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(directory: Path) -> None:
        found = load_file(directory / WEIGHTS)
        change_them(found)
        save_file(found, directory / WEIGHTS)
        (directory / WEIGHTS).chmod(0o644)

    return change


def tokens(number: int) -> Change:
    def change(directory: Path) -> None:
        written = json.loads((directory / "config.json").read_text())
        written["speculators_config"]["proposal_methods"][0]["speculative_tokens"] = number
        (directory / "config.json").write_text(json.dumps(written))

    return change


MOVED = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
HEAD = "markov_head.markov_w2.weight"

FAULTS: dict[str, tuple[str, Change, list[str]]] = {
    "vllm: architecture": (EAGLE, config(architectures=["Qwen3Eagle3Model"]), ["architectures", "Eagle3Qwen3"]),
    "vllm: a layer less": (EAGLE, config(**{EAGLE_AUX: [1, 2, 3, 5]}), [EAGLE_AUX]),
    "vllm: layers of our count": (BLOCK, config(**{EAGLE_AUX: [0, 1, 2, 4, 6]}), [EAGLE_AUX, "[1, 2, 3, 5, 7]"]),
    "vllm: nested layers": (
        IN_PLACE, config("dflash_config", target_layer_ids=[1, 2, 3, 5, 7]), ["dflash_config.target_layer_ids"],
    ),
    "vllm: causal": (IN_PLACE, config(is_causal=True), ["is_causal"]),
    "vllm: windows": (IN_PLACE, config("dflash_config", use_swa=True), ["dflash_config.use_swa"]),
    "vllm: the embedding of the mask": (
        IN_PLACE, lambda directory: (directory / "mask_embedding.pt").write_bytes(b""), ["mask_embedding.pt"],
    ),
    "vllm: scaled logits": (BLOCK, config(logit_scale=0.5), ["logit_scale"]),
    "vllm: parallel": (EAGLE, config(pard_token=3), ["pard_token"]),
    "vllm: a reduced vocabulary": (EAGLE, config(draft_vocab_size=32), ["draft_vocab_size"]),
    "vllm: offsets that are ids": (
        EAGLE, tensors(lambda found: found.update(d2t=torch.arange(61))), ["d2t", "offsets", "i + d2t[i]"],
    ),
    "vllm: a mask of the vocabulary": (
        EAGLE, tensors(lambda found: found.update(t2d=torch.ones(61, dtype=torch.bool))), ["t2d"],
    ),
    "vllm: its own first layer": (
        EAGLE,
        tensors(lambda found: found.update({"midlayer.hidden_norm.weight": found.pop("layers.0.hidden_norm.weight")})),
        ["layers.0.hidden_norm.weight is missing", "midlayer.hidden_norm.weight"],
    ),
    "vllm: a file next to the weights": (
        BLOCK, lambda directory: shutil.copy(directory / WEIGHTS, directory / "adapter.safetensors"), ["adapter"],
    ),
    "vllm: mode of the weights": (BLOCK, lambda directory: (directory / WEIGHTS).chmod(0o600), [WEIGHTS, "600"]),
    "sglang: architecture": (BLOCK, config(architectures=["DSparkDraftModel"]), ["architectures"]),
    "sglang: no head": (BLOCK, config(markov_rank=0), ["markov_rank"]),
    "sglang: kind of head": (BLOCK, config(markov_head_type="gated"), ["gate_proj", "missing"]),
    "sglang: kind of head not said": (GATED, config(markov_head_type=None), ["markov_head_type is missing"]),
    "sglang: slots": (BLOCK, config(sample_from_anchor=None), ["sample_from_anchor is missing"]),
    "sglang: slots in place": (BLOCK, config(sample_from_anchor=False), ["in place"]),
    "sglang: the embedding's output": (
        BLOCK, config(target_layer_ids=[-1, 0, 2, 4, 6]), ["target_layer_ids", "embedding"],
    ),
    "sglang: layers twice": (BLOCK, config(dspark_target_layer_ids=[0, 1, 2, 4, 5]), ["dspark_target_layer_ids"]),
    "sglang: nested mask": (IN_PLACE, config("dflash_config", mask_token_id=5), ["dflash_config.mask_token_id"]),
    "sglang: nested block": (IN_PLACE, config("dflash_config", block_size=9), ["dflash_config.block_size"]),
    "sglang: the last layer": (BLOCK, config(target_layer_ids=[0, 1, 2, 4, 7]), ["7"]),
    "sglang: dtype": (BLOCK, config(dtype="float16"), ["is float32, not float16"]),
    "sglang: mode of its configuration": (
        BLOCK, lambda directory: (directory / "config.json").chmod(0o400), ["config.json", "400"],
    ),
    "speculators: kind": (BLOCK, config(speculators_model_type="dflash"), ["speculators_model_type", "dspark"]),
    "speculators: layers of our count": (BLOCK, config(**{AUX: [-1, 0, 1, 3, 5]}), [AUX]),
    "speculators: a layer twice": (
        BLOCK, config(target_layer_ids=None, **{AUX: [1, 1, 3, 5, 7]}), ["strictly increasing"],
    ),
    "speculators: layers not ascending": (
        EAGLE, config(target_layer_ids=None, **{EAGLE_AUX: [2, 1, 3, 5, 7]}), ["strictly increasing"],
    ),
    "speculators: the last layer": (EAGLE, config(target_layer_ids=None, **{EAGLE_AUX: [1, 2, 3, 5, 8]}), ["7"]),
    "speculators: slots not said": (BLOCK, config(sample_from_anchor=None), ["sample_from_anchor is missing"]),
    "speculators: the other slots": (IN_PLACE, config(sample_from_anchor=True), ["DSparkSpeculator"]),
    "speculators: causal by its default": (
        IN_PLACE, config(sliding_window_non_causal=None), ["sliding_window_non_causal is missing"],
    ),
    "speculators: norm not said": (EAGLE, config(norm_before_residual=None), ["norm_before_residual is missing"]),
    "speculators: tokens per round": (BLOCK, tokens(3), ["speculators_config.proposal_methods"]),
    "speculators: no target": (BLOCK, config("speculators_config", verifier=None), ["verifier"]),
    "speculators: head dim": (BLOCK, config(BODY, head_dim=None), [f"{BODY}.head_dim is missing"]),
    "speculators: a size beyond all memory": (BLOCK, config(BODY, hidden_size=10**12), ["hidden_size", str(10**12)]),
    "speculators: rope, old notation": (BLOCK, config(BODY, rope_theta=5e5), ["rope_theta"]),
    "speculators: rope, new notation": (BLOCK, config(BODY, **MOVED), ["rope"]),
    "speculators: tied tables": (EAGLE, config(BODY, tie_word_embeddings=True), [f"{BODY}.tie_word_embeddings"]),
    "speculators: a Llama body": (EAGLE, config(BODY, model_type="llama"), ["llama"]),
    "speculators: another target's width": (EAGLE, config(target_hidden_size=64), ["target_hidden_size"]),
    "speculators: a head less": (
        BLOCK, tensors(lambda found: found.pop(HEAD)), [f"{HEAD} is missing"],
    ),
    "deepspec: architecture": (BLOCK, config(architectures=["DFlashDraftModel"]), ["architectures"]),
    "deepspec: layers that vLLM would read": (BLOCK, config(**{EAGLE_AUX: [0, 1, 2, 4, 6]}), ["target_layer_ids"]),
    "deepspec: slots, other name": (BLOCK, config(dspark_bonus_anchor=True), ["dspark_bonus_anchor"]),
    "deepspec: rope, old notation": (BLOCK, config(rope_theta=5e5), ["rope_theta"]),
    "deepspec: rope, new notation": (BLOCK, config(**MOVED), ["rope"]),
    "deepspec: dtype": (BLOCK, tensors(lambda found: found.update({HEAD: found[HEAD].float()})), ["float32"]),
    "deepspec: tied tables": (BLOCK, tensors(lambda found: found.pop("lm_head.weight")), ["lm_head.weight is missing"]),
    "deepspec: tied tables, said": (EAGLE, config(tie_word_embeddings=True), ["tie_word_embeddings"]),
    "deepspec: confidence's input": (BLOCK, config(confidence_head_with_markov=False), ["confidence_head.proj"]),
    "deepspec: depth": (EAGLE, config(num_target_layers=6), ["6"]),
    "deepspec: mode of the weights": (BLOCK, lambda directory: (directory / WEIGHTS).chmod(0o640), [WEIGHTS, "640"]),
    "deepspec: offsets": (
        EAGLE, tensors(lambda found: found.update(d2t=torch.zeros(61, dtype=torch.int64))), ["d2t", "vocabulary"],
    ),
}  # fmt: skip
"""`format: fault` -> a row of the table, the fault, words of the flaw."""


@pytest.mark.parametrize("what", FAULTS)
def test_a_seeded_fault_is_named(what: str, exports: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    form, (row, change, words) = what.partition(":")[0], FAULTS[what]
    directory = shutil.copytree(exports[form, row], tmp_path / "out")
    tmp_path.chmod(0o755)
    directory.chmod(0o755)
    for file in directory.iterdir():
        file.chmod(0o644)
    assert FORMATS[form].check(directory) == []
    change(directory)
    flaws = " ".join(FORMATS[form].check(directory))
    assert [word for word in words if word not in flaws] == []


def test_every_engine_has_faults() -> None:
    assert {what.partition(":")[0] for what in FAULTS} == set(ENGINES) == set(READS)


def index(change_it: Callable[[dict[str, str]], Any]) -> Change:
    """Change which file the index says a tensor is in."""

    def change(directory: Path) -> None:
        written = json.loads((directory / INDEX).read_text())
        change_it(written["weight_map"])
        (directory / INDEX).write_text(json.dumps(written))

    return change


def part(change_it: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Change the tensors of the second of three files."""

    def change(directory: Path) -> None:
        found = load_file(directory / SECOND)
        change_it(found)
        save_file(found, directory / SECOND)
        (directory / SECOND).chmod(0o644)

    return change


INDEX, SECOND, FIRST_TENSOR = "model.safetensors.index.json", "model-00002-of-00003.safetensors", "embed_tokens.weight"
TENSOR = "hidden_norm.weight"

SHARD_FAULTS: dict[str, tuple[Change, list[str]]] = {
    "a file is missing": (lambda directory: (directory / SECOND).unlink(), [SECOND, "missing", INDEX]),
    "a tensor in two files": (
        part(lambda found: found.update({FIRST_TENSOR: torch.zeros(61, 32)})), [FIRST_TENSOR, SECOND, "and in"],
    ),
    "a tensor in no file": (part(lambda found: found.pop(TENSOR)), [TENSOR, SECOND, "does not hold it"]),
    "a tensor neither in a file nor in the index": (
        lambda at: (part(lambda found: found.pop(TENSOR))(at), index(lambda mapped: mapped.pop(TENSOR))(at)),
        [f"tensor {TENSOR} is missing"],
    ),
    "another file than the index says": (
        index(lambda at: at.update({FIRST_TENSOR: SECOND})), [FIRST_TENSOR, SECOND, "does not hold it"],
    ),
    "a file outside": (index(lambda at: at.update({TENSOR: "../a.safetensors"})), ["../a.safetensors", TENSOR]),
    "no index": (lambda directory: (directory / INDEX).unlink(), [SECOND, INDEX]),
    "two sets of weights": (
        lambda directory: shutil.copy(directory / SECOND, directory / WEIGHTS), [WEIGHTS, INDEX, "two sets"],
    ),
    "a damaged file": (lambda directory: os.truncate(directory / SECOND, 900), [SECOND, "safetensors"]),
    "a shape": (part(lambda found: found.update({TENSOR: torch.ones(31)})), [f"{TENSOR} has shape [31], not [32]"]),
    "a dtype": (
        part(lambda found: found.update({TENSOR: found[TENSOR].half()})), [f"{TENSOR} is float16, not float32"],
    ),
    "a value": (part(lambda found: found[TENSOR].fill_(torch.inf)), [f"{TENSOR} has values that are not finite"]),
    "an unknown tensor": (part(lambda found: found.update(more=torch.ones(1))), ["more is not known"]),
    "mode of a file": (lambda directory: (directory / SECOND).chmod(0o600), [SECOND, "600"]),
    "mode of the index": (lambda directory: (directory / INDEX).chmod(0o600), [INDEX, "600"]),
}  # fmt: skip
"""What is wrong with weights in several files -> the fault, words of the flaw."""


@pytest.mark.parametrize("what", SHARD_FAULTS)
def test_a_fault_of_weights_in_several_files_is_named(
    what: str, exports: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    change, words = SHARD_FAULTS[what]
    directory = shutil.copytree(exports["vllm", BLOCK], tmp_path / "out")
    directory.chmod(0o755)
    split(directory)
    change(directory)
    flaws = " ".join(FORMATS["vllm"].check(directory))
    assert [word for word in words if word not in flaws] == []


@pytest.mark.parametrize("form", FORMATS)
def test_weights_in_several_files_are_as_good_as_one(
    form: str, exports: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """The check passes, and an export of such a directory has the same bytes as one of the single file."""
    directory = shutil.copytree(exports[form, BLOCK], tmp_path / "out")
    directory.chmod(0o755)
    split(directory)
    assert FORMATS[form].check(directory) == []
    if form == "deepspec":
        for source in (directory, exports[form, BLOCK]):
            FORMATS["vllm"].write(source, tmp_path / f"again {source.name}", "some/target")
        first, second = sorted(tmp_path.glob("again *"))
        assert (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("engine", "form", "row", "read"),
    [
        ("vllm", "vllm", EAGLE, "vllm"),
        ("vllm", "speculators", EAGLE, "speculators"),
        ("vllm", "speculators", NEXT_TOKEN, "speculators"),
        ("vllm", "deepspec", BLOCK, "deepspec"),
        ("sglang", "deepspec", GATED, "sglang"),
        ("sglang", "sglang", IN_PLACE, "sglang"),
        ("speculators", "speculators", GATED, "speculators"),
        ("deepspec", "deepspec", NEXT_TOKEN, "deepspec"),
    ],
)
def test_an_engine_reads_other_formats_too(
    engine: str, form: str, row: str, read: str, exports: dict[tuple[str, str], Path]
) -> None:
    assert check_for(engine, exports[form, row]) == (read, [])


@pytest.mark.parametrize(
    ("engine", "form", "row", "meant", "words"),
    [
        ("vllm", "deepspec", EAGLE, "vllm", "Qwen3Eagle3Model"),
        ("vllm", "deepspec", NEXT_TOKEN, "vllm", "markov_rank"),
        ("vllm", "deepspec", GATED, "vllm", "vanilla head only"),
        ("vllm", "speculators", GATED, "speculators", "vanilla head only"),
        ("sglang", "deepspec", NO_HEAD, "sglang", "markov_rank"),
        ("sglang", "speculators", BLOCK, "sglang", ""),
        ("sglang", "vllm", EAGLE, "sglang", "normalises no queries"),
        ("speculators", "vllm", BLOCK, "speculators", "speculators_model_type"),
    ],
)
def test_what_an_engine_does_not_read_is_named(
    engine: str, form: str, row: str, meant: str, words: str, exports: dict[tuple[str, str], Path]
) -> None:
    """Also where the directory is fine for others."""
    found, flaws = check_for(engine, exports[form, row])
    assert found == meant
    assert flaws
    assert words in " ".join(flaws)


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with refused(RecipeError, "llama.cpp", where="--engine"):
        draft_export.check_for("llama.cpp", tmp_path)
