"""Published drafts taken over: each algorithm with each family, and every broken directory by file and field."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepspec.data.chat.tokenizer import tokenizer_identity
from deepspec.drafts import ALGORITHMS, algorithm_of
from deepspec.drafts.files.public_files import origin_of, public_files
from deepspec.errors import IncompatibleDraft
from deepspec.export import FORMATS
from deepspec.export.importing import import_draft
from deepspec.store.reading.pieces import sha256_of
from deepspec.targets.directory import read_spec
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.published import README, publish, save_weights, trained
from tests.fixtures.refused import refused
from tests.fixtures.tokenizers import tiny_tokenizer

DEPTH = {"qwen3": {"num_layers": 8}, "gemma4": {"layer_types": "ssfssssf"}}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {name: write(folder / name, **DEPTH[name]) for name, write in TARGETS.items()}


@pytest.fixture(scope="module")
def published(targets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return publish(trained(targets["qwen3"], "dspark", folder / "ours"), folder / "public")


@pytest.fixture
def directory(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "public")


@pytest.mark.parametrize("family", sorted(TARGETS))
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_published_draft_is_a_draft_of_ours(targets: dict[str, Path], name: str, family: str, tmp_path: Path) -> None:
    spec = read_spec(targets[family])
    ours = trained(targets[family], name, tmp_path / "ours")
    public = publish(ours, tmp_path / "public")
    imported = import_draft(public, spec, tmp_path / "out")
    assert (imported.algorithm, imported.has_the_targets_tables) == (name, True)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (public / WEIGHTS).read_bytes()
    assert algorithm_of(tmp_path / "out") is ALGORITHMS[name]
    draft = ALGORITHMS[name].load(tmp_path / "out", spec, config=ALGORITHMS[name].read_config(ours), dtype="bfloat16")
    weights = load_file(public / WEIGHTS)
    assert imported.num_tensors == len(weights)
    assert all(torch.equal(weights[key], weight) for key, weight in draft.state_dict().items())
    # What training writes, but for the dtype, and nothing else: no field of unknown meaning gets in.
    written, trained_here = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", ours))
    assert written == trained_here | {"dtype": "bfloat16"}
    FORMATS["deepspec"].write(tmp_path / "out", tmp_path / "exported", "some/target")
    assert FORMATS["deepspec"].check(tmp_path / "exported") == []


def test_several_files_become_one(targets: dict[str, Path], published: Path, tmp_path: Path) -> None:
    spec = read_spec(targets["qwen3"])
    public = tmp_path / "public"
    public.mkdir()
    shutil.copy(published / "config.json", public)
    save_weights(load_file(published / WEIGHTS), public, shards=3)
    import_draft(public, spec, tmp_path / "out")
    import_draft(published, spec, tmp_path / "whole")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS]
    found, whole = (load_file(folder / WEIGHTS) for folder in (tmp_path / "out", tmp_path / "whole"))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_what_our_export_wrote_is_imported_with_the_same_weights(targets: dict[str, Path], tmp_path: Path) -> None:
    spec = read_spec(targets["qwen3"])
    ours = trained(targets["qwen3"], "dspark", tmp_path / "ours")
    FORMATS["deepspec"].write(ours, tmp_path / "exported", "some/target")
    import_draft(tmp_path / "exported", spec, tmp_path / "out")
    assert sha256_of(tmp_path / "out" / WEIGHTS) == sha256_of(tmp_path / "exported" / WEIGHTS)


def test_a_draft_in_the_other_layout_of_blocks_keeps_it(targets: dict[str, Path], tmp_path: Path) -> None:
    ours = trained(targets["qwen3"], "dflash", tmp_path / "ours", slots="in_place")
    import_draft(ours, read_spec(targets["qwen3"]), tmp_path / "out")
    assert ALGORITHMS["dflash"].read_config(tmp_path / "out") == ALGORITHMS["dflash"].read_config(ours)


def test_a_draft_with_the_tables_of_another_model_is_said(
    targets: dict[str, Path], directory: Path, tmp_path: Path
) -> None:
    """A tokenizer is written down only where something says that the draft was trained with it."""
    target = shutil.copytree(targets["qwen3"], tmp_path / "target")
    tiny_tokenizer(target, vocab_size=40)
    import_draft(directory, read_spec(target), tmp_path / "same")
    written = json.loads((tmp_path / "same" / "config.json").read_text())
    assert written["tokenizer_fingerprint"] == asdict(tokenizer_identity(target))  # type: ignore[arg-type]
    tensors = load_file(directory / WEIGHTS)
    tensors["embed_tokens.weight"][5] += 1
    save_weights(tensors, directory)
    imported = import_draft(directory, read_spec(target), tmp_path / "other")
    assert not imported.has_the_targets_tables
    assert "tokenizer_fingerprint" not in json.loads((tmp_path / "other" / "config.json").read_text())


Change = Callable[[Path], Any]


def config(**fields: Any) -> Change:
    """Set fields of config.json; None removes one."""

    def change(directory: Path) -> None:
        file = directory / "config.json"
        written = json.loads(file.read_text()) | fields
        file.write_text(json.dumps({name: value for name, value in written.items() if value is not None}))

    return change


def tensors(change_them: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(directory: Path) -> None:
        found = load_file(directory / WEIGHTS)
        change_them(found)
        save_weights(found, directory)

    return change


def text(name: str, content: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes(content)


def pickled(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def cut(directory: Path) -> None:
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:-100])


def link_out(name: str) -> Change:
    def change(directory: Path) -> None:
        outside = directory.parent / f"outside-{name}"
        (directory / name).rename(outside)
        (directory / name).symlink_to(outside)

    return change


def pipe(name: str) -> Change:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)

    return change


def sharded(then: Callable[[Path, dict[str, Any]], Any]) -> Change:
    def change(directory: Path) -> None:
        found = load_file(directory / WEIGHTS)
        (directory / WEIGHTS).unlink()
        save_weights(found, directory, shards=2)
        file = directory / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        then(directory, index)
        file.write_text(json.dumps(index))

    return change


POINTER = b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 60
SECOND = "model-00002-of-00002.safetensors"

LAYERS = "target_layer_ids"

BROKEN: dict[str, tuple[Change, str, list[str]]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "public", ["config.json"]),
    "no JSON": (text("config.json", b"{"), "public/config.json", ["JSON"]),
    "a list": (text("config.json", b"[]"), "public/config.json", ["object"]),
    "endless JSON": (text("config.json", b" " * (5 << 20) + b"{}"), "public/config.json", ["4,194,304"]),
    "deep JSON": (text("config.json", b"[" * 5000 + b"]" * 5000), "public/config.json", ["nested"]),
    "a field twice": (
        lambda d: text("config.json", b'{"block_size": 4, ' + (d / "config.json").read_bytes()[1:])(d),
        "public/config.json",
        ["block_size", "twice"],
    ),
    "a pipe for a config": (pipe("config.json"), "public/config.json", ["plain file"]),
    "a newer format": (config(deepspec_format=2), "public/config.json", ["format 2"]),
    "no known algorithm": (config(block_size=None), "public", ["eagle3, dflash, dspark"]),
    "another architecture": (
        config(architectures=["DFlashDraftModel"]), "public/config.json", ["architectures", "Qwen3DSparkModel"],
    ),
    "no architecture": (config(architectures=None), "public/config.json", ["architectures", "None"]),
    "another family": (config(model_type="gemma4_text"), "public/config.json", ["model_type", "gemma4_text", "qwen3"]),
    "another hidden size": (config(hidden_size=48), "public/config.json", ["hidden_size", "48", "32", "target"]),
    "another vocabulary": (config(vocab_size=62), "public/config.json", ["vocab_size", "62", "61", "target"]),
    "another depth": (config(num_target_layers=9), "public/config.json", ["num_target_layers", "9", "8", "target"]),
    "other positions": (
        config(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "public/config.json",
        ["rope", "500000.0", "10000.0"],
    ),
    "the last layer": (config(target_layer_ids=[0, 1, 2, 4, 7]), "public/config.json", [LAYERS, "last layer"]),
    "layers in disorder": (config(target_layer_ids=[1, 0, 2, 4, 6]), "public/config.json", [LAYERS, "increasing"]),
    "no layers": (config(target_layer_ids=None), "public/config.json", [LAYERS, "missing"]),
    "fewer layers than weights are for": (
        config(target_layer_ids=[0, 1, 2, 4]), f"public/{WEIGHTS}", ["fc.weight", "[32, 160]", "[32, 128]"],
    ),
    "a mask beyond the vocabulary": (config(mask_token_id=61), "public/config.json", ["mask_token_id", "61"]),
    "text for a number": (config(block_size="4"), "public/config.json", ["block_size", "'4'", "int"]),
    "windows": (config(layer_types=["sliding_attention"]), "public/config.json", ["layer_types", "sliding_attention"]),
    "another head": (config(markov_rank=7), f"public/{WEIGHTS}", ["markov_w1", "[61, 6]", "[61, 7]"]),
    "many layers": (config(num_hidden_layers=4000), f"public/{WEIGHTS}", ["4000"]),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "public", ["safetensors"]),
    "pickled weights": (pickled, "public", [".bin", "code"]),
    "a pointer to weights": (text(WEIGHTS, POINTER), WEIGHTS, ["LFS"]),
    "half of the weights": (cut, WEIGHTS, ["bytes"]),
    "no safetensors": (text(WEIGHTS, b"\0" * 40), WEIGHTS, ["safetensors"]),
    "a pipe for weights": (pipe(WEIGHTS), f"public/{WEIGHTS}", ["plain file"]),
    "a tensor less": (tensors(lambda t: t.pop("fc.weight")), f"public/{WEIGHTS}", ["fc.weight", "missing"]),
    "a tensor more": (tensors(lambda t: t.update(d2t=torch.zeros(3))), f"public/{WEIGHTS}", ["d2t", "not known"]),
    "a tensor of another shape": (
        tensors(lambda t: t.update({"norm.weight": torch.ones(16)})),
        f"public/{WEIGHTS}",
        ["norm.weight", "[16]", "[32]"],
    ),
    "quantised weights": (
        tensors(lambda t: t.update({"fc.weight": t["fc.weight"].to(torch.int8)})),
        f"public/{WEIGHTS}",
        ["fc.weight", "I8", "BF16"],
    ),
    "a NaN": (
        tensors(lambda t: t["hidden_norm.weight"].fill_(torch.nan)), f"public/{WEIGHTS}", ["hidden_norm", "not finite"],
    ),
    "an infinity": (tensors(lambda t: t["fc.weight"][3].fill_(torch.inf)), f"public/{WEIGHTS}", ["fc.weight"]),
    "a config from elsewhere": (link_out("config.json"), "public/config.json", ["symbolic link", "outside"]),
    "weights from elsewhere": (link_out(WEIGHTS), f"public/{WEIGHTS}", ["symbolic link", "outside"]),
    "a card from elsewhere": (link_out("README.md"), "public/README.md", ["symbolic link", "outside"]),
    "two sets of weights": (lambda d: shutil.copy(d / WEIGHTS, d / SECOND), "public", [SECOND, WEIGHTS]),
    "a part is missing": (sharded(lambda d, _: (d / SECOND).unlink()), "index.json", [SECOND, "missing"]),
    "a part from elsewhere": (
        sharded(lambda _, index: index["weight_map"].update({"fc.weight": "../fc.safetensors"})),
        "index.json",
        ["fc.weight", "../fc.safetensors"],
    ),
    "a part that does not hold it": (
        sharded(lambda _, index: index["weight_map"].update({"d2t": SECOND})), "index.json", ["d2t", SECOND],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_directory_is_refused_before_anything_is_written(
    targets: dict[str, Path], directory: Path, what: str, tmp_path: Path
) -> None:
    change, where, named = BROKEN[what]
    change(directory)
    with refused(IncompatibleDraft, *named) as error:
        import_draft(directory, read_spec(targets["qwen3"]), tmp_path / "out")
    assert (error.value.where or "").endswith(where)
    assert not (tmp_path / "out").exists()


def test_a_draft_of_another_family_is_refused(targets: dict[str, Path], directory: Path, tmp_path: Path) -> None:
    with refused(IncompatibleDraft, "model_type", "'qwen3'", "gemma4_text", where="public/config.json"):
        import_draft(directory, read_spec(targets["gemma4"]), tmp_path / "out")


def test_no_directory_is_refused(tmp_path: Path) -> None:
    with refused(IncompatibleDraft, "directory", where=str(tmp_path / "nothing")):
        public_files(tmp_path / "nothing")


def test_links_inside_and_into_the_hubs_cache_are_followed(
    targets: dict[str, Path], published: Path, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", WEIGHTS, "README.md")):
        shutil.copy(published / name, blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    latest = tmp_path / "step_latest"
    latest.symlink_to(snapshot, target_is_directory=True)
    import_draft(latest, read_spec(targets["qwen3"]), tmp_path / "out")
    (blobs / "2").unlink()
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to("../../refs")
    (tmp_path / "hub" / "refs").write_text("main")
    with refused(IncompatibleDraft, "symbolic link", "refs"):
        public_files(snapshot)


def test_where_it_came_from_is_kept(published: Path) -> None:
    files = public_files(published)
    assert [path.name for path in files.paths] == ["README.md", "config.json", WEIGHTS]
    origin = origin_of(files)
    assert origin.to_json() == {
        "path": str(published),
        "files": {path.name: sha256_of(path) for path in files.paths},
        "name": "some/target",
        "target": None,
        "licence": "mit",
    }


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (README, "mit"),
        (README.replace("\n", "\r\n"), "mit"),
        ("---\nlicense: other\nlicense_name: deepseek\n---\n", "deepseek"),
        ("---\nlicense: [mit, apache-2.0]\n---\ntext", "mit, apache-2.0"),
        ("---\nlicense: " + "x" * 999 + "\n---\n", "x" * 200),
        ("---\nlicense: {a: 1}\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# A draft\n---\nlicense: mit\n---\n", None),
        ("---\n- mit\n---\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_licence_is_read_from_the_front_matter_alone(directory: Path, readme: str, licence: str | None) -> None:
    (directory / "README.md").write_text(readme)
    assert origin_of(public_files(directory)).licence == licence
