"""Drafts in the layouts of others, taken over: back and forth with the same bits, and what cannot be run, by name."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.drafts import algorithm_of
from deepspec.drafts.layouts import LAYOUTS, layout_of, published_config
from deepspec.errors import IncompatibleDraft
from deepspec.export import FORMATS
from deepspec.export.importing import import_draft
from deepspec.export.matrix import ENGINES, ROWS, cell
from deepspec.targets.directory import read_spec
from deepspec.targets.family import TargetSpec
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.foreign_drafts import specforge, zlab
from tests.fixtures.published import trained
from tests.fixtures.refused import refused
from tests.unit.test_export import DEPTH
from tests.unit.test_export_engines import KINDS

WEIGHTS, TABLES = "model.safetensors", ("embed_tokens.weight", "lm_head.weight")
EAGLE, BLOCK, IN_PLACE = "eagle3", "dspark, vanilla head", "dflash, in_place"
EXPORTED = [
    (form, family, row)
    for form in ENGINES
    for family in sorted(TARGETS)
    for row in ROWS
    if cell(form, family, row).architecture
]
BY_HAND = [
    ("z-lab", "qwen3", "dflash, in_place"),
    ("specforge", "qwen3", "dflash, in_place"),
    *(("specforge", "qwen3", row) for row in ROWS if row == "eagle3" or row.startswith("dspark")),
]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {name: make(folder / name, **DEPTH[name]) for name, make in TARGETS.items()}


def our_draft(target: Path, row: str, out: Path, *, rounded: bool = False, **fields: Any) -> Path:
    """A draft whose every weight matters; where it is rounded, all of them are exact in bfloat16."""
    algorithm, kind = KINDS[row]
    draft = trained(target, algorithm, out, **kind, **fields)
    generator = torch.Generator().manual_seed(11)
    tensors = load_file(draft / WEIGHTS)
    for name in sorted(tensors.keys() - set(TABLES)):
        tensors[name] += 0.3 * torch.randn(tensors[name].shape, generator=generator)
    if rounded:
        tensors = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}
    save_file(tensors, draft / WEIGHTS)
    return draft


def write(layout: str, draft: Path, out: Path) -> Path:
    if layout in FORMATS:
        FORMATS[layout].write(draft, out, "some/target")
        return out
    return {"z-lab": zlab, "specforge": specforge}[layout](draft, out)


def proposals(directory: Path, spec: TargetSpec) -> dict[str, torch.Tensor]:
    """What a draft proposes twice for two rows, with all logits that it draws from, and its confidences."""
    algorithm = algorithm_of(directory)
    drafter = algorithm.drafter(algorithm.load(directory, spec), algorithm.read_config(directory))
    generator, found = torch.Generator().manual_seed(5), {}
    drafter.allocate(2, 32)
    for call, start in enumerate((0, 6)):
        states = torch.randn(2, 6, len(drafter.layer_ids), spec.hidden_size, generator=generator)
        tokens = torch.randint(0, spec.vocab_size, (2, 7), generator=generator)
        drafter.advance([0, 1], states, tokens[:, :6], [start] * 2, [6] * 2)

        def draw(logits: torch.Tensor, position: int, call: int = call) -> tuple[torch.Tensor, None]:
            found[f"{call}, logits {position}"] = logits.clone()
            return logits.argmax(-1), None

        proposal = drafter.propose([0, 1], tokens[:, 6], [start + 6] * 2, draw)
        found[f"{call}, tokens"] = proposal.tokens_RK
        if proposal.confidence_RK is not None:
            found[f"{call}, confidence"] = proposal.confidence_RK
    return found


@pytest.mark.parametrize(("layout", "family", "row"), [*EXPORTED, *BY_HAND])
def test_back_and_forth(layout: str, family: str, row: str, targets: dict[str, Path], tmp_path: Path) -> None:
    """Weights and proposals have the same bits; a head that adds nothing comes back as a head."""
    spec = read_spec(targets[family])
    # With the embedding's output, where the layout can say it: it is the engines' number 0.
    layers = (0, 1, 2, 4, 6) if layout == "sglang" or (layout, row[:6]) == ("deepspec", "eagle3") else (-1, 0, 2, 4, 6)
    rounded = layout == "deepspec"
    ours = our_draft(targets[family], row, tmp_path / "ours", rounded=rounded, target_layer_ids=layers)
    theirs, out = write(layout, ours, tmp_path / "theirs"), tmp_path / "out"
    imported = import_draft(theirs, spec, out)
    before, after = load_file(ours / WEIGHTS), load_file(out / WEIGHTS)
    added = {name: tensor for name, tensor in after.items() if name not in before}
    assert all(torch.equal(after[name].float(), tensor) for name, tensor in before.items())
    assert not any(bool(tensor.any()) for tensor in added.values())
    assert imported.num_tensors == len(after)
    found, expected = (json.loads((folder / "config.json").read_text()) for folder in (out, ours))
    same = ("target_layer_ids", "mask_token_id", "block_size", "num_hidden_layers", "num_target_layers")
    assert {name: found.get(name) for name in same} == {name: expected.get(name) for name in same}
    assert found.get("sample_from_anchor", True) == expected.get("sample_from_anchor", True)
    assert found.get("markov_rank", 0) == (1 if added else expected.get("markov_rank", 0))
    if "ttt_length" in expected and layout == "specforge":
        expected["ttt_length"] = 7  # it says no number, which is said
        assert "ttt_length" in imported.assumed[0]
        (ours / "config.json").write_text(json.dumps(expected))
    here, there = proposals(ours, spec), proposals(out, spec)
    assert here.keys() <= there.keys()
    assert all(torch.equal(there[name], tensor) for name, tensor in here.items())


@pytest.mark.parametrize("layout", ["z-lab", "specforge", "speculators"])
def test_tables_that_are_not_there_are_the_targets_and_that_is_said(
    layout: str, targets: dict[str, Path], tmp_path: Path
) -> None:
    """speculators 0.9.0 saves neither embedding nor head of a block draft; the others never do."""
    ours = our_draft(targets["qwen3"], "dflash, in_place", tmp_path / "ours")
    theirs = write(layout, ours, tmp_path / "theirs")
    tensors = load_file(theirs / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if name not in TABLES}, theirs / WEIGHTS)
    imported = import_draft(theirs, read_spec(targets["qwen3"]), tmp_path / "out")
    assert imported.has_the_targets_tables
    assert [name for name in TABLES if name in imported.assumed[-1]] == list(TABLES)
    assert import_draft(ours, read_spec(targets["qwen3"]), tmp_path / "again").assumed == ()


@pytest.mark.parametrize(("layout", "row"), [(layout, row) for layout, _, row in BY_HAND])
def test_the_recipes_section_is_read_without_weights(
    layout: str, row: str, targets: dict[str, Path], tmp_path: Path
) -> None:
    ours = our_draft(targets["qwen3"], row, tmp_path / "ours")
    theirs = write(layout, ours, tmp_path / "theirs")
    (theirs / WEIGHTS).unlink()
    algorithm, config = published_config(theirs)
    expected = algorithm_of(ours).read_config(ours)
    assert algorithm is algorithm_of(ours)
    how_trained = {"num_draft_tokens", "num_anchors"}
    assert config.model_dump(exclude=how_trained) == expected.model_dump(exclude=how_trained)
    assert (config.num_draft_tokens == expected.num_draft_tokens) == (row != "eagle3")


def test_the_layout_is_what_config_json_says(targets: dict[str, Path], tmp_path: Path) -> None:
    """The folder's name says nothing."""
    found = {}
    for layout, row in (("z-lab", "dflash, in_place"), ("specforge", BLOCK), *((form, BLOCK) for form in ENGINES)):
        ours = our_draft(targets["qwen3"], row, tmp_path / layout / "ours")
        theirs = write(layout, ours, tmp_path / layout / "eagle3-dflash-speculators")
        found[layout] = layout_of(json.loads((theirs / "config.json").read_text())).name
    assert found == {
        "z-lab": "z-lab's DFlash",
        "specforge": "SpecForge",
        "vllm": "DeepSpec",
        "sglang": "DeepSpec",
        "speculators": "speculators",
        "deepspec": "DeepSpec",
    }
    assert set(found.values()) < {layout.name for layout in LAYOUTS}


