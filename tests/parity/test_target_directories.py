"""Variants of a small target's directory: read as transformers reads them, or refused by file and field.

The reference is transformers' own model and tokenizer, loaded from the same directory, and the `tokenizers` library's
reading of tokenizer.json.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.chat.tokenizer_files import REBUILT, REBUILT_TOKENS, TokenizerFiles, id_rules
from deepspec.errors import DataError, RecipeError, UnsupportedTarget
from deepspec.planning.before_run import estimate_run
from deepspec.planning.estimate import spec_of
from deepspec.recipe import load_recipe
from deepspec.store import open_store
from deepspec.targets.directory import check_mask_token, read_spec, read_target
from deepspec.targets.model import Target
from tasks.resolve import target_of
from tasks.runtime.run import Run
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_gemma4, tiny_qwen3
from tests.fixtures.tokenizers import CHAT_TEMPLATE, tiny_gemma4_tokenizer, tiny_tokenizer

V = 420
TEXT = "How many apples, 12 or 345?  Mira's 7 apples;\n\n<|im_end|> naïve words."
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3000000000\n"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "qwen3"
    return tiny_tokenizer(tiny_qwen3(folder, num_layers=2, vocab_size=V))


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "gemma4"
    return tiny_gemma4_tokenizer(tiny_gemma4(folder, layer_types="sf", vocab_size=V))


def edit(file: str, **fields: Any) -> Change:
    """Set fields of a JSON file; `None` stands for null, `...` takes the field out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | fields
        (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))

    return change


def config(**fields: Any) -> Change:
    return edit("config.json", **fields)


def rope(**fields: Any) -> Change:
    return config(rope_parameters=fields)


def write(file: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-20])  # type: ignore[return-value]


def remove(*files: str) -> Change:
    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def sharded(*changes: Change, keep_single: bool = False, index: dict[str, Any] | None = None) -> Change:
    """Two shards and their index in place of the one file, then `changes`."""

    def change(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        if not keep_single:
            (folder / "model.safetensors").unlink()
        mapping = {}
        for number, part in enumerate((sorted(found)[::2], sorted(found)[1::2]), start=1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: found[name] for name in part}, folder / file, metadata={"format": "pt"})
            mapping |= dict.fromkeys(part, file)
        written = {"metadata": {}, "weight_map": mapping} if index is None else index
        (folder / "model.safetensors.index.json").write_text(json.dumps(written))
        for further in changes:
            further(folder)

    return change


