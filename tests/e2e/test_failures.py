"""Bad input, interrupts and kills: one clear sentence, the right exit code, and a next run that goes on."""

import fcntl
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
from tests.fixtures.command import Forked, start

SLOW = ["--set", "train.num_steps=200", "--set", "gates.min_tau_gain=0"]
"""A training of its own, long enough to be met in the middle."""


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
    assert " tiny?" in warm.run("run", "tinny", code=2).err


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
    finished = warm.run(
        "run", "tiny", "--set", f"data.source={source}", "--set", "data.max_quarantined_share=0.01", code=2
    )
    assert "6 of 26" in finished.err
    assert "data.max_quarantined_share" in finished.err
    (kept,) = (warm.path / "runs").glob("*/quarantine-conversations.parquet")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(kept).to_pylist()
    assert len({row["reason"] for row in rows}) == len(bad)
    assert not list((warm.path / "store" / "conversations").glob("*/*/quarantine.parquet"))[1:]
    assert warm.record()["status"] == "failed"
    assert (warm.record()["failure"]["error"], warm.record()["failure"]["stage"]) == (
        "TooManyQuarantined",
        "conversations",
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("utf16.jsonl", "\ufeff{}".encode("utf-16-le"), ["utf16.jsonl", "UTF-16"], marks=pytest.mark.full),
        ("cut.parquet", b"PAR1 and no more", ["cut.parquet", "Parquet"]),
        pytest.param("empty.jsonl", b"", ["empty.jsonl", "no source holds a row"], marks=pytest.mark.full),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    warm: Home, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    for option in ([], ["--dry-run"]) if name == "cut.parquet" else ([],):
        finished = warm.run("run", "tiny", "--set", f"data.source={tmp_path / name}", *option, code=2)
        assert all(word in finished.err for word in words), finished.err
        assert "quarantine-" not in finished.err


@pytest.mark.full
def test_two_runs_at_once_make_each_thing_once(warm: Home, tmp_path: Path) -> None:
    """They meet at the training, which is held until both have come to it; all else is there."""
    (draft,) = (stage["key"] for stage in warm.record()["stages"] if stage["name"] == "train")
    shutil.rmtree(warm.path / "store" / "train" / draft)
    outs = [tmp_path / f"{number}.json" for number in range(2)]
    logs = [out.with_suffix(".txt") for out in outs]
    with (warm.path / "locks" / draft).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pair = [
            start(["run", "tiny", "--json"], warm.environment(), out=out, err=log)
            for out, log in zip(outs, logs, strict=True)
        ]
        while not all("Waiting for another run" in log.read_text() for log in logs):
            assert [process.poll() for process in pair] == [None, None], [log.read_text() for log in logs]
            time.sleep(0.05)
    assert [process.wait(240) for process in pair] == [0, 0], [log.read_text() for log in logs]
    records = [json.loads(out.read_text())["stages"] for out in outs]
    statuses = [{stage["name"]: stage["status"] for stage in record} for record in records]
    assert sorted(status.pop("train") for status in statuses) == ["hit", "ran"]
    assert {status for run in statuses for status in run.values()} == {"hit"}
    assert len(list((warm.path / "store" / "train").glob("*/*/draft"))) == 1


def num_losses(home: Home) -> int:
    return sum(file.read_text().count('"loss"') for file in (home.path / "work").glob("*/metrics.jsonl"))


def reach_training(home: Home, process: "subprocess.Popen[bytes] | Forked", log: Path, before: int) -> None:
    """Wait until a run is in the middle of training: some steps further than where the work folder was."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if num_losses(home) > before + 10:
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"training did not start: {log.read_text()}")


@pytest.mark.full  # three starts of a training
def test_an_interrupted_and_a_killed_run_leave_nothing_half_written_and_the_next_resumes(
    warm: Home, tmp_path: Path
) -> None:
    """Ctrl-C, then SIGKILL of real processes in the same training, then its end."""
    log = tmp_path / "said.txt"
    command = ["run", "tiny", *SLOW]
    interrupted = start(command, warm.environment(), out=log, err=log, leads=True)
    reach_training(warm, interrupted, log, 0)
    os.killpg(interrupted.pid, signal.SIGINT)
    assert interrupted.wait(60) == 130, log.read_text()
    assert "Interrupted" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (warm.record()["status"], warm.record()["failure"]["stage"]) == ("interrupted", "train")

    before = num_losses(warm)
    with log.open("wb") as file:
        killed = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", *command],
            stderr=file,
            env=warm.environment(),
            start_new_session=True,
        )
    reach_training(warm, killed, log, before)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(60)
    trained = list((warm.path / "store" / "train").glob("*/manifest.*.json"))
    assert len(trained) == 1  # the first run's
    assert json.loads(warm.run("artifacts", "verify", "--json").out)["damaged"] == {}

    warm.run("run", "tiny", *SLOW, code=None)
    assert warm.statuses()["states"] == "hit"
    assert warm.statuses()["train"] == "ran"
    train = next(stage for stage in warm.record()["stages"] if stage["name"] == "train")
    manifest = json.loads(warm.run("artifacts", "show", f"train/{train['key']}").out)
    assert manifest["counts"]["resumed_step"] > 0
