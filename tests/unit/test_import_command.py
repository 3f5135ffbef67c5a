"""What the command `import` refuses before anything runs, and which recipe it runs."""

from pathlib import Path

import pytest

from deepspec.errors import IncompatibleDraft, RecipeError
from deepspec.recipe import load_recipe
from flows.cli.commands import import_draft as command
from flows.cli.commands.run import Shown
from flows.cli.terminal import progress, results
from tests.fixtures.published import publish, trained
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_qwen3


@pytest.fixture
def public(tmp_path: Path) -> Path:
    target = tiny_qwen3(tmp_path / "target", num_layers=8)
    return publish(trained(target, "dflash", tmp_path / "ours"), tmp_path / "public")


def call(directory: Path, home: Path, *overrides: str, recipe: str | None = "tiny") -> int:
    return command.import_draft(directory, recipe, overrides, home, Shown(results(), progress(), dry_run=True))


def test_the_drafts_section_is_the_directorys(public: Path) -> None:
    recipe = load_recipe("tiny")
    found = command._with_its_draft(recipe, public)
    assert found.draft.algorithm == "dflash"
    assert found.draft.model_dump()["target_layer_ids"] == (0, 1, 2, 4, 6)
    assert found.model_dump(exclude={"draft"}) == recipe.model_dump(exclude={"draft"})


@pytest.mark.parametrize("override", ["draft.num_layers=2", "draft={algorithm: eagle3}", " draft.algorithm=dspark"])
def test_what_the_draft_is_cannot_be_set(public: Path, tmp_path: Path, override: str) -> None:
    with refused(RecipeError, "config.json", where=override):
        call(public, tmp_path / "home", override)


def test_what_is_wrong_is_said_before_anything_runs(public: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with refused(IncompatibleDraft, "directory", where="nothing"):
        call(tmp_path / "nothing", home)
    with refused(RecipeError, "no finished run", where="--recipe"):
        call(public, home, recipe=None)
    (public / "model.safetensors").unlink()
    with refused(IncompatibleDraft, "safetensors", where="public"):
        call(public, home)
    assert not home.exists()