def mapped_elsewhere(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    content["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    file.write_text(json.dumps(content))


def own_head(*, equal: bool) -> Change:
    def change(folder: Path) -> None:
        config(tie_word_embeddings=True)(folder)
        if equal:
            tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(folder)

    return change


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def rules(change: Callable[[dict[str, Any]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return rewrite


def as_class(name: str) -> Change:
    """The rules that the class would build, and its name."""
    built = REBUILT[name]

    def change(content: dict[str, Any]) -> None:
        content |= {part: built[part] for part in ("normalizer", "pre_tokenizer")}
        content["model"] |= built["model"]

    def trimmed(content: dict[str, Any]) -> None:
        content["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False

    return both(rules(change), rules(trimmed), edit("tokenizer_config.json", tokenizer_class=name))


def added(token: str, number: int) -> Change:
    entry = {"id": number, "content": token, "special": True, "normalized": False}
    entry |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return rules(lambda content: content["added_tokens"].append(entry))


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
HEAD = "lm_head.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"

READ: dict[str, Change] = {
    "as it is": lambda _: None,
    "yarn": rope(**YARN),
    "yarn without its original length": rope(**{k: v for k, v in YARN.items() if not k.startswith("original")}),
    "llama3": rope(**LLAMA3),
    "old notation": config(rope_parameters=..., rope_theta=500.0, rope_scaling={"type": "linear", "factor": 3.0}),
    "both notations, the same": config(rope_parameters=YARN, rope_scaling=YARN),
    "null in the old notation": config(rope_scaling=None),
    "quantization_config null": config(quantization_config=None),
    "equal head, tied": own_head(equal=True),
    "own head, tied": own_head(equal=False),
    "no head, tied": both(config(tie_word_embeddings=True), tensors(lambda t: t.pop(HEAD))),
    "shards": sharded(),
    "one file by an index": lambda folder: write(
        "model.safetensors.index.json",
        json.dumps({"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")}),
    )(folder),
    "half precision": tensors(lambda t: t.update({name: x.bfloat16() for name, x in t.items()})),
    "PreTrainedTokenizerFast": edit("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"),
    "Qwen2Tokenizer with its rules": as_class("Qwen2Tokenizer"),
    "template in the settings": both(
        remove("chat_template.jinja"), edit("tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    ),
    "named templates in the settings": both(
        remove("chat_template.jinja"),
        edit("tokenizer_config.json", chat_template=[{"name": "default", "template": CHAT_TEMPLATE}]),
    ),
    "template twice, the file counts": edit("tokenizer_config.json", chat_template="{{ messages }}"),
    "a template for tools": write("additional_chat_templates/tool_use.jinja", "{{ tools }}" + CHAT_TEMPLATE),
    "a date in a comment": write("chat_template.jinja", "{# strftime_now #}random: " + CHAT_TEMPLATE),
    "several end tokens": edit("generation_config.json", eos_token_id=[2, 7]),
    "no generation config": remove("generation_config.json"),
}

REFUSED: dict[str, tuple[Change, str, str]] = {
    # variant: (change, file, words)
    "config cut": (cut("config.json"), "config.json", "JSON"),
    "config not fetched": (write("config.json", POINTER), "config.json", "LFS"),
    "config of nested lists": (write("config.json", "[" * 100_000), "config.json", "JSON"),
    "a field twice": (
        write("config.json", '{"model_type": "qwen3", "vocab_size": 1, "vocab_size": 2}'),
        "config.json",
        "vocab_size",
    ),
    "old notation differs": (config(rope_scaling=YARN), "config.json", "rope_scaling"),
    "theta twice": (config(rope_theta=5e5), "config.json", "rope_theta"),
    "type twice": (rope(**YARN, type="linear"), "config.json", "type"),
    "no factor": (rope(rope_type="linear", rope_theta=1e4), "config.json", "factor"),
    "a factor in quotes": (rope(**{**YARN, "factor": "4"}), "config.json", "factor"),
    "original length twice": (
        both(rope(**YARN), config(original_max_position_embeddings=64)),
        "config.json",
        "original_max",
    ),
    "dynamic positions": (rope(rope_type="dynamic", rope_theta=1e4, factor=2.0), "config.json", "dynamic"),
    "longrope positions": (rope(rope_type="longrope", rope_theta=1e4, short_factor=[1.0]), "config.json", "longrope"),
    "partial positions": (config(partial_rotary_factor=0.5), "config.json", "partial_rotary_factor"),
    "positions are a list": (config(rope_parameters=[1]), "config.json", "rope_parameters"),
    "tied in quotes": (config(tie_word_embeddings="false"), "config.json", "tie_word_embeddings"),
    "eps not a number": (config(rms_norm_eps=float("nan")), "config.json", "rms_norm_eps"),
    "half a layer": (config(num_hidden_layers=1.5), "config.json", "num_hidden_layers"),
    "heads do not divide": (config(num_key_value_heads=3), "config.json", "num_key_value_heads"),
    "quantised": (config(quantization_config={"quant_method": "awq"}), "config.json", "quantization_config"),
    "quantised once": (config(compression_config={}), "config.json", "compression_config"),
    "no head dim": (config(head_dim=...), "model.safetensors", "shape"),
    "fewer layers": (config(num_hidden_layers=1), "", "layers.1"),
    "more layers": (config(num_hidden_layers=3), "", "layers.2"),
    "another vocabulary": (config(vocab_size=V - 1), "model.safetensors", f"[{V}, 32]"),
    "no head, not tied": (tensors(lambda t: t.pop(HEAD)), "", HEAD),
    "eight bits": (
        tensors(lambda t: t.update({GATE: t[GATE].to(torch.float8_e4m3fn)})),
        "model.safetensors",
        "F8_E4M3",
    ),
    "packed in words": (
        tensors(lambda t: t.update({GATE.replace("weight", "qweight"): t.pop(GATE).int()})),
        "",
        "gate_proj",
    ),
    "a bias": (tensors(lambda t: t.update({GATE.replace("weight", "bias"): torch.ones(48)})), "", "gate_proj.bias"),
    "weights not fetched": (write("model.safetensors", POINTER), "model.safetensors", "LFS"),
    "weights cut": (cut("model.safetensors"), "model.safetensors", "bytes"),
    "weights of noise": (write("model.safetensors", b"\xff" * 60), "model.safetensors", "header"),
    "pickles": (both(remove("model.safetensors"), write("pytorch_model.bin", b"")), "", ".bin"),
    "shards next to the file": (sharded(keep_single=True), "", "model-00001-of-00002"),
    "a stray shard": (write("model-00002-of-00002.safetensors", b""), "", "model-00002-of-00002"),
    "no shard": (sharded(remove("model-00002-of-00002.safetensors")), "index.json", "model-00002-of-00002"),
    "no index": (sharded(remove("model.safetensors.index.json")), "", "index.json"),
    "a shard cut": (sharded(cut("model-00001-of-00002.safetensors")), "model-00001", "bytes"),
    "index without a map": (sharded(index={"metadata": {}}), "index.json", "weight_map"),
    "index leads outside": (sharded(index={"weight_map": {HEAD: "../x.safetensors"}}), "index.json", "../x"),
    "index is wrong": (sharded(mapped_elsewhere), "index.json", HEAD),
    "adapter": (write("adapter_config.json", '{"peft_type": "LORA"}'), "adapter_config.json", "adapter"),
    "adapter weights": (write("adapter_model.safetensors", b""), "adapter_model.safetensors", "adapter"),
    "quantised by another file": (write("hf_quant_config.json", "{}"), "hf_quant_config.json", "quantised"),
    "no tokenizer": (remove("tokenizer.json"), "", "tokenizer.json"),
    "tokenizer cut": (cut("tokenizer.json"), "tokenizer.json", "JSON"),
    "tokenizer not fetched": (write("tokenizer.json", POINTER), "tokenizer.json", "LFS"),
    "settings cut": (cut("tokenizer_config.json"), "tokenizer_config.json", "JSON"),
    "class rebuilds": (
        edit("tokenizer_config.json", tokenizer_class="Qwen2Tokenizer"),
        "tokenizer_config.json",
        "Qwen2Tokenizer",
    ),
    "class by model type": (
        edit("tokenizer_config.json", tokenizer_class=...),
        "tokenizer_config.json",
        "Qwen2Tokenizer",
    ),
    "class of another family": (
        edit("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"),
        "tokenizer_config.json",
        "Llama",
    ),
    "token beyond the embedding": (added("<far>", V), "tokenizer.json", "<far>"),
    "one id for two tokens": (added("<twin>", 5), "tokenizer.json", "<twin>"),
    "settings name a new token": (
        edit("tokenizer_config.json", extra_special_tokens=["<new>"]),
        "tokenizer_config.json",
        "<new>",
    ),
    "settings number otherwise": (
        edit("tokenizer_config.json", added_tokens_decoder={"7": {"content": "<|im_end|>"}}),
        "tokenizer_config.json",
        "added_tokens_decoder.7",
    ),
    "no template": (remove("chat_template.jinja"), "", "chat template"),
    "a template by another name only": (
        both(remove("chat_template.jinja"), write("additional_chat_templates/rag.jinja", CHAT_TEMPLATE)),
        "",
        "chat template",
    ),
    "a template of the date": (
        write("chat_template.jinja", "{{ strftime_now('%Y') }}" + CHAT_TEMPLATE),
        "",
        "strftime_now",
    ),
    "a tool template of the date": (
        write("additional_chat_templates/tool_use.jinja", "{%- set d = strftime_now('%d') %}{{ d }}"),
        "",
        "strftime_now",
    ),
    "a template of chance": (write("chat_template.jinja", "{{ ['a', 'b'] | random }}" + CHAT_TEMPLATE), "", "random"),
    "a template of nonsense": (write("chat_template.jinja", "{{ lipsum() }}" + CHAT_TEMPLATE), "", "lipsum"),
    "a template that is no text": (write("chat_template.jinja", b"\xff\xfe"), "chat_template.jinja", "read"),
    "generation config cut": (cut("generation_config.json"), "generation_config.json", "JSON"),
    "null among end tokens": (
        edit("generation_config.json", eos_token_id=[1, None]),
        "generation_config.json",
        "eos_token_id",
    ),
    "an end token in quotes": (
        edit("generation_config.json", eos_token_id="1"),
        "generation_config.json",
        "eos_token_id",
    ),
    "an end token beyond": (
        both(remove("generation_config.json"), config(eos_token_id=V)),
        "config.json",
        "eos_token_id",
    ),
}

GEMMA4_READ: dict[str, Change] = {
    "as it is": lambda _: None,
    "own head, tied": tensors(lambda t: t.update({HEAD: t["model.embed_tokens.weight"].flip(0).clone()})),
    "shards": sharded(),
}
GEMMA4_REFUSED: dict[str, tuple[Change, str, str]] = {
    "old notation as well": (config(rope_scaling=YARN), "config.json", "rope_scaling"),
    "no layer scalar": (tensors(lambda t: t.pop("model.layers.1.layer_scalar")), "", "layers.1.layer_scalar"),
    "class rebuilds": (
        edit("tokenizer_config.json", tokenizer_class="GemmaTokenizer"),
        "tokenizer_config.json",
        "Gemma",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_what_transformers_reads(qwen3: Path, tmp_path: Path, name: str) -> None:
    check_equal(changed(qwen3, tmp_path, READ[name]))


@pytest.mark.parametrize("name", GEMMA4_READ)
def test_so_it_is_of_gemma4(gemma4: Path, tmp_path: Path, name: str) -> None:
    check_equal(changed(gemma4, tmp_path, GEMMA4_READ[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_any_stage(qwen3: Path, tmp_path: Path, name: str) -> None:
    check_refused(changed(qwen3, tmp_path, REFUSED[name][0]), *REFUSED[name][1:])


@pytest.mark.parametrize("name", GEMMA4_REFUSED)
def test_so_it_is_refused_of_gemma4(gemma4: Path, tmp_path: Path, name: str) -> None:
    check_refused(changed(gemma4, tmp_path, GEMMA4_REFUSED[name][0]), *GEMMA4_REFUSED[name][1:])


def changed(plain: Path, tmp_path: Path, change: Change) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "target"))
    change(folder)
    return folder


def check_equal(folder: Path) -> None:
    """Logits, token ids and rendered conversations are those of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read_target(folder)
    target, ids = Target.load(folder), torch.arange(3, 60)[None]
    with torch.inference_mode():
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = reference(ids).logits
        # fp32 rounding of two orders of summation; what a wrong reading changes is of the size of the logits.
        torch.testing.assert_close(target.logits(target.forward(ids).final_BQD), expected, rtol=1e-4, atol=1e-4)
    ends = reference.generation_config.eos_token_id
    assert set(ends if isinstance(ends, list) else [ends]) <= set(target.eos_token_ids)
    tokenizer, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    own = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    assert own == tokenizer.encode(TEXT, add_special_tokens=False) == theirs.encode(TEXT, add_special_tokens=False)
    templates = dict(TokenizerFiles.read(folder).templates)
    assert theirs.chat_template in (templates, templates["default"])


def check_refused(folder: Path, file: str, words: str) -> None:
    """A plan, a dry run and loading say the same, naming file and field."""
    with refused(UnsupportedTarget, words, where=folder.name) as reading:
        read_target(folder)
    assert file in str(reading.value.where)
    recipe = load_recipe("tiny", [f"target.path={folder}", "draft.mask_token_id=410", "inputs=null"])
    run = Run(recipe, open_store(str(folder.parent / "store")), folder.parent / "home", dry=True)
    with refused(UnsupportedTarget, words) as running:
        target_of(run)
    assert str(running.value) == str(reading.value)
    if (folder / "tokenizer.json").exists():  # a plan does not need one
        with refused(UnsupportedTarget, words) as planning:
            spec_of(recipe)
        assert str(planning.value) == str(reading.value)


def test_a_plan_needs_the_configuration_only(qwen3: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((qwen3 / "config.json").read_bytes())
    recipe = load_recipe("tiny", [f"target.path={tmp_path}", "inputs=null"])
    assert spec_of(recipe).num_layers == 2
    shutil.copy(qwen3 / "model.safetensors", tmp_path)
    config(num_hidden_layers=4)(tmp_path)
    with refused(UnsupportedTarget, "layers.2", where=str(tmp_path)):
        spec_of(recipe)


def test_no_estimate_means_that_something_is_not_there_yet(qwen3: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    places = [f"target.path={qwen3}", f"data.source={rows}", "inputs=null", "draft.mask_token_id=410"]
    recipe = load_recipe("tiny", places)
    assert estimate_run(recipe, tmp_path) is None
    row = {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "yes " * 30}]}
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(50)))
    assert estimate_run(recipe, tmp_path) is not None
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(50)) + '{"messages": "none"}\n' * 20)
    with refused(DataError, "20 of 70", where="data.source"):
        estimate_run(recipe, tmp_path)
    with refused(UnsupportedTarget, "JSON", where=str(tmp_path / "target")):
        estimate_run(
            load_recipe("tiny", [*places, f"target.path={changed(qwen3, tmp_path, cut('config.json'))}"]), tmp_path
        )


@pytest.mark.parametrize(
    ("token", "named"), [(40, "ordinary text"), (1, "the chat template writes"), (2, "ends an answer")]
)
def test_a_mask_token_that_a_text_contains_is_refused(qwen3: Path, tmp_path: Path, token: int, named: str) -> None:
    spec = read_spec(changed(qwen3, tmp_path, edit("generation_config.json", eos_token_id=2)))
    with refused(RecipeError, named, where="draft.mask_token_id"):
        check_mask_token(spec, token)
    check_mask_token(spec, 0)
    check_mask_token(spec, V - 1)


def test_classes_that_rebuild_tokenizers_build_what_the_table_says() -> None:
    """transformers' own: a release that builds otherwise fails here, not in somebody's token ids."""
    import transformers

    for name, built in REBUILT.items():
        tokens = {token: number for number, token in enumerate(dict.fromkeys(REBUILT_TOKENS[name].values()))}
        made = getattr(transformers, name)(vocab=tokens, merges=[])
        assert id_rules(json.loads(made.backend_tokenizer.to_str())) == dict(built), name
        assert set(made.get_vocab()) == set(tokens), name
