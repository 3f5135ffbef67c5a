"""A disk that fills up in the middle of a run: one sentence, nothing half-written, and the next run goes on."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.e2e.conftest import Home

pytestmark = pytest.mark.full

MADE = ("demo_corpus", "demo_tokenizer", "demo_target", "conversations", "responses", "tokens")
"""What the store holds already: the disk fills up with what is made of it."""

# A small memory disk in a mount namespace of our own: no privilege needed, and it is gone with the last command.
SCRIPT = """
mount -t tmpfs -o size={forecast}k none "$DISK" || exit 90
mkdir "$DISK/store" && cd "$COLD" && cp -a {made} "$DISK/store" && cd "$HERE" || exit 92
"$PYTHON" -m flows.cli.main run tiny 2> "$OUT/forecast.txt"; echo $? > "$OUT/forecast.code"
mount -o remount,size={middle}k "$DISK" || exit 91
"$PYTHON" -m flows.cli.main run tiny 2> "$OUT/middle.txt"; echo $? > "$OUT/middle.code"
"$PYTHON" -m flows.cli.main artifacts ls --json > "$OUT/kept.json"
mount -o remount,size=1g "$DISK" || exit 91
"$PYTHON" -m flows.cli.main run tiny 2> "$OUT/last.txt"; echo $? > "$OUT/last.code"
"$PYTHON" -m flows.cli.main artifacts verify --json > "$OUT/verified.json"
"""


def test_full_store_is_one_sentence_and_the_next_run_goes_on(cold: Home, tmp_path: Path) -> None:
    """Five commands as processes: a run that is foreseen to fill the disk, one that does, and a last one."""
    store = cold.path / "store"

    def size_of(kinds: Iterable[str]) -> int:
        return sum(path.stat().st_size for kind in kinds for path in (store / kind).rglob("*") if path.is_file())

    made, whole = size_of(MADE), size_of(path.name for path in store.iterdir())
    sizes = {name: int(made + share * (whole - made)) // 1024 for name, share in (("forecast", 0.3), ("middle", 0.8))}
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    home = Home(tmp_path / "home")
    shutil.copytree(cold.path / "tiny", home.path / "tiny")
    paths = {"DISK": str(disk), "OUT": str(out), "PYTHON": sys.executable, "DEEPSPEC_STORE": str(disk / "store")}
    paths |= {"COLD": str(store), "HERE": str(Path.cwd())}
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", SCRIPT.format(**sizes, made=" ".join(MADE))]
    subprocess.run(command, env=home.environment(paths), check=True, timeout=400)
    for name in sizes:
        shown = (out / f"{name}.txt").read_text()
        assert (out / f"{name}.code").read_text().strip() == "1", shown
        message = [line for line in shown.splitlines() if line.startswith("deepspec: ")]
        assert len(message) == 1, shown
        assert "no room" in message[0].lower() or "no space" in message[0].lower()
        assert str(disk) in message[0]
        assert "Traceback" not in shown
    kept = {item["kind"] for item in json.loads((out / "kept.json").read_text())}
    assert kept > set(MADE)
    assert (out / "last.code").read_text().strip() == "0", (out / "last.txt").read_text()
    again = {stage["name"] for stage in home.record()["stages"] if stage["status"] == "hit"}
    assert kept <= again | {"promote"}
    assert json.loads((out / "verified.json").read_text())["damaged"] == {}
