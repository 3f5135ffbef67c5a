"""A bundle's files for engines, read by the engines' own readers: SGLang's two and vLLM's rules for draft lengths.

The bundle is that of a real evaluation with costs of steps. Files with one fault each are refused by the same readers:
what passes is looked at.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from deepspec.export.engine_files import DRAFT_LENGTHS, STEP_RATES, TEMPERATURES, draft_lengths
from tests.e2e.conftest import Home
from tests.fixtures.engines import FOLDER, PYTHON
from tests.unit.test_engine_files import PREFIX, costs_of

pytestmark = pytest.mark.full

MODULES = "sglang/srt/speculative/dspark_components"
LOAD = "evaluate.load={concurrency: [1, 2], max_new_tokens: 8, requests_per_row: 1}"
ROWS, MOST = 16, 3
SCHEDULE = draft_lengths(costs_of(0.35), PREFIX)
"""Another length at every other batch size; which the bundle's own has is a matter of timing."""


@pytest.fixture(scope="module")
def serving(cold: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `serving` of a bundle of tiny's champion, evaluated with costs of steps."""
    home = Home(tmp_path_factory.mktemp("readers") / "home")
    shutil.copytree(cold.path, home.path, copy_function=shutil.copy2)
    home.run("run", "tiny", "--set", LOAD, code=None)
    out = home.path / "bundle"
    home.run("export", "models:/tiny@champion", "--format", "vllm", "--bundle", "--out", str(out))
    return out / "serving"


@pytest.fixture(scope="module")
def read(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the engines' readers make of the bundle's files, and of spoilt ones."""
    folder = tmp_path_factory.mktemp("read")
    (wheel,) = (PYTHON.parents[1] / "wheels").glob("sglang-*.whl")
    with ZipFile(wheel) as files:
        for name in ("dspark_sts.py", "dspark_sps.py"):
            (folder / name).write_bytes(files.read(f"{MODULES}/{name}"))
    temperatures, rates = (json.loads((serving / name).read_text()) for name in (TEMPERATURES, STEP_RATES))
    loads = rates["sample_batch_tokens"]
    spoilt: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "a null": ("temperatures", temperatures | {"ece_before": [None]}, {}),
        "a temperature of zero": ("temperatures", temperatures | {"temperatures": [1.0, 0.0, 1.0]}, {}),
        "no temperature": ("temperatures", temperatures | {"temperatures": []}, {}),
        "half a token": ("rates", rates | {"sample_batch_tokens": [load + 0.5 for load in loads]}, {"loads": []}),
        "loads not ascending": ("rates", rates | {"sample_batch_tokens": loads[::-1]}, {"loads": []}),
        "one load": ("rates", {name: rates[name][:1] for name in rates if name != "max_batch_tokens"}
                     | {"max_batch_tokens": 8}, {"loads": []}),
        "schedule": ("lengths", SCHEDULE, {"rows": ROWS, "most": MOST}),
        "a schedule from two on": ("lengths", [[2, 4, 1]], {"rows": ROWS, "most": MOST}),
        "ranges that overlap": ("lengths", [[1, 4, 1], [4, 5, 2]], {"rows": ROWS, "most": MOST}),
    }  # fmt: skip
    given: dict[str, Any] = {
        "temperatures": ("temperatures", serving / TEMPERATURES, {}),
        "rates": ("rates", serving / STEP_RATES, {"loads": [*loads, loads[-1] * 10]}),
    }
    for name, (kind, content, more) in spoilt.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        given[name] = (kind, folder / f"{name}.json", more)
    if (serving / DRAFT_LENGTHS).exists():
        given["measured schedule"] = ("lengths", serving / DRAFT_LENGTHS, {"rows": ROWS, "most": MOST})
    (folder / "given.json").write_text(json.dumps(given, default=str))
    command = [PYTHON, FOLDER / "read_files.py", folder, folder / "given.json", folder / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return found


def test_sglang_reads_the_temperatures(read: dict[str, dict[str, Any]], serving: Path) -> None:
    written = json.loads((serving / TEMPERATURES).read_text())
    assert read["temperatures"] == {"read": written["temperatures"]}
    assert len(written["temperatures"]) == MOST
    for spoilt in ("a null", "a temperature of zero", "no temperature"):
        assert "refused" in read[spoilt], spoilt


def test_sglang_reads_the_rates_and_looks_them_up(read: dict[str, dict[str, Any]], serving: Path) -> None:
    """At each measured load it has what was written, beyond the last that of the last; one load it takes for none."""
    rates = json.loads((serving / STEP_RATES).read_text())["sample_steps_per_sec"]
    assert read["rates"] == {"read": {"uninitialized": False, "at": [*rates, rates[-1]]}}
    assert read["one load"]["read"]["uninitialized"]
    for spoilt in ("half a token", "loads not ascending"):
        assert "refused" in read[spoilt], spoilt


def test_vllm_reads_the_draft_lengths(read: dict[str, dict[str, Any]]) -> None:
    """Batch size by batch size the length that is written; beyond the last the last."""
    by_rows = [length for first, last, length in SCHEDULE for _ in range(first, last + 1)]
    assert len(set(by_rows)) == MOST
    assert read["schedule"] == {"read": [0, *by_rows, *[by_rows[-1]] * (ROWS - len(by_rows))]}
    for spoilt in ("a schedule from two on", "ranges that overlap"):
        assert "refused" in read[spoilt], spoilt
    assert "refused" not in read.get("measured schedule", {})
