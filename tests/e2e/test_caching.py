"""What a second run repeats, and what not: the store's rules as a user of the `tiny` recipe meets them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Home

AFTER_TRAIN = ["train", "calibrate", "evaluate", "register", "gate", "promote"]
RETRAIN = ["conversations", "responses", "tokens", "states", *AFTER_TRAIN]
Edit = Callable[[Path, Callable[[list[dict[str, Any]]], None]], None]


def own_data(home: Home, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the conversations outside the home, and the options that make the recipe read it."""
    source = tmp_path / "conversations.jsonl"  # renamed and edited would be another source to the rows
    shutil.copyfile(home.path / "tiny" / "corpus" / "conversations.jsonl", source)
    return source, ["--set", f"data.source={source}"]


def test_cold_run_makes_every_stage(cold: Home) -> None:
    statuses = cold.statuses()
    assert list(statuses) == ["demo_corpus", "demo_tokenizer", "demo_target", *RETRAIN]
    assert set(statuses.values()) == {"ran"}
    assert cold.record()["status"] == "promoted"


def test_second_run_runs_nothing_and_imports_neither_torch_nor_prefect(warm: Home) -> None:
    code = (
        "import sys\n"
        "sys.argv = ['deepspec', 'run', 'tiny', '--json']\n"
        "from flows.cli import main as cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'prefect') if name in sys.modules]\n"
        "sys.stderr.write(repr((code, heavy)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=warm.environment(), check=False
    )
    assert done.stderr.endswith("(0, [])"), done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "no_change"
    assert {stage["status"] for stage in record["stages"]} == {"hit"}
    assert record["evaluation"]["macro"]["tau"] > 1


def test_changed_learning_rate_reruns_exactly_what_follows(warm: Home) -> None:
    warm.run("run", "tiny", "--set", "train.lr=1e-3", "--set", "gates.min_tau_gain=50", code=3)
    assert warm.ran() == AFTER_TRAIN
    why = {stage["name"]: stage["why"] for stage in warm.record()["stages"]}
    assert "train.lr changed" in why["train"]
    assert "0.001" in why["train"]
    assert warm.statuses()["promote"] == "skipped"
    assert warm.record()["status"] == "refused"


def test_edited_prompt_reruns_what_its_content_reaches(warm: Home, tmp_path: Path, edit_rows: Edit) -> None:
    source, options = own_data(warm, tmp_path)
    warm.run("run", "tiny", *options)
    assert warm.ran() == []  # the same content under another path

    def change_prompt(rows: list[dict[str, Any]]) -> None:
        rows[3]["messages"][0]["content"] += " Please."

    edit_rows(source, change_prompt)
    warm.run("run", "tiny", *options, "--dry-run", "--json")
    finished = warm.run("run", "tiny", *options, "--dry-run", "--json")
    previewed = {stage["name"]: stage["status"] for stage in json.loads(finished.out)["stages"]}
    assert [name for name, status in previewed.items() if status == "would_run"] == RETRAIN


def test_edited_answer_stops_at_the_responses(warm: Home, tmp_path: Path, edit_rows: Edit) -> None:
    source, options = own_data(warm, tmp_path)

    def change_answer(rows: list[dict[str, Any]]) -> None:
        rows[3]["messages"][1]["content"] += " Indeed."

    edit_rows(source, change_answer)
    warm.run("run", "tiny", *options)
    # The target answers anew, word for word: only its prompts matter from here on.
    assert warm.ran() == ["conversations", "responses"]


