"""Who answers the prompts: the target in this process, or servers that serve it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.errors import RecipeError
from deepspec.recipe import Recipe
from tasks.runtime.loading import load_target
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.data.responses.endpoint_pool import Endpoints
    from deepspec.data.responses.endpoint_protocol import Vocabulary
    from deepspec.data.responses.requests import Generate


def in_process(run: Run[Recipe], target: Path) -> "Generate":
    """The target in `target`, loaded here."""
    from deepspec.decoding.config import Sampling
    from deepspec.decoding.generate import generator

    wanted = run.recipe.data.responses
    sampling = Sampling(temperature=wanted.temperature, top_p=wanted.top_p, top_k=wanted.top_k)
    return generator(load_target(run, target), sampling=sampling, rows=run.recipe.run.generation_rows)


def by_endpoints(run: Run[Recipe], target: Path) -> "Endpoints":
    """The servers of `run.endpoints`; a context. The weights in `target` are not loaded.

    Raises:
        RecipeError: no endpoint is named.
    """
    from deepspec.data.responses.endpoint_pool import KEY_VARIABLE, Endpoints

    recipe = run.recipe
    if not recipe.run.endpoints:
        raise RecipeError(
            "data.responses.engine is endpoint, but run.endpoints names none.",
            where="run.endpoints",
            remedy="Name the servers that serve the target: --set 'run.endpoints=[http://host:8000]'.",
        )
    return Endpoints(
        recipe.run.endpoints,
        recipe.data.responses,
        model=recipe.target.path.rstrip("/").rpartition("/")[2],
        vocabulary=vocabulary_of(target),
        max_length_tokens=recipe.data.max_length_tokens,
        concurrency=recipe.run.endpoint_concurrency,
        timeout_seconds=recipe.run.endpoint_timeout_seconds,
        api_key=os.environ.get(KEY_VARIABLE) or None,
    )


def vocabulary_of(target: Path) -> "Vocabulary":
    """The vocabulary of the target in `target`, and what ends its answers; the weights are not loaded."""
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.responses.endpoint_protocol import Vocabulary
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_spec
    from deepspec.targets.model import stop_token_ids

    spec = read_spec(target)
    family = family_of(spec)
    tokenizer = load_tokenizer(target)
    turn_ends = family.chat.end_of_turn_ids(tokenizer)
    end_ids = (*turn_ends, *(token for token in stop_token_ids(target, family) if token not in turn_ends))
    return Vocabulary(tokenizer, spec.vocab_size, end_ids)
