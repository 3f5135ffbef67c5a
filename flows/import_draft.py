"""The import flow: a draft that others have published, judged and shipped as one that was trained here.

    import → conversations → responses → calibrate → evaluate → register → gate → promote

It is imported first: a directory that does not fit is refused before the target answers anything. What follows are the
stages of a retraining run, so that the answers are found by the next one, and its challenger meets this draft.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deepspec.errors import IncompatibleDraft, RecipeError
from deepspec.recipe import Recipe
from deepspec.store import Artifact
from flows.retrain import judge_and_ship
from tasks.calibrate import calibrate
from tasks.contest import check_contest
from tasks.conversations import conversations
from tasks.evaluate import evaluate
from tasks.import_ import import_
from tasks.resolve import benchmarks_of, published_draft, source_of, target_of
from tasks.responses import responses
from tasks.runtime.flow import Outcome, flow
from tasks.runtime.references import Reference
from tasks.runtime.run import Run

UNKNOWN_DATA = "The draft was imported from {directory}; what it was trained on is not known."
OTHER_TABLES = "Its embedding or head is not this target's: it was trained for another version of the target."


@flow
def import_draft(run: Run[Recipe], *, directory: Path) -> Outcome:
    """Import a draft, judge it as any first or further one, and ship it.

    Args:
        run: the run; `run.recipe` is a `Recipe` whose draft section is the directory's.
        directory: in one of the layouts of `deepspec.drafts.layouts`.

    Returns:
        see `judge_and_ship`. Cache policy: the artifact store's keys. Requires: the target and the sources named by the
        recipe.
    """
    with _about(directory):
        target = target_of(run)
    source, benchmarks = source_of(run), benchmarks_of(run)
    replaced = check_contest(run, target)

    draft = import_(run, source=published_draft(run, directory), target=target)
    asked = conversations(run, source=source, benchmarks=benchmarks)
    answered = responses(run, conversations=asked, target=target)
    calibration = calibrate(run, draft=draft, responses=answered, target=target)
    evaluation = evaluate(
        run, draft=draft, calibration=calibration, responses=answered, target=target, benchmarks=benchmarks
    )
    made: dict[str, Reference] = {"draft": draft, "calibration": calibration, "evaluation": evaluation}
    outcome = judge_and_ship(run, made, answered=answered, target=target, benchmarks=benchmarks)
    return replace(outcome, notes=(*_notes(draft, directory), *replaced, *outcome.notes))


def _notes(draft: Reference, directory: Path) -> tuple[str, ...]:
    counts = draft.manifest.counts if isinstance(draft, Artifact) else {}
    tables = () if counts.get("has_the_targets_tables") else (OTHER_TABLES,)
    return (UNKNOWN_DATA.format(directory=directory), *tables, *(counts.get("assumed") or ()))


@contextmanager
def _about(directory: Path) -> Iterator[None]:
    """What the recipe's draft section is refused for was read from the directory."""
    try:
        yield
    except RecipeError as error:
        if not (error.where or "").startswith("draft."):
            raise
        raise IncompatibleDraft(
            error.what,
            where=f"{directory.name}/config.json",
            remedy="Name the target that the draft was trained for.",
        ) from error