@pytest.mark.full  # a run and an export
def test_a_corrected_licence_is_registered_anew_and_nothing_else_follows(warm: Home, tmp_path: Path) -> None:
    from deepspec.registry.mlflow.tracking import Tracking

    source, _ = own_data(warm, tmp_path)
    warm.run("run", "tiny", "--set", f"data.source={{path: '{source}', licence: CC-BY-4.0, retention: 90 days}}")
    assert warm.ran() == ["conversations", "register"]
    tracking = Tracking.embedded(warm.path)
    registered = tracking.download(tracking.list_versions("tiny")[0], tmp_path / "registered")
    card = (registered / "README.md").read_text()
    num_rows = len(source.read_text().splitlines())
    assert f"| conversations.jsonl | — | CC-BY-4.0 | 90 days | {num_rows} | {num_rows} |" in card
    assert "| arithmetic |" in card
    warm.run("export", "models:/tiny@champion", "--format", "deepspec", "--out", str(tmp_path / "exported"))
    assert (tmp_path / "exported" / "README.md").read_text() == card
    temperatures = warm.record()["calibration"]["temperatures"]
    for folder in (registered, tmp_path / "exported"):
        assert json.loads((folder / "calibration.json").read_text())["temperatures"] == temperatures


def test_moved_but_equal_inputs_rerun_nothing(warm: Home, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(warm.path / "tiny", moved)
    warm.run(
        "run",
        "tiny",
        "--set",
        f"target.path={moved / 'target'}",
        "--set",
        f"data.source={moved / 'corpus' / 'conversations.jsonl'}",
    )
    assert warm.ran() == []


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        pytest.param("tokens", "train.parquet", marks=pytest.mark.full),
        ("states", "states-*.parquet"),
        pytest.param("train", "draft/model.safetensors", marks=pytest.mark.full),
    ],
)
def test_deleted_or_flipped_file_is_rebuilt_from_its_producer(warm: Home, kind: str, pattern: str) -> None:
    before = warm.record()
    path = warm.artifact_file(kind, pattern)
    data = bytearray(path.read_bytes())
    if kind == "tokens":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    finished = warm.run("run", "tiny")
    assert "damaged" in finished.err
    assert warm.ran() == [kind]
    assert warm.statuses()[kind] == "rebuilt"
    assert warm.record()["evaluation"] == before["evaluation"]


def test_damage_met_in_the_middle_of_a_run_sends_the_flow_back_once(warm: Home) -> None:
    """Same size and time as before: only the reader's checksum can tell."""
    path = warm.artifact_file("states", "states-*.parquet")
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    import os

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    finished = warm.run("run", "tiny", "--set", "train.lr=1e-3", "--set", "gates.min_tau_gain=50", code=3)
    assert "damaged" in finished.err
    assert warm.statuses()["states"] == "rebuilt"
    assert warm.statuses()["train"] == "ran"


@pytest.mark.full
def test_live_states_need_no_files_and_auto_means_a_mode(warm: Home) -> None:
    shutil.rmtree(warm.path / "store" / "states")
    warm.run("run", "tiny", "--set", "states.mode=online", code=None)
    assert warm.statuses()["states"] == "skipped"
    # The draft is the one that captured states made, so that what follows is there; its ancestors need not be.
    assert [name for name in warm.ran() if name != "states"] == ["train"]
    assert not (warm.path / "store" / "states").exists()
    # Where files would not fit, auto means online: everything is there already.
    warm.run("run", "tiny", "--set", "states.mode=auto", "--set", "states.max_bytes=1000", code=None)
    assert set(warm.statuses().values()) <= {"hit", "skipped"}


def test_dry_run_writes_nothing(warm: Home) -> None:
    before = sorted(path for path in warm.path.rglob("*") if path.is_file())
    finished = warm.run("run", "tiny", "--set", "train.seed=5", "--dry-run", "--json")
    assert sorted(path for path in warm.path.rglob("*") if path.is_file()) == before
    document = json.loads(finished.out)
    previewed = {stage["name"]: stage["status"] for stage in document["stages"]}
    assert previewed["states"] == "hit"
    assert previewed["train"] == "would_run"
    shown = json.loads(warm.run("plan", "tiny", "--set", "train.seed=5", "--json").out)
    for estimate in (document["estimate"], shown):
        del estimate["room"]  # what is free changes meanwhile
    assert document["estimate"] == shown
    assert shown["states"]["bytes"]["int8"] > 0
