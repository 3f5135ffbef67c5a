"""responses: the target's own answer to every prompt."""

from pathlib import Path
from typing import Any

from deepspec.recipe import Recipe
from tasks._models import load_target
from tasks._run import Run
from tasks._stage import stage


@stage(
    version=2,
    reads=(
        "data.responses",
        "data.max_length_tokens",
        "data.min_supervised_tokens",
        "data.max_quarantined",
        "data.thinking",
        "target.dtype",
    ),
    computes=True,
)
def responses(run: Run[Recipe], out: Path, *, conversations: Path, target: Path) -> dict[str, Any]:
    """Let the target answer, in process; every answer's randomness hangs on its prompt alone."""
    from deepspec.data.responses import write_responses
    from deepspec.data.tokenizer import load_tokenizer
    from deepspec.decoding.config import Sampling
    from deepspec.decoding.generate import generator

    recipe = run.recipe
    wanted = recipe.data.responses
    loaded = load_target(run, target)
    sampling = Sampling(temperature=wanted.temperature, top_p=wanted.top_p, top_k=wanted.top_k)
    return write_responses(
        recipe.data,
        conversations,
        out,
        generate=generator(loaded, sampling=sampling, rows=recipe.run.generation_rows),
        tokenizer=load_tokenizer(target),
        chat=loaded.family.chat,
        progress=run.progress,
    )
