"""What the command `measure` does: a recipe's benchmarks through a server, against the last run's evaluation."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.decoding.config import Sampling
from deepspec.errors import RecipeError
from deepspec.evaluation.results import MeanResult
from deepspec.evaluation.server.results import InProcess, ServedBenchmark, ServedEvaluation
from deepspec.inputs import local, made_target
from deepspec.progress import SILENT, Progress
from deepspec.recipe import Recipe, load_recipe
from flows.cli.terminal import say
from flows.cli.terminal import show as show_whole
from tasks.runtime.record.run_record import read_record

if TYPE_CHECKING:
    from rich.console import Console


class ServedDocument(ServedEvaluation):
    """What was measured, and the evaluation to compare it with.

    Attributes:
        recipe: its name.
        sampling, max_new_tokens: of the recipe, which the server was asked for.
        in_process: the last run in this home that evaluated the recipe; None: there is none.
    """

    recipe: str
    sampling: Sampling
    max_new_tokens: int
    in_process: InProcess | None


def document(
    name: str,
    overrides: Sequence[str],
    *,
    endpoint: str,
    concurrency: int,
    home: Path,
    progress: Progress = SILENT,
) -> ServedDocument:
    """Measure a server on a recipe's benchmarks.

    Args:
        name, overrides: the recipe.
        endpoint: the server's base URL.
        concurrency: requests in flight.
        home: where runs, and the recipe's inputs, are.
        progress: counts prompts.

    Raises:
        RecipeError: there is no such recipe, the endpoint is no plain URL, or the recipe's inputs are not made yet.
        DeepspecError: as `deepspec.evaluation.server.measure.measure`.
    """
    from deepspec.data.chat.renderer import Renderer
    from deepspec.data.responses.endpoint_exchange import KEY_VARIABLE
    from deepspec.evaluation.server.measure import Server, measure
    from deepspec.targets import family_of
    from deepspec.targets.directory import read_there
    from tasks.generators import vocabulary_of

    # As a field of the recipe it is checked like one: no password, no query.
    recipe = load_recipe(name, [*overrides, f"run.endpoints={json.dumps([endpoint])}"])
    target_name = recipe.target.path.rstrip("/").rpartition("/")[2]
    recipe = local(recipe, home)
    target = made_target(recipe, name, home)
    spec = read_there(target)
    vocabulary = vocabulary_of(target)
    renderer = Renderer(vocabulary.tokenizer, family_of(spec).chat, thinking=recipe.data.thinking)
    found = measure(
        recipe.evaluate,
        Server(
            recipe.run.endpoints[0],
            target_name,
            served_model=recipe.data.responses.served_model,
            concurrency=concurrency,
            timeout_seconds=recipe.run.endpoint_timeout_seconds,
            api_key=os.environ.get(KEY_VARIABLE) or None,
        ),
        renderer=renderer,
        vocabulary=vocabulary,
        context=spec.max_position_embeddings,
        system_prompt=recipe.data.system_prompt,
        progress=progress,
    )
    return ServedDocument(
        recipe=recipe.name,
        # With every default: the document says in full what was asked for.
        sampling=Sampling.model_validate(recipe.evaluate.sampling.model_dump()),
        max_new_tokens=recipe.evaluate.max_new_tokens,
        in_process=last_evaluation(recipe, home),
        **dict(found),
    )


def last_evaluation(recipe: Recipe, home: Path) -> InProcess | None:
    """The last run that evaluated this recipe; None if there is none.

    A run's record does not repeat the recipe's fields: the run may have had others than are asked for now.
    """
    for folder in sorted((home / "runs").glob("*"), reverse=True):
        record = read_record(home, folder.name)
        if record is None or record.recipe != recipe.name:
            continue
        for part in record.evaluations:
            if part.algorithm in (None, recipe.draft.algorithm):
                macro = part.macro or MeanResult(tau=None, speedup=None)
                return InProcess(run_id=record.run_id, benchmarks=part.benchmarks, macro=macro)
    return None


def save(found: ServedDocument, out: Path) -> None:
    """Write the document to a file."""
    out.write_text(json.dumps(found.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written before anything is measured.

    Raises:
        RecipeError: there is no such folder, or it is a folder itself.
    """
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise RecipeError("The file cannot be written.", where=f"--out {out}", remedy="Name a file in a folder.")


def show(found: ServedDocument, console: "Console") -> None:
    """In-process and served acceptance side by side, with notes on how they differ."""
    from rich.text import Text

    from deepspec.reports.formatting import MACRO, number
    from deepspec.reports.terminal import whole_table

    table = whole_table()
    table.add_column("", overflow="fold")
    for column in ("τ in process", "τ served", "accepted at k, %", "tokens/s", "prompts"):
        table.add_column(column, justify="left" if column.startswith("accepted") else "right", no_wrap=True)
    earlier = found.in_process
    for name, part in found.benchmarks.items():
        ours = earlier.benchmarks.get(name) if earlier is not None else None
        counts = [part.prompts]
        if ours is not None and ours.prompts != part.prompts:
            counts.append(ours.prompts)
        table.add_row(
            Text(name),
            number(ours.tau if ours is not None else None, 3),
            number(part.tau, 3),
            " ".join(number(None if rate is None else 100 * rate, 0) for rate in part.conditional_acceptance),
            number(part.tokens_per_second, 1),
            " of ".join(map(str, counts)),
        )
    if len(found.benchmarks) > 1:
        in_process = number(earlier.macro.tau if earlier is not None else None, 3)
        table.add_row(MACRO, in_process, number(found.macro.tau, 3), "", "", "", style="bold")
    show_whole(console, table)
    say(console, *_remarks(found))


def _remarks(found: ServedDocument) -> list[str]:
    where = f"Served by {found.engine} {found.engine_version} at {found.endpoint}, {found.concurrency} at once."
    if found.in_process is None:
        compared = "This home has no evaluation of this recipe to compare with."
    else:
        compared = f"In process: run {found.in_process.run_id}."
    lines = [f"{where} {compared}", "τ: tokens per round, bonus included. Accepted at k: given that all before were."]
    lines += _other_counts(found.benchmarks)
    for name, part in found.benchmarks.items():
        reason = part.not_measured
        said = [reason] if reason and not any(reason in problem for problem in found.problems) else []
        if part.failed:
            said.append(f"{len(part.failed)} requests failed; the first: {part.failed[0].reason}")
        lines += [f"{name}: {text.rstrip('.')}." for text in (*said, *part.notes)]
    return [*lines, *found.problems]


def _other_counts(benchmarks: Mapping[str, ServedBenchmark]) -> list[str]:
    """Notes on where the engine counts differently from the evaluation in process, and by how much at most."""
    from deepspec.reports.formatting import number

    lines = []
    wider = {
        name: number(part.tau_from_tokens, 3)
        for name, part in benchmarks.items()
        if part.stopped
        and part.tau is not None
        and part.tau_from_tokens is not None
        and part.tau_from_tokens < part.tau
    }
    if wider:
        said = ", ".join(f"{name} {tau}" for name, tau in wider.items())
        lines.append(
            f"By the answers' tokens alone τ served is {said}: without what the engine accepted behind an answer's end."
            " As τ in process is counted, it lies between."
        )
    if any(
        part.tau is not None and part.accepted is None and part.stopped < part.requests for part in benchmarks.values()
    ):
        lines.append(
            "This engine counts answers' tokens, not accepted ones: what was cut off at evaluate.max_new_tokens is in"
            " τ in process, and not in τ served."
        )
    return lines
