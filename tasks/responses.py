"""responses: the target's own answer to every prompt."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.recipe import Recipe
from tasks.generators import by_endpoints, in_process
from tasks.runtime.run import Run
from tasks.runtime.stage import stage

if TYPE_CHECKING:
    from deepspec.data.responses.requests import Generate


@stage(
    version=3,
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
    """Let the target answer, in process or where it is served; every answer's randomness hangs on its prompt alone."""
    from deepspec.data.chat.tokenizer import load_tokenizer
    from deepspec.data.responses.regenerate import write_responses
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_spec

    data = run.recipe.data
    with ExitStack() as stack:
        generate: Generate | None = None
        if data.responses.mode == "regenerate":
            by_servers = data.responses.engine == "endpoint"
            generate = (
                stack.enter_context(by_endpoints(run, target)).generate if by_servers else in_process(run, target)
            )
        return write_responses(
            data,
            conversations,
            out,
            generate=generate,
            tokenizer=load_tokenizer(target),
            chat=family_of(read_spec(target)).chat,
            journal=run.work_folder / "answers.sqlite",
            progress=run.progress,
        )
