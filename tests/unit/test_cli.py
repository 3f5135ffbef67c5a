"""The command line as people meet it: help, versions, documents that must not go stale."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from deepspec.registry.keys import markdown_table
from deepspec.store import open_store
from flows.cli import main as cli
from flows.cli.terminal import print_json, show_table
from tests.fixtures.command import call
from tests.fixtures.store import ingredients, put

ROOT = Path(__file__).parents[2]


def commands() -> list[tuple[str, object]]:
    """Every command with its full name."""
    found = [(command.name or command.callback.__name__, command.callback) for command in cli.app.registered_commands]
    for group in cli.app.registered_groups:
        assert isinstance(group.typer_instance, typer.Typer)
        found += [(f"{group.name} {c.name}", c.callback) for c in group.typer_instance.registered_commands]
    return found


@pytest.mark.parametrize(("name", "callback"), commands())
def test_every_command_says_its_purpose_and_an_example(name: str, callback: object) -> None:
    text = (callback.__doc__ or "").strip()
    first, _, rest = text.partition("\n")
    assert first.endswith(".")
    example = re.search(r"Example: deepspec (.+)", rest)
    assert example is not None
    assert example.group(1).startswith(name)


def deepspec(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return call(arguments, os.environ)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom flows.cli import main as cli\nsys.argv = ['deepspec', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'transformers', 'prefect', 'mlflow', 'pyarrow', 'pydantic', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_document_is_json_whatever_stdout_can_hold(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"ä": "日本 ✓", "half": "\ud800", "emoji": "\U0001f600"}
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    print_json(value)
    out.flush()
    assert json.loads(out.buffer.getvalue().decode(encoding)) == value  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_command_ends_for_stdouts_encoding(encoding: str) -> None:
    code = "import sys\nfrom flows.cli import main as cli\nsys.argv = ['deepspec', *sys.argv[1:]]\ncli.main()"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code, "guide", "demo"], capture_output=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


CELLS = ["name", "0123456789ab", "", "[red]50 %[/red]", "two\nlines \x1b[2J", "a sentence of several words " * 4]


@pytest.mark.parametrize("width", [*range(1, 130, 8), None])
def test_a_table_is_whole_at_any_width(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of that width, and (None) in a file: nothing is cut, and in a file a row is a line."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: width is not None)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(width or 20))
    for name in ("FORCE_COLOR", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    show_table([f"column {number}" for number, _ in enumerate(CELLS)], [CELLS, CELLS[::-1]])
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "\x1b" not in text
    together = re.sub(r"\s", "", text)
    named = ["column 0", *(cell.replace("\n", r"\n").replace("\x1b", r"\x1b") for cell in CELLS)]
    for cell in named:
        assert together.count(re.sub(r"\s", "", cell)) >= (1 if cell == "column 0" else 2)
    if width is None:
        assert len(text.splitlines()) == 3
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_a_reader_that_has_gone_changes_no_outcome() -> None:
    read, write = os.pipe()
    os.close(read)
    code = (
        "import sys\nfrom flows.cli import terminal\nfor words in (['x'], ['x' * 100_000]):\n"
        "    terminal.print_json(words)\n    terminal.show_lines(*words)\nterminal.flush()\nsys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (3, "")


def test_exit_codes_of_wrong_usage() -> None:
    for arguments, command in ((["run"], " run"), (["run", "tiny", "--nope"], " run"), (["nonsense"], ""), ([], "")):
        done = deepspec(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr
        assert not arguments or f"{command} --help`" in done.stderr, arguments
    assert deepspec("--version").returncode == 0


@pytest.mark.parametrize(("override", "field"), [("name=mine", "name"), ("draft={algorithm: dflash}", "algorithm")])
def test_drafts_of_one_run_need_names_of_their_own(override: str, field: str) -> None:
    done = deepspec("demo", "--all", "--set", override, "--dry-run")
    assert done.returncode == 2
    assert field in done.stderr
    assert "--set: " in done.stderr


def test_an_unknown_kind_of_artifact_is_refused_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    monkeypatch.delenv("DEEPSPEC_STORE", raising=False)
    put(open_store(str(tmp_path / "store")), ingredients("older_stage"))
    for kind in ("trian", "_stage", "registry", "../store"):
        done = deepspec("artifacts", "ls", kind)
        assert done.returncode == 2, kind
        assert repr(kind) in done.stderr
        assert "evaluate, gate, import, older_stage, promote" in done.stderr
    for kind, count in (("train", 0), ("older_stage", 1)):
        done = deepspec("artifacts", "ls", kind, "--json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == count


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose last run's recipe keeps its store elsewhere; an artifact lies in either place."""
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEEPSPEC_STORE", raising=False)
    other = tmp_path / "elsewhere"
    put(open_store(str(tmp_path / "home" / "store")), ingredients("tokens"))
    put(open_store(str(other)), ingredients("states"))
    section = {"url": "../elsewhere", "gc_grace_seconds": 0.0}
    record = {"store": str(other), "resolved_recipe": {"store": section}}
    (tmp_path / "home" / "last-run.json").write_text(json.dumps(record))
    return other


