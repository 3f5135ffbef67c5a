"""conversations: the sources' rows, validated, deduplicated and split, as Parquet."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks._run import Run
from tasks._stage import stage


@stage(
    version=3,
    reads=(
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
    """Read the sources; quarantine bad rows; keep every benchmark prompt out; split by the prompt's content."""
    from deepspec.data.conversations import write_conversations
    from deepspec.evaluation.benchmarks import excluded_hashes

    del source, benchmarks
    recipe = run.recipe
    excluded = excluded_hashes(recipe.evaluate, system_prompt=recipe.data.system_prompt)
    return write_conversations(recipe.data, recipe.data.source, out, excluded=excluded, progress=run.progress)
