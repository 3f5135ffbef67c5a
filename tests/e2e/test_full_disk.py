"""A disk that fills up in the middle of a run: one sentence, nothing half-written, and the next run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Home

pytestmark = pytest.mark.full

# A small memory disk in a mount namespace of our own: no privilege needed, and it is gone with the last command.
SCRIPT = """
mount -t tmpfs -o size={size}k none "$DISK" || exit 90
"$PYTHON" -m flows.cli run tiny 2> "$OUT/first.txt"; echo $? > "$OUT/first.code"
"$PYTHON" -m flows.cli artifacts ls --json > "$OUT/kept.json"
mount -o remount,size=1g "$DISK" || exit 91
"$PYTHON" -m flows.cli run tiny 2> "$OUT/second.txt"; echo $? > "$OUT/second.code"
"$PYTHON" -m flows.cli artifacts verify --json > "$OUT/verified.json"
"""


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_full_store_is_one_sentence_and_the_next_run_goes_on(cold: Home, tmp_path: Path, share: float) -> None:
    store = cold.path / "store"
    whole = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    home = Home(tmp_path / "home")
    paths = {"DISK": str(disk), "OUT": str(out), "PYTHON": sys.executable, "DEEPSPEC_STORE": str(disk / "store")}
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", SCRIPT.format(size=int(whole * share / 1024))]
    subprocess.run(command, env=home.environment(paths), check=True, timeout=300, cwd=os.getcwd())  # noqa: PTH109
    shown = (out / "first.txt").read_text()
    assert (out / "first.code").read_text().strip() == "1", shown
    message = [line for line in shown.splitlines() if line.startswith("deepspec: ")]
    assert len(message) == 1, shown
    assert "no room" in message[0].lower() or "no space" in message[0].lower()
    assert str(disk) in message[0]
    assert "Traceback" not in shown
    kept = {item["kind"] for item in json.loads((out / "kept.json").read_text())}
    assert "conversations" in kept or "demo_corpus" in kept
    assert (out / "second.code").read_text().strip() == "0", (out / "second.txt").read_text()
    again = {stage["name"] for stage in home.record()["stages"] if stage["status"] == "hit"}
    assert kept <= again | {"promote"}
    assert json.loads((out / "verified.json").read_text())["damaged"] == {}
