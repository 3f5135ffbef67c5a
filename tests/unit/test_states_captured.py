"""Files in the layout of vLLM's hidden-states connector, written by a real tiny target, against our own capture."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepspec.errors import DataError, RecipeError
from deepspec.recipe import load_recipe
from deepspec.states.capture.engine_files import CapturedFiles, vllm_layer_ids
from deepspec.states.capture.writer import RunTarget, write_states
from deepspec.states.config import Config
from deepspec.states.reader import StateReader
from deepspec.targets.directory import read_spec
from deepspec.targets.model import Target
from tests.fixtures.refused import refused
from tests.fixtures.states import read
from tests.fixtures.targets import tiny_gemma4, tiny_qwen3
from tests.unit.test_states_files import LENGTHS, VOCAB, write_tokens_file

LAYERS = (-1, 1, 2)
CONFIG = Config(shard_tokens=128, row_group_tokens=48)


def as_the_engine_would(folder: Path, path: Path, ids: tuple[int, ...], rows: list[Tensor]) -> None:
    """One file per request: residual streams *entering* layer j for each id j, and the tokens; names say nothing."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    entering: dict[int, Tensor] = {}
    layers = model.model.layers
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda _, inputs, j=number: entering.__setitem__(j, inputs[0]))
    layers[-1].register_forward_hook(
        lambda _, __, out: entering.__setitem__(len(layers), out[0] if isinstance(out, tuple) else out)
    )
    folder.mkdir(parents=True)
    for number, token_ids in enumerate(rows):
        with torch.no_grad():
            model(token_ids[None])
        hidden = torch.stack([entering[j][0] for j in ids], dim=1)
        save_file(
            {"hidden_states": hidden.contiguous(), "token_ids": token_ids}, folder / f"{97 * number % 13}.safetensors"
        )


@pytest.mark.parametrize("family", [tiny_qwen3, tiny_gemma4], ids=["qwen3", "gemma4"])
def test_an_engines_files_become_the_states_of_our_own_capture(tmp_path: Path, family: object) -> None:
    path = family(tmp_path / "target", vocab_size=VOCAB)  # type: ignore[operator]
    rows = write_tokens_file(tmp_path / "train.parquet")
    ids = vllm_layer_ids(LAYERS, read_spec(path))
    assert ids[:3] == (0, 2, 3)
    as_the_engine_would(tmp_path / "files", path, ids, [torch.from_numpy(ids_T).long() for ids_T, _ in rows])
    for name, origin in (
        ("ours", RunTarget(Target.load(path, layer_ids=LAYERS), 100)),
        ("theirs", CapturedFiles(tmp_path / "files", path, LAYERS, dtype="float32")),
    ):
        (tmp_path / name).mkdir()
        write_states(tmp_path / "train.parquet", tmp_path / name, origin=origin, config=CONFIG)
    assert (tmp_path / "ours/documents.parquet").read_bytes() == (tmp_path / "theirs/documents.parquet").read_bytes()
    ours, theirs = (read(StateReader(tmp_path / name), range(len(LENGTHS))) for name in ("ours", "theirs"))
    # Stored as bfloat16; batches round float32 sums otherwise.
    torch.testing.assert_close(theirs.states_TLD.float(), ours.states_TLD.float(), rtol=2**-7, atol=1e-4)
    kept = ~ours.final_TD.isnan()
    torch.testing.assert_close(theirs.final_TD[kept].float(), ours.final_TD[kept].float(), rtol=2**-7, atol=1e-4)
    assert torch.equal(theirs.final_TD.isnan(), ours.final_TD.isnan())


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path / "target", vocab_size=VOCAB)
    (tmp_path / "files").mkdir()
    with refused(DataError, "*.safetensors", where="files"):
        CapturedFiles(tmp_path / "files", path, LAYERS, dtype="float32")
    rows = write_tokens_file(tmp_path / "train.parquet", (5, 6))
    for number, (ids_T, _) in enumerate(rows[:1]):
        ids = torch.from_numpy(ids_T).long()
        save_file({"hidden_states": torch.ones(5, 3, 32), "token_ids": ids}, tmp_path / f"files/{number}.safetensors")
    files = CapturedFiles(tmp_path / "files", path, LAYERS, dtype="float32")
    with refused(DataError, "[5, 3, 32]", where="0.safetensors") as caught:
        write_states(tmp_path / "train.parquet", tmp_path / "files", origin=files, config=CONFIG)
    assert "[0, 2, 3, 4]" in str(caught.value.remedy)
    fitting = CapturedFiles(tmp_path / "files", path, (0, 1), dtype="float32")
    with refused(DataError, "token ids", where="row 1"):
        write_states(tmp_path / "train.parquet", tmp_path / "files", origin=fitting, config=CONFIG)
    save_file(
        {"hidden_states": torch.full((5, 3, 32), float("nan")), "token_ids": ids}, tmp_path / "files/0.safetensors"
    )
    with refused(DataError, "layer 0", "not finite", "position 0", where="row 0"):
        write_states(tmp_path / "train.parquet", tmp_path / "files", origin=fitting, config=CONFIG)
    (tmp_path / "files/0.safetensors").write_bytes(b"not a tensor")
    with refused(DataError, "token_ids", where="0.safetensors"):
        CapturedFiles(tmp_path / "files", path, LAYERS, dtype="float32")


def test_files_and_a_live_target_exclude_each_other() -> None:
    with refused(RecipeError, "states.captured", "online"):
        load_recipe("tiny", ["states.captured=/somewhere", "states.mode=online"])
