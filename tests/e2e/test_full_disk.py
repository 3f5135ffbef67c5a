"""A disk that fills up in the middle of a run: one sentence, nothing half-written, and the next run goes on."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Home

pytestmark = pytest.mark.full

MADE = ("demo_corpus", "demo_tokenizer", "demo_target", "conversations", "responses", "tokens")
"""What the store holds already: the disk fills up with what is made of it."""

MOUNT = 'mount -t tmpfs none "$0" && mkdir "$0/store" && cd "$1" && shift && cp -a "$@" "$0/store" && echo made && cat'


@contextmanager
def memory_disk(disk: Path, store: Path) -> Iterator[int]:
    """A disk at `disk` for the block, with what is MADE in a store; a process in the mount namespace that has it.

    The namespace is of our own: no privilege is needed, and the disk is gone when its shell ends.
    """
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", MOUNT, str(disk), str(store), *MADE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "made\n"
        yield shell.pid
        shell.communicate()


def resize(inside: int, disk: Path, size: str) -> None:
    command = ["nsenter", "--target", str(inside), "--user", "--mount", "--preserve-credentials"]
    subprocess.run([*command, "mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_full_store_is_one_sentence_and_the_next_run_goes_on(cold: Home, tmp_path: Path) -> None:
    """A run that is foreseen to fill the disk, one that does, and a last one."""
    store = cold.path / "store"

    def size_of(kinds: Iterable[str]) -> int:
        return sum(path.stat().st_size for kind in kinds for path in (store / kind).rglob("*") if path.is_file())

    made, whole = size_of(MADE), size_of(path.name for path in store.iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    home = Home(tmp_path / "home")
    shutil.copytree(cold.path / "tiny", home.path / "tiny")
    environment = {"DEEPSPEC_STORE": str(disk / "store")}
    with memory_disk(disk, store) as inside:
        for share in (0.3, 0.8):
            resize(inside, disk, f"{int(made + share * (whole - made)) // 1024}k")
            shown = home.run("run", "tiny", code=1, environment=environment, inside=inside).err
            message = [line for line in shown.splitlines() if line.startswith("deepspec: ")]
            assert len(message) == 1, shown
            assert "no room" in message[0].lower() or "no space" in message[0].lower()
            assert str(disk) in message[0]
            assert "Traceback" not in shown
        listed = home.run("artifacts", "ls", "--json", environment=environment, inside=inside).out
        kept = {item["kind"] for item in json.loads(listed)}
        assert kept >= set(MADE)
        resize(inside, disk, "1g")
        home.run("run", "tiny", environment=environment, inside=inside)
        again = {stage["name"] for stage in home.record()["stages"] if stage["status"] == "hit"}
        assert kept <= again | {"promote"}
        verified = home.run("artifacts", "verify", "--json", environment=environment, inside=inside).out
    assert json.loads(verified)["damaged"] == {}
