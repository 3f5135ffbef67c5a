"""tokens: token ids and loss masks in the target's own chat template."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.recipe import Recipe
from deepspec.store import Artifact
from deepspec.store.fingerprint import External
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The conversations with their answers, and the target whose tokenizer and chat template are used."""

    responses: Artifact
    target: External


@stage(
    version=2,
    reads=(
        "data.mask",
        "data.thinking",
        "data.max_length_tokens",
        "data.min_supervised_tokens",
        "data.max_quarantined_share",
    ),
)
def tokens(inputs: Inputs, config: Recipe, out: Path, job: Job) -> StageCounts:
    """Render every conversation once and mark what the target generates at serving time."""
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.tokens.encode import write_tokens
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_spec

    target, answered = inputs.target.directory(), inputs.responses.directory()
    chat, tokenizer = family_of(read_spec(target)).chat, load_tokenizer(target)
    counts = write_tokens(config.data, answered, out, tokenizer=tokenizer, chat=chat, progress=job.progress)
    counts["tokens"] = sum(split["tokens"] for split in counts["splits"].values())
    return StageCounts.model_validate(counts)
