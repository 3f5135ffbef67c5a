"""Bad input, interrupts and kills: one clear sentence, the right exit code, and a next run that goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Home

SLOW = ["--set", "train.num_steps=400", "--set", "gates.min_tau_gain=0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "train.lrr=1"], ["train.lrr", "Did you mean lr?"]),
        (["--set", "train.lr=fast"], ["train.lr", "'fast'", "number"]),
        (["--set", "nonsense"], ["nonsense", "--set"]),
        (["--set", "draft.target_layer_ids=[0, 7]"], ["draft.target_layer_ids", "7", "out of range"]),
        (["--set", "draft.target_layer_ids=[0, 1]"], ["draft.target_layer_ids", "last layer"]),
        (["--set", "draft.mask_token_id=null"], ["draft.mask_token_id", "151669", "vocabulary of 400"]),
        (["--set", "target.path=/nowhere"], ["/nowhere", "config.json"]),
        (["--set", "data.source=/nowhere.jsonl"], ["/nowhere.jsonl"]),
        (["--set", "store.url=gs://bucket"], ["gs://"]),
    ],
)
def test_wrong_input_is_one_sentence_without_a_traceback(warm: Home, options: list[str], words: list[str]) -> None:
    finished = warm.run("run", "tiny", *options, code=2)
    message = [line for line in finished.err.splitlines() if line.startswith("deepspec: ")]
    assert len(message) == 1
    assert all(word in message[0] for word in words), message
    assert "Traceback" not in finished.err


def test_unknown_recipe_names_the_nearest(warm: Home) -> None:
    assert "Did you mean tiny?" in warm.run("run", "tinny", code=2).err


def target_without(home: Home, tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "target"
    shutil.copytree(home.path / "tiny" / "target", folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["tokenizer.json"], ["tokenizer.json"]),
        (["chat_template.jinja"], ["chat template"]),
        (["model.safetensors"], [".bin"]),
    ],
)
def test_unusable_target_is_refused(warm: Home, tmp_path: Path, missing: list[str], words: list[str]) -> None:
    folder = target_without(warm, tmp_path, *missing)
    if "model.safetensors" in missing:
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    if "chat_template.jinja" in missing:
        content.pop("chat_template", None)
        settings.write_text(json.dumps(content))
    finished = warm.run("run", "tiny", "--set", f"target.path={folder}", code=2)
    assert all(word in finished.err for word in words), finished.err
    assert "Traceback" not in finished.err


def test_too_many_bad_rows_fail_with_reasons_and_keep_the_rows(warm: Home, tmp_path: Path) -> None:
    source = tmp_path / "bad.jsonl"
    good = (warm.path / "tiny" / "corpus" / "conversations.jsonl").read_text().splitlines()[:20]
    bad = [
        "{not json",
        '{"rows": 1}',
        '{"messages": [{"role": "assistant", "content": "Hello."}]}',
        '{"messages": [{"role": "user", "content": ""}]}',
        '{"messages": [{"role": "user", "content": 5}]}',
        '{"messages": [{"role": "wizard", "content": "Hello."}]}',
    ]
    source.write_text("\n".join(good + bad) + "\n")
    finished = warm.run("run", "tiny", "--set", f"data.source={source}", "--set", "data.max_quarantined=0.01", code=2)
    assert "6 of 26" in finished.err
    assert "data.max_quarantined" in finished.err
    (kept,) = (warm.path / "runs").glob("*/quarantine-conversations.parquet")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(kept).to_pylist()
    assert len({row["reason"] for row in rows}) == len(bad)
    assert not list((warm.path / "store" / "conversations").glob("*/*/quarantine.parquet"))[1:]
    assert warm.record()["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("utf16.jsonl", "\ufeff{}".encode("utf-16-le"), ["utf16.jsonl", "UTF-16"], marks=pytest.mark.full),
        pytest.param("array.jsonl", b'[{"messages": []}]', ["array.jsonl", "JSON array"], marks=pytest.mark.full),
        ("cut.parquet", b"PAR1 and no more", ["cut.parquet", "Parquet"]),
        pytest.param("empty.jsonl", b"", ["empty.jsonl", "no source holds a row"], marks=pytest.mark.full),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    warm: Home, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    for option in ([], ["--dry-run"]) if name == "cut.parquet" else ([],):
        finished = warm.run("run", "tiny", "--set", f"data.source={tmp_path / name}", *option, code=0 if option else 2)
        if not option:
            assert all(word in finished.err for word in words), finished.err
            assert "quarantine-" not in finished.err


@pytest.mark.full
def test_two_runs_at_once_make_each_thing_once(cold: Home, tmp_path: Path) -> None:
    shutil.copytree(cold.path, tmp_path / "home", copy_function=shutil.copy2)
    home = Home(tmp_path / "home")
    command = [sys.executable, "-m", "flows.cli", "run", "tiny", "--json", "--set", "train.seed=9"]
    command += ["--set", "gates.min_tau_gain=0"]
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=home.environment())
        for _ in range(2)
    ]
    records = []
    for process in pair:
        out, err = process.communicate(timeout=240)
        assert process.returncode in (0, 3), err
        records.append({stage["name"]: stage["status"] for stage in json.loads(out)["stages"]})
    assert sorted(record["train"] for record in records) == ["hit", "ran"]
    assert len(list((home.path / "store" / "train").glob("*/*/draft"))) == 2  # the cold run's, and this one


def start_training(home: Home, *options: str) -> "subprocess.Popen[str]":
    """A run that is in the middle of training, with a checkpoint behind it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "tiny", *SLOW, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=home.environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for metrics in (home.path / "work").glob("*/metrics.jsonl"):
            if metrics.read_text().count('"loss"') > 10:
                return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"training did not start: {process.communicate()[1]}")


@pytest.mark.full  # a cold training; a killed one is resumed in test_training_launch.py
def test_interrupt_returns_at_once_and_the_next_run_resumes(warm: Home) -> None:
    process = start_training(warm)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "Interrupted" in shown
    assert "Traceback" not in shown
    warm.run("run", "tiny", *SLOW, code=None)
    assert warm.statuses()["states"] == "hit"
    assert warm.statuses()["train"] == "ran"
    train = next(stage for stage in warm.record()["stages"] if stage["name"] == "train")
    manifest = json.loads(warm.run("artifacts", "show", f"train/{train['key']}").out)
    assert manifest["counts"]["resumed_step"] > 0


@pytest.mark.full  # as above
def test_killed_run_leaves_nothing_half_written(warm: Home) -> None:
    process = start_training(warm)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    kinds = {path.parent.parent.name for path in (warm.path / "store").glob("*/*/manifest.*.json")}
    assert "train" in kinds  # the first run's
    assert len(list((warm.path / "store" / "train").glob("*/manifest.*.json"))) == 1
    json.loads(warm.run("artifacts", "verify", "--json").out)
    warm.run("run", "tiny", *SLOW, code=None)
    assert warm.statuses()["train"] == "ran"
