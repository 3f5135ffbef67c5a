"""`deepspec serve` and `pull --engine`: what is refused before anything is started, and what is shown."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deepspec.errors import BadArgument, IncompatibleDraft
from deepspec.serving.errors import OtherTarget
from flows.cli.main import app
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.published import trained
from tests.fixtures.refused import refused
from tests.unit.test_export import DEPTH


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TARGETS["qwen3"](tmp_path_factory.mktemp("targets") / "target", **DEPTH["qwen3"])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def called(*words: str) -> Any:
    done = CliRunner().invoke(app, words)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_directory_is_served_as_it_would_be_pulled(home: Path, target: Path, tmp_path: Path) -> None:
    draft = trained(target, "eagle3", tmp_path / "draft")
    options = ("--engine", "vllm", "--target", str(target), "--dry-run")
    found = json.loads(called("serve", str(draft), *options, "--json", "--", "--max-model-len", "512"))
    assert Path(found["directory"]).is_relative_to(home / "serving")
    assert found["argv"][0] == sys.executable
    assert found["argv"][-2:] == ["--max-model-len", "512"]
    assert (found["method"], found["format"], found["environment"]) == ("eagle3", "vllm", {})
    line = called("serve", str(draft), *options, "--", "--max-model-len", "512")
    assert line.endswith(" --max-model-len 512\n")
    assert line.count("\n") == 1
    assert sorted(path.name for path in draft.iterdir()) == ["config.json", "model.safetensors"]


def test_the_last_runs_target_is_served_where_none_is_named(home: Path, target: Path, tmp_path: Path) -> None:
    draft = trained(target, "eagle3", tmp_path / "draft")
    command = ("serve", str(draft), "--engine", "vllm", "--dry-run", "--json")
    with refused(BadArgument, "not known", where="--target"):
        called(*command)
    home.mkdir()
    (home / "last-run.json").write_text(json.dumps({"target": str(target), "resolved_recipe": {}}))
    argv = json.loads(called(*command))["argv"]
    assert argv[argv.index("--model") + 1] == str(target)
    (home / "last-run.json").write_text(json.dumps({"target": "/no/target", "resolved_recipe": {}}))
    with refused(BadArgument, "/no/target", where="--target"):
        called(*command)


def test_what_cannot_be_served_is_one_sentence(home: Path, target: Path, tmp_path: Path) -> None:
    gated = str(trained(target, "dspark", tmp_path / "gated", markov_head="gated"))
    draft = str(trained(target, "eagle3", tmp_path / "draft"))
    here = ("--target", str(target), "--dry-run")
    with refused(IncompatibleDraft, "vanilla head only", where="config.json"):
        called("serve", gated, "--engine", "vllm", *here)
    with refused(IncompatibleDraft, "Eagle3", where="config.json"):
        called("serve", draft, "--engine", "sglang", *here)
    with refused(BadArgument, "'tgi'", where="--engine"):
        called("serve", draft, "--engine", "tgi", *here)
    with refused(BadArgument, draft, where="DRAFT"):
        called("serve", draft, "--engine", "vllm", "--follow", *here)
    other = tmp_path / "other"
    shutil.copytree(target, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with refused(OtherTarget, "rms_norm_eps", where=str(other)):
        called("serve", draft, "--engine", "vllm", "--target", str(other), "--dry-run")
    with refused(BadArgument, "vllm", where="--python"):
        called("serve", draft, "--engine", "vllm", "--target", str(target))


@pytest.mark.parametrize(("given", "missing"), [("--engine vllm", "--endpoint"), ("--endpoint http://a", "--engine")])
def test_an_engine_without_its_endpoint_is_refused(given: str, missing: str, home: Path, tmp_path: Path) -> None:
    with refused(BadArgument, missing, where="pull"):
        called("pull", "models:/demo@champion", str(tmp_path / "serving"), *given.split())