def test_a_config_of_the_package_itself_is_read(targets: dict[str, Path], tmp_path: Path) -> None:
    """The fields are those that speculators 0.9.0 saves; they are no export of ours."""
    ours = our_draft(targets["qwen3"], "dspark, vanilla head", tmp_path / "ours")
    written = json.loads((ours / "config.json").read_text())
    heads = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")
    body = {**written, "use_cache": True, "tie_word_embeddings": True, "max_window_layers": 28, "sliding_window": None}
    for name in (*heads, "architectures", "dtype", "target_layer_ids", "mask_token_id", "block_size", "num_anchors"):
        body.pop(name)
    config = {
        "architectures": ["DSparkSpeculator"],
        "auto_map": {"": "config.DSparkSpeculatorConfig"},
        "aux_hidden_state_layer_ids": [one + 1 for one in written["target_layer_ids"]],
        "block_size": written["block_size"],
        "draft_vocab_size": written["vocab_size"],
        "mask_token_id": written["mask_token_id"],
        "model_type": "speculator_model",
        "sample_from_anchor": True,
        "sliding_window_non_causal": False,
        "speculators_config": {"algorithm": "dspark", "verifier": {"name_or_path": None, "architectures": []}},
        "speculators_model_type": "dspark",
        "speculators_version": "0.9.0",
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "transformer_layer_config": body,
        "transformers_version": "5.19.0",
        **{name: written[name] for name in heads},
    }
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text(json.dumps(config))
    save_file(load_file(ours / WEIGHTS), theirs / WEIGHTS)
    import_draft(theirs, read_spec(targets["qwen3"]), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {**written, "num_anchors": found["num_anchors"]}


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]


