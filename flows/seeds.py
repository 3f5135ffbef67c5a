"""Several algorithms over several training seeds: what `demo --all` does once each has been judged and shipped.

The first seed is the run's own. Each further one is trained, calibrated and evaluated by the same stages (and so found
again by the next run), but neither registered nor judged: it says how much a result owes to chance.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from deepspec.evaluation.compare.drafts import counts_by_prompt
from deepspec.evaluation.compare.seeds import side_by_side
from deepspec.recipe import Recipe
from deepspec.store import Artifact
from flows.retrain import retrain
from tasks.runtime.flow import Flow
from tasks.runtime.references import Reference
from tasks.runtime.result import Result

_COLUMNS = ["benchmark", "prompt", "committed"]


def further_seeds(recipes: Sequence[Recipe], num_seeds: int) -> dict[str, tuple[Flow, Recipe]]:
    """What follows on a run of these recipes: by name, the flow and the recipe of each further seed."""
    measured = retrain.with_arguments(ship=False)
    return {
        _name(recipe, seed): (measured, _with_seed(recipe, seed))
        for recipe in recipes
        for seed in _seeds(recipe, num_seeds)[1:]
    }


def study(result: Result, num_seeds: int) -> dict[str, Any]:
    """Put the algorithms of a finished run side by side.

    Args:
        result: the run, with an evaluation of every recipe and of every further seed.
        num_seeds: the run's own included.

    Returns:
        `seeds`, `budget` (algorithm -> what each seed's training took: `epochs`, `steps`, `cpu_seconds`), and what
        `deepspec.evaluation.compare.seeds.side_by_side` returns.
    """
    counts: dict[str, list[Any]] = {}
    budget: dict[str, dict[str, Any]] = {}
    for part in result.parts:
        recipe, algorithm = part.recipe, part.recipe.draft.algorithm
        further = [result.further[_name(recipe, seed)] for seed in _seeds(recipe, num_seeds)[1:]]
        outcomes = [part.outcome, *further]
        counts[algorithm] = [_counts(outcome["evaluation"]) for outcome in outcomes]
        budget[algorithm] = {
            "epochs": recipe.train.num_epochs,
            "steps": [_training(outcome["draft"])["steps"] for outcome in outcomes],
            "cpu_seconds": [_training(outcome["draft"])["cpu_seconds"] for outcome in outcomes],
        }
    first = result.parts[0].recipe
    compared = side_by_side(counts, num_samples=first.evaluate.num_bootstrap_samples, seed=first.evaluate.seed)
    return {"seeds": _seeds(first, num_seeds), "budget": budget, **compared}


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
    if not isinstance(evaluation, Artifact):
        raise TypeError("the evaluation is an artifact")
    return counts_by_prompt(pq.read_table(evaluation.path("rounds.parquet"), columns=_COLUMNS))


def _training(draft: Reference) -> dict[str, float]:
    if not isinstance(draft, Artifact):
        raise TypeError("the draft is an artifact")
    steps = [json.loads(line)["step"] for line in draft.path("metrics.jsonl").read_text("utf-8").splitlines()]
    return {"steps": max(steps, default=0), "cpu_seconds": round(draft.manifest.cost.get("cpu_seconds", 0.0), 1)}
