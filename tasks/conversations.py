"""conversations: the sources' rows, validated, deduplicated and split, as Parquet."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(
    version=3,
    reads=(
        "data.source",
        "data.near_duplicates",
        "data.decontamination_words",
        "data.seed",
        "data.max_rows",
        "data.max_row_bytes",
        "data.max_quarantined",
        "data.splits",
        "data.system_prompt",
        "data.thinking",
    ),
)
def conversations(run: Run[Recipe], out: Path, *, source: Path, benchmarks: Path) -> dict[str, Any]:
    """Read the sources; quarantine bad rows; leave benchmarks and near-duplicates out; mix; split by content."""
    from deepspec.data.conversations.build import write_conversations
    from deepspec.data.conversations.decontamination import Benchmarks
    from deepspec.evaluation.prompts.selection import held_out_prompts

    del source, benchmarks
    recipe = run.recipe
    held_out = Benchmarks(
        held_out_prompts(recipe.evaluate, system_prompt=recipe.data.system_prompt),
        num_words=recipe.data.decontamination_words,
    )
    return write_conversations(recipe.data, recipe.data.source, out, benchmarks=held_out, progress=run.progress)
