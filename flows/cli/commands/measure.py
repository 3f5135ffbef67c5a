"""What the command `measure` does: a recipe's benchmarks through a server, against the last run's evaluation."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.decoding.config import Sampling
from deepspec.errors import DeepspecError, RecipeError
from deepspec.evaluation.results import MeanResult, Number
from deepspec.evaluation.server.results import InProcess, ServedBenchmark, ServedEvaluation, ServedMean
from deepspec.home import store_of
from deepspec.inputs import local, made_target
from deepspec.progress import SILENT, Progress
from deepspec.recipe import Recipe, load_recipe
from deepspec.record import RunRecord
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
    from deepspec.evaluation.server.asked import Server
    from deepspec.evaluation.server.measure import measure
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
                taus, unknown = _from_tokens(record, part.algorithm, recipe, home)
                return InProcess(
                    run_id=record.run_id,
                    tau_from_tokens=taus,
                    tau_from_tokens_unknown=unknown,
                    benchmarks=part.benchmarks,
                    domains=part.domains,
                    macro=macro,
                )
    return None


def _from_tokens(
    record: RunRecord, algorithm: str | None, recipe: Recipe, home: Path
) -> tuple[dict[str, Number | None], str | None]:
    """τ from tokens of a run's benchmarks and of `macro`; or why it is not known."""
    from deepspec.evaluation.kept_answers import kept_answers
    from deepspec.evaluation.kept_answers import tau_from_tokens as taus_of

    made = next((one for one in record.stages if (one.name, one.algorithm) == ("evaluate", algorithm)), None)
    if made is None or not made.key:
        return {}, f"run {record.run_id} does not name its evaluation"
    try:
        evaluation = store_of(home, record.store or recipe.store.url).get(made.kind, made.key)
        answers = kept_answers(evaluation.directory())
    except DeepspecError as error:
        return {}, error.what
    return taus_of(answers), None


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

    from deepspec.evaluation.metrics import mean
    from deepspec.reports.formatting import MACRO, number
    from deepspec.reports.terminal import whole_table

    table = whole_table()
    table.add_column("", overflow="fold")
    for column in ("τ in process", "τ served", "at k, %", "tokens/s", "prompts"):
        table.add_column(column, justify="left" if column.startswith("at k") else "right", no_wrap=True)
    earlier = found.in_process
    in_process = earlier.tau_from_tokens if earlier is not None else {}
    for name, part in found.benchmarks.items():
        ours = earlier.benchmarks.get(name) if earlier is not None else None
        counts = [part.prompts]
        if ours is not None and ours.prompts != part.prompts:
            counts.append(ours.prompts)
        table.add_row(
            Text(name),
            number(in_process.get(name), 3),
            _with_interval(part),
            " ".join(number(None if rate is None else 100 * rate, 0) for rate in part.conditional_acceptance),
            number(part.tokens_per_second, 1),
            " of ".join(map(str, counts)),
        )
    if len(found.benchmarks) > 1:
        for domain, of_domain in found.domains.items():
            if len(of_domain.benchmarks) > 1:
                own = mean([in_process.get(name) for name in of_domain.benchmarks])
                table.add_row(Text(f"domain {domain}"), number(own, 3), _with_interval(of_domain), "", "", "")
        table.add_row(MACRO, number(in_process.get("macro"), 3), _with_interval(found.macro), "", "", "", style="bold")
    show_whole(console, table)
    say(console, *_remarks(found))


def _with_interval(part: ServedBenchmark | ServedMean) -> str:
    from deepspec.reports.formatting import number

    ends = part.tau_from_tokens_ci95
    bounds = f" [{number(ends[0], 2)}, {number(ends[1], 2)}]" if ends is not None else ""
    return f"{number(part.tau_from_tokens, 3)}{bounds}"


_COUNTED = {
    "round": "by the rounds that each reply lists",
    "answer": "by the rounds that each reply sums up",
    "server": "by the server's counters, of all answers",
    None: "",
}


def _remarks(found: ServedDocument) -> list[str]:
    where = f"Served by {found.engine} {found.engine_version} at {found.endpoint}, {found.concurrency} at once."
    if found.in_process is None:
        compared = "This home has no evaluation of this recipe to compare with."
    else:
        compared = f"In process: run {found.in_process.run_id}."
    lines = [
        f"{where} {compared}",
        "τ: (tokens - answers) / rounds of the answers that ended by themselves, with its 95 % interval over prompts.",
        "At k: accepted, given that all before were.",
        *_ways(found.benchmarks),
    ]
    if found.in_process is not None and found.in_process.tau_from_tokens_unknown:
        unknown = found.in_process.tau_from_tokens_unknown.rstrip(".")
        lines.append(f"This τ is not known in process: {unknown}.")
    lines += _other_counts(found.benchmarks)
    for name, part in found.benchmarks.items():
        reason = part.not_measured
        said = [reason] if reason and not any(reason in problem for problem in found.problems) else []
        if part.failed:
            said.append(f"{len(part.failed)} requests failed; the first: {part.failed[0].reason}")
        lines += [f"{name}: {text.rstrip('.')}." for text in (*said, *part.notes)]
    return [*lines, *found.problems]


def _ways(benchmarks: Mapping[str, ServedBenchmark]) -> list[str]:
    """How rounds were counted, in a sentence; it names the benchmarks where there is more than one way."""
    ways: dict[str, list[str]] = {}
    for name, part in benchmarks.items():
        if part.counted_by is not None:
            ways.setdefault(_COUNTED[part.counted_by], []).append(name)
    if len(ways) == 1:
        return [f"Counted {next(iter(ways))}."]
    return [f"Counted {way}: {', '.join(names)}." for way, names in ways.items()]


def _other_counts(benchmarks: Mapping[str, ServedBenchmark]) -> list[str]:
    """What acceptance by the engine's own count would be, which is higher."""
    from deepspec.reports.formatting import number

    wider = {
        name: number(1 + part.accepted / part.rounds, 3)
        for name, part in benchmarks.items()
        if part.stopped and part.accepted is not None and part.rounds
    }
    if not wider:
        return []
    said = ", ".join(f"{name} {tau}" for name, tau in wider.items())
    return [f"1 + accepted / rounds, with what the engine accepted behind an answer's end, is {said}."]
