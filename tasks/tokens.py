"""tokens: token ids and loss masks in the target's own chat template."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(
    version=1,
    reads=(
        "data.mask",
        "data.thinking",
        "data.max_length_tokens",
        "data.min_supervised_tokens",
        "data.max_quarantined",
    ),
)
def tokens(run: Run[Recipe], out: Path, *, responses: Path, target: Path) -> dict[str, Any]:
    """Render every conversation once and mark what the target generates at serving time."""
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.tokens.encode import write_tokens
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_spec

    chat = family_of(read_spec(target)).chat
    tokenizer = load_tokenizer(target)
    counts = write_tokens(run.recipe.data, responses, out, tokenizer=tokenizer, chat=chat, progress=run.progress)
    return {**counts, "tokens": sum(split["tokens"] for split in counts["splits"].values())}
