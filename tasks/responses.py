"""responses: the target's own answer to every prompt."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from tasks.generators import by_endpoints, in_process
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage

if TYPE_CHECKING:
    from deepspec.data.responses.requests import Generate


@dataclass(frozen=True)
class Inputs:
    """What is asked, and who answers."""

    conversations: Artifact
    target: External


@stage(
    version=3,
    reads=(
        "data.responses",
        "data.max_length_tokens",
        "data.min_supervised_tokens",
        "data.max_quarantined_share",
        "data.thinking",
        "target.dtype",
    ),
    computes=lambda _, recipe: recipe.data.responses.generates and recipe.data.responses.engine != "endpoint",
)
def responses(inputs: Inputs, config: Recipe, out: Path, job: Job) -> StageCounts:
    """Let the target answer, in process or on a server; every answer's random numbers depend on its prompt alone."""
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.responses.regenerate import write_responses
    from deepspec.data.tables import is_private
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_spec

    data, target, asked = config.data, inputs.target.directory(), inputs.conversations.directory()
    with ExitStack() as stack:
        generate: Generate | None = None
        if data.responses.generates:
            by_servers = data.responses.engine == "endpoint"
            generate = (
                stack.enter_context(by_endpoints(target, config, job, private=is_private(asked))).generate
                if by_servers
                else in_process(target, config, job)
            )
        counts = write_responses(
            data,
            asked,
            out,
            generate=generate,
            tokenizer=load_tokenizer(target),
            chat=family_of(read_spec(target)).chat,
            journal=job.work_folder / "answers.sqlite",
            progress=job.progress,
        )
        if data.responses.generates and data.responses.engine == "in_process":
            from deepspec.decoding.generate import BATCH_DEPENDENT_SHARE

            counts["batch_dependent_share"] = BATCH_DEPENDENT_SHARE
        return StageCounts.model_validate(counts)
