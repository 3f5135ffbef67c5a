"""The comparison flow: several drafts, each calibrated and evaluated by a recipe's own stages.

    responses (found) → calibrate → evaluate, for every draft

What a run of that recipe has evaluated is a hit here, and what is evaluated here is a hit there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deepspec.errors import IncompatibleDraft, RecipeError
from deepspec.recipe import Recipe
from tasks.calibrate import calibrate
from tasks.conversations import conversations
from tasks.evaluate import evaluate
from tasks.resolve import benchmarks_of, source_of, target_of
from tasks.responses import responses
from tasks.runtime.flow import Outcome, flow
from tasks.runtime.references import Pending, Reference
from tasks.runtime.run import Run


@flow
def compare(run: Run[Recipe], *, drafts: Mapping[str, Reference], recipe_name: str) -> Outcome:
    """Calibrate and evaluate every draft on the recipe's target, benchmarks and gate split.

    Args:
        run: the run; `run.recipe` is a `Recipe`.
        drafts: name -> the draft.
        recipe_name: the recipe's name on the command line.

    Returns:
        `calibration/<name>` and `evaluation/<name>`. Cache policy: the artifact store's keys. Requires: the answers of
        an earlier run of the recipe.
    """
    target, benchmarks = target_of(run), benchmarks_of(run)
    asked = conversations(run, source=source_of(run), benchmarks=benchmarks)
    answered = _made_before(responses(run, conversations=asked, target=target), recipe_name)
    made: dict[str, Reference] = {}
    for name, draft in drafts.items():
        run.algorithm = name
        with naming(name):
            calibration = calibrate(run, draft=draft, responses=answered, target=target)
            evaluation = evaluate(
                run, draft=draft, calibration=calibration, responses=answered, target=target, benchmarks=benchmarks
            )
        made |= {f"calibration/{name}": calibration, f"evaluation/{name}": evaluation}
    return Outcome(made)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors about a draft carry the name that the person gave it."""
    try:
        yield
    except IncompatibleDraft as error:
        where = f"{name}: {error.where}" if error.where else name
        raise IncompatibleDraft(error.what, where=where, remedy=error.remedy) from error


def _made_before(answered: Reference, recipe_name: str) -> Reference:
    """The answers, which a comparison only takes from the store: making them is a run of its own."""
    if isinstance(answered, Pending):
        raise RecipeError(
            "the store has no answers of this recipe's target to judge drafts on.",
            where=f"recipe {recipe_name}",
            remedy=f"Run `deepspec run {recipe_name}` first; or give the --recipe and --set of a run that is done.",
        )
    return answered
