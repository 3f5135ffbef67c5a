"""conversations: the sources' rows, validated, deduplicated and split, as Parquet."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.recipe import Recipe
from deepspec.store.fingerprint import External
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The content of `data.source` and of `evaluate.benchmarks`; where they lie, the recipe says."""

    source: External
    benchmarks: External


@stage(
    version=5,
    reads=(
        "data.source",
        "data.near_duplicates",
        "data.decontamination_words",
        "data.seed",
        "data.max_rows",
        "data.max_row_bytes",
        "data.max_quarantined_share",
        "data.splits",
        "data.system_prompt",
        "data.thinking",
    ),
    by_input={"benchmarks": ("evaluate.benchmarks", "evaluate.seed")},
)
def conversations(inputs: Inputs, config: Recipe, out: Path, job: Job) -> StageCounts:  # noqa: ARG001
    """Read the sources; quarantine bad rows; leave benchmarks and near-duplicates out; mix; split by content."""
    from deepspec.data.conversations.build import write_conversations
    from deepspec.data.conversations.decontamination import Benchmarks
    from deepspec.evaluation.prompts.selection import held_out_prompts

    held_out = Benchmarks(
        held_out_prompts(config.evaluate, system_prompt=config.data.system_prompt),
        num_words=config.data.decontamination_words,
    )
    counts = write_conversations(config.data, config.data.source, out, benchmarks=held_out, progress=job.progress)
    return StageCounts.model_validate(counts)
