"""README and guide as a reader follows them: every command that runs after `make demo` is run, in their order.

The demo's target and rows are replaced by those of `tiny`, which lie where the demo's would; nothing else is.
Two short trainings, and some thirty commands.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Home
from tests.fixtures.command import call
from tests.fixtures.documents import GUIDE, README, Block, blocks

pytestmark = pytest.mark.full


def follow(blocks: list[Block]) -> None:
    """Save the files and run the commands of blocks, in the current folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DEEPSPEC_"))}
    for block in blocks:
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        for program, *arguments in block.commands() if block.runs else ():
            assert program == "deepspec", f"{program} cannot be run here: say what the block needs"
            done = call(arguments, clean)
            assert done.returncode == 0, f"deepspec {arguments}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def reader(cold: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a reader who has followed the README."""
    folder = tmp_path_factory.mktemp("reader")
    home = folder / ".deepspec"
    shutil.copytree(cold.path, home, copy_function=shutil.copy2)
    shutil.copytree(home / "tiny", home / "demo", copy_function=shutil.copy2)
    with contextlib.chdir(folder):
        follow(blocks(README))
        yield folder


def test_the_readme_ends_with_the_second_draft_as_champion(reader: Path) -> None:
    promotions = reader / ".deepspec" / "store" / "registry" / "mine" / "promotions"
    entries = [json.loads(path.read_text()) for path in sorted(promotions.iterdir())]
    assert [(entry["kind"], entry["champion"]["version"]) for entry in entries] == [
        ("promote", "1"),
        ("promote", "2"),
        ("rollback", "1"),
        ("unblock", "1"),
        ("promote", "2"),
    ]
    assert (reader / "serving" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_the_guides_commands_run_after_the_readmes(reader: Path, page: Path) -> None:
    follow(blocks(page))
