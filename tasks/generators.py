"""Who answers the prompts: the target in this process, or servers that serve it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.errors import RecipeError
from deepspec.recipe import Recipe
from tasks.runtime.job import Job
from tasks.runtime.loading import load_target

if TYPE_CHECKING:
    from deepspec.data.responses.endpoint_pool import Endpoints
    from deepspec.data.responses.endpoint_protocol import Vocabulary
    from deepspec.data.responses.requests import Generate


def in_process(target: Path, config: Recipe, job: Job) -> "Generate":
    """The target in `target`, loaded here."""
    from deepspec.decoding.config import Sampling
    from deepspec.decoding.generate import generator

    wanted = config.data.responses
    sampling = Sampling(temperature=wanted.temperature, top_p=wanted.top_p, top_k=wanted.top_k)
    return generator(load_target(target, config, job), sampling=sampling, rows=job.execution.num_generation_rows)


def by_endpoints(target: Path, config: Recipe, job: Job, *, private: bool) -> "Endpoints":
    """The servers of `run.endpoints`; a context. The weights in `target` are not loaded.

    What they say of a prompt that is `private` is shown nowhere: it may repeat the prompt.

    Raises:
        RecipeError: no endpoint is named.
    """
    from deepspec.data.responses.endpoint_exchange import KEY_VARIABLE
    from deepspec.data.responses.endpoint_pool import Endpoints

    how = job.execution
    if not how.endpoints:
        raise RecipeError(
            "data.responses.engine is endpoint, but run.endpoints names none.",
            where="run.endpoints",
            remedy="Name the servers that serve the target: --set 'run.endpoints=[http://host:8000]'.",
        )
    return Endpoints(
        how.endpoints,
        config.data.responses,
        model=config.target.path.rstrip("/").rpartition("/")[2],
        vocabulary=vocabulary_of(target),
        max_length_tokens=config.data.max_length_tokens,
        concurrency=how.endpoint_concurrency,
        timeout_seconds=how.endpoint_timeout_seconds,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        quotes=not private,
    )


def vocabulary_of(target: Path) -> "Vocabulary":
    """The vocabulary of the target in `target`, and what ends its answers; the weights are not loaded."""
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.responses.endpoint_protocol import Vocabulary
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_spec, stop_token_ids

    spec = read_spec(target)
    family = family_of(spec)
    tokenizer = load_tokenizer(target)
    turn_ends = family.chat.end_of_turn_ids(tokenizer)
    end_ids = (*turn_ends, *(token for token in stop_token_ids(spec) if token not in turn_ends))
    return Vocabulary(tokenizer, spec.vocab_size, end_ids)