def kinds(*arguments: str) -> set[str]:
    done = deepspec(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return {item.get("kind") or item["name"].split("/")[0] for item in json.loads(done.stdout)}


def test_commands_without_a_recipe_look_into_the_last_runs_store(elsewhere: Path, tmp_path: Path) -> None:
    assert kinds("artifacts", "ls") == {"states"}
    assert kinds("artifacts", "gc", "--dry-run") == {"states"}, "the recipe's grace period is none"
    assert kinds("artifacts", "gc", "--dry-run", "--grace-seconds", "60") == set()
    done = deepspec("artifacts", "copy", str(tmp_path / "copy"), "--json")
    assert json.loads(done.stdout)["artifacts"] == 1
    assert deepspec("backup", str(tmp_path / "backup")).returncode == 0
    assert (tmp_path / "backup" / "store" / "states").is_dir()
    done = deepspec("models", "history", "nothing")
    assert str(elsewhere) in done.stderr


def test_a_backup_of_a_home_has_its_store_in_itself(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deepspec("backup", str(tmp_path / "backup")).returncode == 0
    shutil.rmtree(elsewhere)
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path / "backup"))
    assert kinds("artifacts", "ls") == {"states"}


def test_a_recipe_says_which_store_is_meant(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del elsewhere
    assert kinds("--recipe", "tiny", "artifacts", "ls") == {"tokens"}
    assert kinds("--recipe", "tiny", "artifacts", "gc", "--dry-run") == set(), "its grace period is a day"
    monkeypatch.setenv("DEEPSPEC_STORE", str(tmp_path / "home" / "store"))
    assert kinds("artifacts", "ls") == {"tokens"}


def test_explain_says_what_ended_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    record = {"run_id": "1", "recipe": "tiny", "status": "failed", "seconds": 1.0, "peak_rss_bytes": 1, "stages": []}
    record |= {"cost": {"cpu_seconds": 1.0}, "report": None, "error": "states: no room"}
    failure = {"error": "StoreFull", "message": "no room", "stage": "states", "at": "2026-01-01T00:00:00+00:00"}
    for more in ({}, {"failure": failure}):  # an earlier deepspec wrote no more than the error
        (tmp_path / "last-run.json").write_text(json.dumps(record | more))
        done = deepspec("explain")
        assert done.returncode == 0, done.stderr
        assert "no room" in done.stdout + done.stderr
        assert ("StoreFull" in done.stdout + done.stderr) == bool(more)
    document = json.loads(deepspec("explain", "--json").stdout)
    assert (document["status"], document["failure"]) == ("failed", failure)


SIZES = ("--conversations", "1300000", "--mean-tokens", "950")


def test_plan_tells_what_the_reference_layout_would_take() -> None:
    """1.3 million conversations of 950 tokens on Qwen3-4B: the 38 TB that the reference needs, and what ours takes."""
    arguments = [*SIZES, "--gpu", "h200"]
    done = deepspec("plan", "dspark-qwen3-4b", *arguments, "--price-per-gpu-hour", "3", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    states = document["states"]["bytes"]
    assert document["tokens"] == 1_235_000_000
    assert states["reference_bf16"] == 1_235_000_000 * 6 * 2560 * 2
    assert all(isinstance(value, int) for value in states.values())
    assert states["int4"] < 0.32 * states["bf16"]
    assert states["int8"] < 0.55 * states["bf16"]
    assert document["gpu"]["cost"] == pytest.approx(3 * document["gpu"]["gpu_hours"])
    assert document["gpu"]["currency"] == "USD"
    formerly = deepspec("plan", "dspark-qwen3-4b", *arguments, "--usd-per-gpu-hour", "3", "--json")
    assert json.loads(formerly.stdout)["gpu"] == document["gpu"]
    assert "usd" not in deepspec("plan", "--help").stdout


def test_old_name_of_a_field_is_read_and_the_new_one_told() -> None:
    done = deepspec("plan", "dspark-qwen3-4b", *SIZES, "--set", "train.batch_documents=64", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith(" "))  # those of the heartbeat
    assert {"WARNING", "batch_documents", "num_documents_per_step"} <= set(re.findall(r"\w+", line))
    now = deepspec("plan", "dspark-qwen3-4b", *SIZES, "--set", "train.num_documents_per_step=64", "--json")
    assert "WARNING" not in now.stderr
    assert json.loads(now.stdout)["memory"] == json.loads(done.stdout)["memory"]


def test_contributing_lists_what_is_written_to_mlflow() -> None:
    assert markdown_table() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_makefile_has_the_two_commands() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "test-full", "lint"):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
