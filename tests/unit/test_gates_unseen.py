"""What a draft from other data has met of the gate's prompts, in whatever turn and clothes."""

from pathlib import Path

from deepspec.evaluation.prompts.selection import select_split
from deepspec.gates.unseen import seen_prompts
from tests.unit.test_data_conversations import chat, make


def folder(tmp_path: Path, name: str) -> Path:
    found = tmp_path / name
    found.mkdir()
    return found


def test_all_that_was_trained_chosen_or_calibrated_on_is_seen(tmp_path: Path) -> None:
    shares = {"validation": 0, "calibration": 0, "gate": 0.5}
    ours = make(folder(tmp_path, "ours"), [chat(f"question {n}?") for n in range(40)], splits=shares)
    asked = select_split(ours / "gate.parquet", num_prompts=4, seed=0)
    first, second, *_ = (prompt.messages[-1]["content"] for prompt in asked)
    rows = [chat("Hello", "x", first.upper()), chat(f" {second}!"), chat("Something else"), chat("And more")]
    theirs = make(folder(tmp_path, "theirs"), rows, splits=dict.fromkeys(("validation", "calibration", "gate"), 0))
    ids = [prompt.id for prompt in asked]
    assert seen_prompts(ours / "gate.parquet", ids, [theirs]) == set(ids[:2])
    assert seen_prompts(ours / "gate.parquet", ids, []) == frozenset()
