"""Several algorithms over several training seeds: what `demo --all` does once each has been judged and shipped.

The first seed is the run's own. The same stages train, calibrate and evaluate each further one (so that the next run
finds it again), but it is neither registered nor judged: it shows how much of a result is chance.
"""

import json
from collections.abc import Mapping, Sequence

import pyarrow.parquet as pq

from deepspec.evaluation.compare.drafts import Counts, counts_by_prompt
from deepspec.evaluation.compare.results import SeedStudy, TrainingBudget
from deepspec.evaluation.compare.seeds import side_by_side
from deepspec.recipe import Recipe
from deepspec.store import Artifact
from flows.retrain import retrain
from tasks.runtime.flow import Flow
from tasks.runtime.record.result import Result
from tasks.runtime.references import Reference

_COLUMNS = ["benchmark", "prompt", "committed"]


def further_seeds(recipes: Sequence[Recipe], num_seeds: int) -> dict[str, tuple[Flow, Recipe]]:
    """What follows on a run of these recipes: by name, the flow and the recipe of each further seed."""
    measured = retrain.with_arguments(ship=False)
    return {
        _name(recipe, seed): (measured, _with_seed(recipe, seed))
        for recipe in recipes
        for seed in _seeds(recipe, num_seeds)[1:]
    }


def study(result: Result, num_seeds: int) -> SeedStudy:
    """Put the algorithms of a finished run side by side.

    Args:
        result: the run, with an evaluation of every recipe and of every further seed.
        num_seeds: the run's own included.
    """
    counts: dict[str, list[Mapping[str, Counts]]] = {}
    budget: dict[str, TrainingBudget] = {}
    for part in result.parts:
        recipe, algorithm = part.recipe, part.recipe.draft.algorithm
        further = [result.further[_name(recipe, seed)] for seed in _seeds(recipe, num_seeds)[1:]]
        outcomes = [part.outcome, *further]
        counts[algorithm] = [_counts(outcome["evaluation"]) for outcome in outcomes]
        drafts = [outcome["draft"] for outcome in outcomes]
        budget[algorithm] = TrainingBudget(
            epochs=recipe.train.num_epochs,
            steps=tuple(_steps(draft) for draft in drafts),
            cpu_seconds=tuple(_cpu_seconds(draft) for draft in drafts),
        )
    first = result.parts[0].recipe
    compared = side_by_side(counts)
    return SeedStudy(seeds=tuple(_seeds(first, num_seeds)), budget=budget, **dict(compared))


def _seeds(recipe: Recipe, num_seeds: int) -> list[int]:
    return [recipe.train.seed + offset for offset in range(num_seeds)]


def _name(recipe: Recipe, seed: int) -> str:
    return f"{recipe.draft.algorithm}, seed {seed}"


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed of training, evaluated for its acceptance alone."""
    load = recipe.evaluate.load.model_copy(update={"concurrency": ()})
    evaluate = recipe.evaluate.model_copy(update={"thresholds": (), "load": load, "num_speed_prompts": 1})
    train = recipe.train.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"train": train, "evaluate": evaluate})


def _counts(evaluation: Reference) -> dict[str, dict[str, tuple[int, int]]]:
    return counts_by_prompt(pq.read_table(_made(evaluation).path("rounds.parquet"), columns=_COLUMNS))


def _steps(draft: Reference) -> int:
    """Of the draft's training."""
    lines = _made(draft).path("metrics.jsonl").read_text("utf-8").splitlines()
    return max((json.loads(line)["step"] for line in lines), default=0)


def _cpu_seconds(draft: Reference) -> float:
    return round(_made(draft).manifest.cost.get("cpu_seconds", 0.0), 1)


def _made(reference: Reference) -> Artifact:
    if not isinstance(reference, Artifact):
        raise TypeError(f"{reference} is no artifact")
    return reference