def fields(within: str = "", **values: Any) -> Change:
    """Set fields of config.json, or of a part of it; None removes one."""

    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        part = config.setdefault(within, {}) if within else config
        part.update(values)
        for name in [name for name, value in values.items() if value is None]:
            del part[name]

    return change


def reduced(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {"d2t": torch.arange(40), "lm_head.weight": tensors["lm_head.weight"][:40].clone()}
    config["draft_vocab_size"] = 40


def mapped(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["d2t"] = torch.zeros(61, dtype=torch.int64)
    tensors["d2t"][60] = -60


def partly(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["t2d"] = torch.arange(61) < 60


def llama(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config |= {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"}
    for name in ("q_norm", "k_norm"):
        tensors.pop(f"midlayer.self_attn.{name}.weight")


def twice(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.hidden_norm.weight"] = tensors["midlayer.hidden_norm.weight"].clone()


AUX, EAGLE_AUX, BODY = "aux_hidden_state_layer_ids", "eagle_aux_hidden_state_layer_ids", "transformer_layer_config"
NESTED = "dflash_config"

REFUSED: dict[str, tuple[str, Change, list[str]]] = {
    "speculators: mtp": (BLOCK, fields(speculators_model_type="mtp"), ["mtp", "eagle3, dflash"]),
    "speculators: peagle": (EAGLE, fields(speculators_model_type="peagle"), ["peagle"]),
    "speculators: xpress": (BLOCK, fields(speculators_model_type="xpress"), ["xpress"]),
    "speculators: dflash2": (IN_PLACE, fields(speculators_model_type="dflash2"), ["dflash2"]),
    "speculators: no body": (BLOCK, fields(transformer_layer_config=None), [BODY]),
    "speculators: a Llama body": (EAGLE, fields(BODY, model_type="llama"), ["model_type", "norms"]),
    "speculators: no layers": (BLOCK, fields(**{AUX: None}), [AUX, "missing"]),
    "speculators: no list of layers": (BLOCK, fields(**{AUX: "1, 2"}), [AUX, "1, 2"]),
    "speculators: layers of our count": (
        BLOCK,
        fields(**{AUX: [-1, 0, 2, 4, 6]}),
        ["target_layer_ids", AUX],
    ),
    "speculators: the last layer": (
        EAGLE,
        fields(target_layer_ids=None, **{EAGLE_AUX: [1, 2, 3, 5, 8]}),
        ["one lower", "7"],
    ),
    "speculators: layers in disorder": (
        EAGLE,
        fields(target_layer_ids=None, **{EAGLE_AUX: [2, 1, 3, 5, 7]}),
        ["increasing"],
    ),
    "speculators: slots not said": (BLOCK, fields(sample_from_anchor=None), ["sample_from_anchor"]),
    "speculators: heads in place": (BLOCK, fields(sample_from_anchor=False), ["in place"]),
    "speculators: the other slots": (IN_PLACE, fields(sample_from_anchor="no"), ["'no'"]),
    "speculators: norm not said": (EAGLE, fields(norm_before_residual=None), ["norm_before_residual"]),
    "speculators: norm of the residual": (
        EAGLE,
        fields(norm_before_residual=True),
        ["norm_before_residual", "True"],
    ),
    "speculators: norms of the states": (EAGLE, fields(fc_norm=True), ["fc_norm"]),
    "speculators: one norm of them": (EAGLE, fields(norm_before_fc=True), ["norm_before_fc"]),
    "speculators: a normed output": (EAGLE, fields(norm_output=True), ["norm_output"]),
    "speculators: a reduced vocabulary": (EAGLE, reduced, ["draft_vocab_size", "40", "61"]),
    "speculators: another target's width": (EAGLE, fields(target_hidden_size=64), ["target_hidden"]),
    "speculators: a mapped vocabulary": (EAGLE, mapped, ["d2t", "61"]),
    "speculators: a part of it": (EAGLE, partly, ["t2d"]),
    "speculators: windows": (
        IN_PLACE,
        fields(BODY, layer_types=["sliding_attention"]),
        ["layer_types"],
    ),
    "speculators: another head": (BLOCK, fields(markov_head_type="mixed"), ["markov_head_type", "mixed"]),
    "speculators: no mask": (BLOCK, fields(mask_token_id=None), ["mask_token_id", "missing"]),
    "vllm: a Llama body": (EAGLE, fields(architectures=["Eagle3LlamaForCausalLM"]), ["architectures", "norms"]),
    "vllm: layers that differ": (EAGLE, fields(**{EAGLE_AUX: [0, 1, 2, 4, 6]}), ["target_layer_ids", EAGLE_AUX]),
    "vllm: several layers": (EAGLE, fields(num_hidden_layers=2), ["num_hidden_layers", "2", "1 layer"]),
    "speculators: several layers": (EAGLE, fields(BODY, num_hidden_layers=2), [f"{BODY}.num_hidden_layers", "2"]),
    "vllm: a scaled head": (EAGLE, fields(logit_scale=0.5), ["logit_scale", "0.5"]),
    "vllm: parallel": (EAGLE, fields(pard_token=3), ["pard_token"]),
    "vllm: the other slots": (BLOCK, fields(sample_from_anchor=None, dspark_bonus_anchor=True), ["in place"]),
    "vllm: slots that contradict": (BLOCK, fields(dspark_bonus_anchor=True), ["dspark_bonus_anchor", "opposite"]),
    "vllm: causal": (BLOCK, fields(is_causal=True), ["is_causal", "see each other"]),
    "specforge: a Llama body": (EAGLE, llama, ["architectures", "LlamaForCausalLMEagle3", "norms"]),
    "specforge: the states alone": (
        EAGLE,
        fields("eagle_config", use_aux_hidden_state=False),
        ["eagle_config.use_aux_hidden_state"],
    ),
    "specforge: a tensor twice": (EAGLE, twice, ["hidden_norm", "twice"]),
    "specforge: domino": (BLOCK, fields(NESTED, projector_type="domino"), ["projector_type", "domino"]),
    "specforge: latent attention": (BLOCK, fields(NESTED, attention_mode="mla"), ["attention_mode", "mla"]),
    "specforge: its own fields": (BLOCK, fields(NESTED, gru_hidden_dim=8), [f"{NESTED}.gru_hidden_dim"]),
    "specforge: two masks": (BLOCK, fields(mask_token_id=5), [f"{NESTED}.mask_token_id", "5"]),
    "specforge: causal": (BLOCK, fields(is_causal=True), ["is_causal"]),
    "z-lab: causal": (IN_PLACE, fields(NESTED, causal=True), [f"{NESTED}.causal"]),
    "z-lab: windows": (IN_PLACE, fields(NESTED, use_swa=True, swa_window_size=64), [f"{NESTED}.use_swa"]),
    "z-lab: DFlash2": (
        IN_PLACE,
        fields(architectures=["DFlash2DraftModel"]),
        ["architectures", "DFlashDraftModel"],
    ),
    "z-lab: convolutions": (IN_PLACE, fields(NESTED, conv_kernel_size=2), [f"{NESTED}.conv_kernel_size"]),
    "z-lab: a head": (IN_PLACE, fields(markov_rank=6), ["markov_rank", "projector_type"]),
    "z-lab: no mask": (IN_PLACE, fields(NESTED, mask_token_id=None), [f"{NESTED}.mask_token_id", "missing"]),
    "z-lab: no layers": (IN_PLACE, fields(NESTED, target_layer_ids=None), [f"{NESTED}.target_layer_ids"]),
    "z-lab: another target": (IN_PLACE, fields(hidden_size=48), ["hidden_size", "48", "32"]),
    "z-lab: another rope": (IN_PLACE, fields(rope_theta=5e5), ["rope", "500000.0"]),
}
"""`layout: fault` -> a row of the table, the fault, words of the refusal."""


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(what: str, targets: dict[str, Path], tmp_path: Path) -> None:
    layout, (row, change, named) = what.partition(":")[0], REFUSED[what]
    where = f"theirs/{WEIGHTS}" if change in (mapped, partly, twice) else "theirs/config.json"
    theirs = write(layout, our_draft(targets["qwen3"], row, tmp_path / "ours"), tmp_path / "theirs")
    config, tensors = json.loads((theirs / "config.json").read_text()), load_file(theirs / WEIGHTS)
    change(config, tensors)
    (theirs / "config.json").write_text(json.dumps(config))
    save_file(tensors, theirs / WEIGHTS)
    with refused(IncompatibleDraft, *named, where=where):
        import_draft(theirs, read_spec(targets["qwen3"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


ODD = [None, [], {}, "x", 1.5, True, -1, 10**12, [1, "a"], [[1]], {"a": {}}]


def places(config: dict[str, Any], within: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of a config.json, nested ones too."""
    found = []
    for name, value in config.items():
        found.append((*within, name))
        found += places(value, found[-1]) if isinstance(value, dict) else []
    return found


@pytest.mark.parametrize("row", [EAGLE, BLOCK])
@pytest.mark.parametrize("layout", ["vllm", "speculators", "specforge"])
def test_whatever_a_field_is_the_error_is_ours(layout: str, row: str, targets: dict[str, Path], tmp_path: Path) -> None:
    theirs = write(layout, our_draft(targets["qwen3"], row, tmp_path / "ours"), tmp_path / "theirs")
    whole = (theirs / "config.json").read_text()
    read = 0
    for *within, name in places(json.loads(whole)):
        for value in ODD:
            part = config = json.loads(whole)
            for outer in within:
                part = part[outer]
            part[name] = value
            (theirs / "config.json").write_text(json.dumps(config))
            with contextlib.suppress(IncompatibleDraft):
                published_config(theirs)
                read += 1
    assert 0 < read < len(ODD) * len(places(json.loads(whole)))
