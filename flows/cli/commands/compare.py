"""What the command `compare` does: evaluate drafts by one recipe, and write a page that shows them side by side."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deepspec.drafts import algorithm_of
from deepspec.drafts.files.config_json import check_fits, read_draft_config
from deepspec.errors import ArtifactError, RecipeError
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.compare.results import ComparedDraft, Comparison, DraftDifferences
from deepspec.evaluation.results import Evaluation
from deepspec.home import store_of
from deepspec.inputs import local, made_target
from deepspec.recipe import Recipe
from deepspec.registry.draft_names import draft_directory, draft_of
from deepspec.store import Artifact, Store
from deepspec.store.fingerprint import External, Fingerprints, model_files
from deepspec.targets.directory import read_target
from flows.cli.commands.chosen_recipe import chosen_recipe
from flows.compare import compare as comparison
from flows.compare import naming
from tasks.runtime import execute
from tasks.runtime.record.run_report import samples_of
from tasks.runtime.references import Reference

if TYPE_CHECKING:
    from tasks.runtime.display import Display

_DIGEST = re.compile(r"[0-9a-f]{64}")


def compare(
    names: Sequence[str],
    recipe_name: str | None,
    overrides: Sequence[str],
    *,
    home: Path,
    out: Path | None,
    display: "Display",
) -> tuple[Comparison, Path]:
    """Evaluate drafts, and write the page about them.

    Args:
        names: drafts, as a person names them (`registry.draft_names.draft_of`); the others are compared with the first.
        recipe_name, overrides: what they are judged by; None: the recipe of the last run.
        home: where things are.
        out: folder for the page; None: one in the home.
        display: shows the stages.

    Returns:
        what the page is written from, and its path.

    Raises:
        RecipeError: there is no such recipe or draft, a draft is named twice, or the recipe's answers are not there.
        IncompatibleDraft: a draft does not fit the recipe's target; names the draft.
    """
    from deepspec.reports.comparison_page import write_comparison

    recipe_name, recipe = chosen_recipe(recipe_name, overrides, home)
    store = store_of(home, recipe.store.url)
    with ExitStack() as stack:
        links = Path(stack.enter_context(TemporaryDirectory(prefix="deepspec-")))
        drafts = _drafts(names, recipe, recipe_name, home, store, links)
        flow = comparison.with_arguments(drafts=drafts, recipe_name=recipe_name)
        carried_out = execute.run_flow(flow, recipe, store, home, display=display)
        run, outcome, tracked = stack.enter_context(carried_out)
        compared = Comparison(
            comparison_id=run.run_id,
            recipe_name=recipe.name,
            recipe=recipe.model_dump(mode="json"),
            drafts=tuple(_part(name, draft, outcome) for name, draft in drafts.items()),
            differences=tuple(_differences(drafts, outcome, recipe)),
        )
        page = write_comparison(out or home / "comparisons" / run.run_id, compared)
        if tracked is not None:
            tracked.artifact(page.parent, "report")
    return compared, page


def _drafts(
    names: Sequence[str], recipe: Recipe, recipe_name: str, home: Path, store: Store, links: Path
) -> dict[str, Reference]:
    """The drafts under short names; each is checked against the target before anything is evaluated."""
    spec = read_target(made_target(local(recipe, home), recipe_name, home))
    fingerprints = Fingerprints(home / "fingerprints.json")
    drafts: dict[str, Reference] = {}
    for place, name in enumerate(names):
        label = _DIGEST.sub(lambda found: found[0][:12], name)
        if label in drafts:
            raise RecipeError("this draft is named twice.", where=name, remedy="Name each draft once.")
        found = draft_of(name, home, store, model=recipe.registered_model, where="DRAFT")
        directory = draft_directory(found)
        with naming(name):
            algorithm_of(directory)
            check_fits(read_draft_config(directory), spec, directory)
        drafts[label] = found if isinstance(found, Artifact) else _outside(directory, links / str(place), fingerprints)
    fingerprints.save()
    return drafts


def _outside(directory: Path, link: Path, fingerprints: Fingerprints) -> External:
    """A draft that no store has, by content; stages look for a draft in the folder `draft` of what they are handed."""
    link.mkdir()
    (link / "draft").symlink_to(directory.absolute(), target_is_directory=True)

    def fingerprint() -> str:
        return fingerprints.files(model_files(directory), within=directory)

    return External("draft", fingerprint(), str(link), fingerprint)


def _part(name: str, draft: Reference, outcome: Mapping[str, Reference]) -> ComparedDraft:
    """What the page says of one draft."""
    evaluation, calibration = _made(outcome, "evaluation", name), _made(outcome, "calibration", name)
    if isinstance(draft, Artifact):
        known: tuple[str, str | None, str | None] = (draft.kind, draft.key, draft.digest)
    else:
        known = ("external", None, draft.fingerprint if isinstance(draft, External) else None)
    return ComparedDraft(
        name=name,
        kind=known[0],
        key=known[1],
        digest=known[2],
        evaluation_key=evaluation.key,
        evaluation=Evaluation.from_json(evaluation.json("evaluation.json"), where=f"evaluation of {name}"),
        calibration=CalibrationResult.from_json(calibration.json("calibration.json"), where=f"calibration of {name}"),
        samples=samples_of(evaluation),
    )


def _differences(
    drafts: Mapping[str, Reference], outcome: Mapping[str, Reference], recipe: Recipe
) -> list[DraftDifferences]:
    """Every draft but the first against the first."""
    import pyarrow.parquet as pq

    from deepspec.evaluation.compare.drafts import counts_by_prompt, differences
    from deepspec.evaluation.config import domains_of

    settings = recipe.evaluate
    columns = ["benchmark", "prompt", "committed"]
    counts = {
        name: counts_by_prompt(
            pq.read_table(_made(outcome, "evaluation", name).path("rounds.parquet"), columns=columns)
        )
        for name in drafts
    }
    first, *others = counts
    found = []
    for name in others:
        against = differences(counts[name], counts[first], domains_of(settings.benchmarks))
        found.append(DraftDifferences(name=name, **dict(against)))
    return found


def _made(outcome: Mapping[str, Reference], kind: str, name: str) -> Artifact:
    found = outcome[f"{kind}/{name}"]
    if not isinstance(found, Artifact):
        raise ArtifactError(
            f"the {kind} was not made.", where=name, remedy="Correct what the errors above name, and compare again."
        )
    return found
