"""Which recipe and which drafts a comparison is about, before anything is evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import ArtifactError, IncompatibleDraft, RecipeError
from deepspec.recipe import Recipe, load_recipe
from deepspec.store.fingerprint import Fingerprints
from flows.cli.commands import compare as compare_command
from flows.cli.commands.chosen_recipe import chosen_recipe
from flows.compare import naming
from tasks.runtime.record.run_record import write_record
from tests.fixtures import reports
from tests.fixtures.refused import refused


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    return tmp_path


def left_behind(home: Path, recipes: list[Recipe], **fields: Any) -> None:
    """The record that a finished run leaves."""
    resolved = [recipe.model_dump(mode="json") for recipe in recipes]
    record = reports.record(recipe="demo", resolved_recipe=resolved if len(resolved) > 1 else resolved[0], **fields)
    write_record(record, home)


def test_the_last_runs_recipe_is_taken_as_it_was_resolved(home: Path) -> None:
    run = load_recipe("tiny", ["evaluate.seed=7", "target.path=/models/t"])
    left_behind(home, [run], evaluation=reports.evaluation().to_json())
    assert chosen_recipe(None, (), home) == ("demo", run)
    _, changed = chosen_recipe(None, ["evaluate.num_gate_prompts=3"], home)
    assert (changed.evaluate.seed, changed.evaluate.num_gate_prompts) == (7, 3)
    assert chosen_recipe("tiny", (), home) == ("tiny", load_recipe("tiny"))


@pytest.mark.parametrize("evaluated", [["eagle3", "dspark"], ["dspark"]])
def test_of_a_run_of_several_algorithms_the_first_evaluated_recipe_is_taken(home: Path, evaluated: list[str]) -> None:
    recipes = {"eagle3": load_recipe("demo-eagle3"), "dspark": load_recipe("demo")}
    parts = [{"algorithm": name, **reports.evaluation().to_json()} for name in evaluated]
    left_behind(home, list(recipes.values()), evaluation=parts)
    assert chosen_recipe(None, (), home)[1] == recipes[evaluated[0]]


@pytest.mark.parametrize("content", [None, "{}", json.dumps(reports.record().to_json())])
def test_without_a_finished_run_the_recipe_has_to_be_named(home: Path, content: str | None) -> None:
    if content is not None:
        (home / "last-run.json").write_text(content)
    with refused(RecipeError, str(home), where="--recipe"):
        chosen_recipe(None, (), home)


def test_a_record_without_a_recipe_says_that_it_has_to_be_named(home: Path) -> None:
    write_record(reports.record(evaluation=reports.evaluation().to_json()), home)  # as an earlier version wrote it
    with refused(RecipeError, "record of run", where="--recipe") as raised:
        chosen_recipe(None, (), home)
    assert "--recipe NAME" in (raised.value.remedy or "")


def test_a_draft_is_the_same_input_wherever_its_directory_lies(tmp_path: Path) -> None:
    fingerprints = Fingerprints()
    links = tmp_path / "links"
    links.mkdir()
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
        found.append(compare_command._outside(folder, links / name, fingerprints))
    first, second = found
    assert first.fingerprint == second.fingerprint
    assert (Path(first.location) / "draft" / "model.safetensors").read_bytes() == b"weights"
    (tmp_path / "b" / "model.safetensors").write_bytes(b"WEIGHTS!")
    assert second.again is not None
    assert second.again() != first.fingerprint


def test_an_incompatible_draft_is_told_by_its_name() -> None:
    with pytest.raises(IncompatibleDraft) as raised, naming("models:/demo/2"):
        raise IncompatibleDraft("there are no weights.", where="draft/model.safetensors", remedy="Look.")
    assert raised.value.where == "models:/demo/2: draft/model.safetensors"
    assert (raised.value.what, raised.value.remedy) == ("there are no weights.", "Look.")
    with pytest.raises(IncompatibleDraft, match=r"^models:/demo/2: it gives NaN\.$"), naming("models:/demo/2"):
        raise IncompatibleDraft("it gives NaN.")
    with pytest.raises(ArtifactError, match=r"^other\.$"), naming("models:/demo/2"):
        raise ArtifactError("other.")
