"""Units that are run once for a state of the code, and what each part's figures come to."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.e2e.conftest import cold, warm

__all__ = ["cold", "warm"]

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "tests" / "campaign" / "figures.json"
CODE = ("deepspec", "flows", "tasks", "constraints.txt")

Record = Callable[[dict[str, Any]], None]


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@cache
def code() -> str:
    """What stands for the code as it is in the work tree."""
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard", "--", *CODE).splitlines()
    digest = hashlib.sha256()
    for name in sorted(listed):
        digest.update(name.encode())
        digest.update((ROOT / name).read_bytes() if (ROOT / name).is_file() else b"")
    return digest.hexdigest()[:16]


def part_of(item: pytest.Item) -> str:
    """The part that a test is a unit of: its module's name."""
    return item.path.stem.removeprefix("test_")


def ended(part: str) -> dict[str, dict[str, Any]]:
    """Unit -> what it left, of the units of a part that ended well on the present code."""
    file = ROOT / ".campaign" / f"{part}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {line["unit"]: line["figures"] for line in lines if line["code"] == code()}


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Say what a unit came to, once it has ended well."""
    file = ROOT / ".campaign" / f"{part_of(request.node)}.jsonl"

    def write(figures: dict[str, Any]) -> None:
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as lines:
            lines.write(json.dumps({"unit": request.node.name, "code": code(), "figures": figures}) + "\n")

    return write


_PARTS = pytest.StashKey[dict[str, tuple[ModuleType, int]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the units that have ended; keep each part's module, and how many units it has."""
    units = [item for item in items if item.get_closest_marker("campaign")]
    parts: dict[str, tuple[ModuleType, int]] = {}
    for item in units:
        module, count = parts.get(part_of(item), (item.getparent(pytest.Module).obj, 0))  # type: ignore[union-attr]
        parts[part_of(item)] = module, count + 1
    config.stash[_PARTS] = parts
    over = [item for item in units if item.name in ended(part_of(item))]
    items[:] = [item for item in items if item not in over]
    config.hook.pytest_deselected(items=over)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the summary of every part that was asked for."""
    if session.config.option.collectonly:
        return
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for part, (module, num_units) in session.config.stash.get(_PARTS, {}).items():
        units = ended(part)
        if not units:
            continue
        changed = _git("status", "--porcelain", "--", *CODE).strip()
        known[part] = {
            "commit": _git("rev-parse", "--short", "HEAD").strip() + (" and changes" if changed else ""),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "units": f"{len(units)} of {num_units}",
            "figures": module.summary(list(units.values())),
        }
        if known[part]["figures"].get("wrong"):
            session.exitstatus = 1
        FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
