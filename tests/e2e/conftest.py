"""One cold run of the `tiny` recipe, and copies of what it left for every scenario to change."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.fixtures.command import call

NOISE = ("Traceback", "CancelledError", "Stopping temporary server", "prefect.", "alembic", "INFO")

_HEARTBEATS = re.compile(r"^  .*: at work for \d+ s\n", re.MULTILINE)


@dataclass
class Home:
    """A home folder and the `deepspec` command in it."""

    path: Path

    def run(
        self,
        *arguments: str,
        code: int | None = 0,
        environment: dict[str, str] | None = None,
        seconds: float = 240,
        draws: bool = False,
        inside: int = 0,
    ) -> "Finished":
        """Call `deepspec`; fail if it ends with another exit code (None: promoted or refused, 0 or 3)."""
        done = call(arguments, self.environment(environment), seconds=seconds, draws=draws, inside=inside)
        expected = (0, 3) if code is None else (code,)
        assert done.returncode in expected, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Finished(done.stdout, _HEARTBEATS.sub("", done.stderr))

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        """The environment of a user who has set nothing but the home folder."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DEEPSPEC_"))}
        return {**clean, "DEEPSPEC_HOME": str(self.path), **(more or {})}

    def record(self) -> dict[str, Any]:
        """`last-run.json`."""
        return dict(json.loads((self.path / "last-run.json").read_text()))

    def statuses(self) -> dict[str, str]:
        """Stage name -> status of the last run."""
        return {stage["name"]: stage["status"] for stage in self.record()["stages"]}

    def ran(self) -> list[str]:
        """Stages of the last run that were not hits."""
        return [name for name, status in self.statuses().items() if status != "hit"]

    def artifact_file(self, kind: str, pattern: str) -> Path:
        """A file of the only artifact of a kind."""
        (found,) = (self.path / "store" / kind).glob(f"*/*/{pattern}")
        return found


@dataclass
class Finished:
    """What a command printed, but for the lines that say it is at work: those come when a machine is slow."""

    out: str
    err: str


@pytest.fixture(scope="session")
def cold(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Home:
    """A home in which `tiny` has run once, from nothing; the same for all processes that run tests.

    The run is a process as a user's is, with a Prefect server of its own: other commands are forked, and share one.
    """
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent
    home = Home(folder / "cold" / "home")
    with FileLock(folder / "cold.lock"):
        if not (home.path / "stdout.txt").exists():
            command = [sys.executable, "-m", "flows.cli.main", "run", "tiny"]
            done = subprocess.run(command, env=home.environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            (home.path / "stderr.txt").write_text(done.stderr)
            (home.path / "stdout.txt").write_text(done.stdout)
    return home


@pytest.fixture
def warm(cold: Home, tmp_path: Path) -> Home:
    """A copy of the cold run's home, free to be changed."""
    shutil.copytree(cold.path, tmp_path / "home", copy_function=shutil.copy2)
    return Home(tmp_path / "home")


@pytest.fixture
def edit_rows() -> Callable[[Path, Callable[[list[dict[str, Any]]], None]], None]:
    """Change the rows of a JSONL file in place."""

    def edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return edit
