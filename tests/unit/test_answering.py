"""Who answers: chosen by the recipe, refused where it cannot be."""

from pathlib import Path

from deepspec.errors import RecipeError
from deepspec.recipe import load_recipe
from deepspec.store import open_store
from tasks.generators import by_endpoints
from tasks.responses import responses
from tasks.runtime.job import Job
from tasks.runtime.run import Run
from tests.fixtures.refused import refused


def test_without_endpoints_it_says_what_to_do(tmp_path: Path) -> None:
    recipe, store = load_recipe("tiny", ["data.responses.engine=endpoint"]), open_store(str(tmp_path))
    job = Job("responses", "0" * 64, "run", tmp_path, store, store.get, execution=recipe.run)
    with refused(RecipeError, "data.responses.engine", where="run.endpoints") as caught:
        by_endpoints(tmp_path, recipe, job, private=False)
    assert "--set 'run.endpoints=" in str(caught.value.remedy)


def test_where_the_endpoints_are_is_no_part_of_the_key(tmp_path: Path) -> None:
    def sections(*overrides: str) -> object:
        run = Run(load_recipe("tiny", list(overrides)), open_store(str(tmp_path)), tmp_path)
        return responses.ingredients(run, {}).canonical()

    plain = sections()
    asked = sections("data.responses.engine=endpoint", "run.endpoints=[http://a]")
    assert asked != plain
    assert sections("data.responses.engine=endpoint", "run.endpoints=[http://b]", "run.endpoint_concurrency=2") == asked
    assert sections("data.responses.truncated=exclude") not in (plain, asked)
    assert sections("data.responses.truncated=keep", "data.responses.engine=in_process") == plain
