"""What the command `serve-check` does: the draft and its evaluation found, the server asked, and what came shown."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from deepspec.data.config import plain_endpoint
from deepspec.data.responses.endpoint_exchange import KEY_VARIABLE
from deepspec.errors import BadArgument
from deepspec.evaluation.server.asked import Server
from deepspec.evaluation.server.check_results import ServedCheck, Side
from deepspec.evaluation.server.expected import Dtype
from deepspec.home import last_target
from deepspec.progress import SILENT, Progress
from deepspec.registry.draft_names import draft_directory, draft_of
from deepspec.serving.served_check import Wanted, evaluation_for, served_check
from deepspec.store import Artifact, Store
from flows.cli.terminal import say
from flows.cli.terminal import show as show_whole

if TYPE_CHECKING:
    from rich.console import Console

_PATIENCE_SECONDS = 30.0
"""How long the server may be silent: it is there, or the check is called again."""


_MOST_SHOWN = 5
"""Of each kind; the JSON document has more."""


@dataclass(frozen=True)
class Question:
    """What the user asks about.

    Attributes:
        draft: its name.
        target: the target's directory; None: where the last run's is.
        dtype: what the server computes in; None: as was measured.
        sampled: whether answers are drawn.
        served_model: what the server calls the target; None: as its directory.
        prompts: asked at most.
        concurrency: requests in flight.
    """

    draft: str
    target: Path | None
    dtype: str | None
    sampled: bool
    served_model: str | None
    prompts: int
    concurrency: int


def document(url: str, question: Question, *, home: Path, store: Store, progress: Progress = SILENT) -> ServedCheck:
    """Ask the server.

    Raises:
        BadArgument: no such URL, target or dtype, or nothing was evaluated.
        DeepspecError: as `deepspec.serving.served_check.served_check`.
    """
    from tasks.generators import vocabulary_of

    if question.dtype is not None and question.dtype not in get_args(Dtype):
        raise BadArgument(
            f"{question.dtype!r} is no dtype.", where="--dtype", remedy=f"Known: {', '.join(get_args(Dtype))}."
        )
    target = question.target if question.target is not None else last_target(home)
    if target is None or not target.is_dir():
        raise BadArgument(
            "which target is served is not known." if target is None else f"there is no such directory: {target}.",
            where="--target",
            remedy="Name the directory of the target that the server serves.",
        )
    found = draft_of(question.draft, home, store, model=None, where="--draft")
    digest = found.digest if isinstance(found, Artifact) else None
    return served_check(
        Wanted(question.draft, digest, draft_directory(found), target, evaluation_for(digest, store), _device()),
        Server(
            _plain(url),
            target.resolve().name,
            served_model=question.served_model,
            concurrency=question.concurrency,
            patience_seconds=_PATIENCE_SECONDS,
            api_key=os.environ.get(KEY_VARIABLE) or None,
        ),
        vocabulary_of(target),
        dtype=cast("Dtype | None", question.dtype),
        sampled=question.sampled,
        num_prompts=question.prompts,
        progress=progress,
    )


def show(found: ServedCheck, console: "Console") -> None:
    """Both sides, the sentence, what parts, and what may be wrong."""
    from rich.text import Text

    from deepspec.reports.formatting import number
    from deepspec.reports.terminal import whole_table

    def cells(side: Side) -> list[str]:
        rounds = number(side.rounds, 0)
        return [str(side.answers), number(side.tokens, 0), rounds, number(side.tau_from_tokens, 6)]

    table = whole_table()
    for column in ("", "answers", "tokens", "rounds", "τ from tokens"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    table.add_row(Text("measured"), *cells(found.expected))
    table.add_row(Text("served"), *cells(found.served))
    show_whole(console, table)
    said = f" It says that it serves {found.says}." if found.says else ""
    say(console, f"Served by {found.engine} {found.engine_version} at {found.endpoint}.{said}", found.sentence)
    for one in found.parted[:_MOST_SHOWN]:
        gap = f" (logits differ by {one.gap:.3g}{': a tie' if one.is_tie else ''})" if one.gap is not None else ""
        say(console, f"Another answer: {one.answer}, from token {one.token + 1}{gap}.")
    for other in found.other_rounds[:_MOST_SHOWN]:
        say(console, f"Other rounds: {other.answer}, {other.served} instead of {other.expected}.")
    say(console, *(f"No answer: {reason.rstrip('.')}." for reason in found.failed[:_MOST_SHOWN]))
    say(console, *(f"Note: {note.rstrip('.')}." for note in found.notes))
    say(console, *(f"Likely cause: {cause}" for cause in found.causes))


def _plain(url: str) -> str:
    try:
        return plain_endpoint(url, "this")
    except ValueError as error:
        raise BadArgument(
            f"The server cannot be asked: {error}.", where="URL", remedy="Name the server's base URL, http://HOST:PORT."
        ) from error


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
