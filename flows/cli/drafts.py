"""The commands about a draft outside its run: `compare`, `export`, `publish`, `measure`, `serve-check`."""

from pathlib import Path
from typing import Annotated

import typer

from deepspec.errors import BadArgument
from flows.cli.runs import Overrides, RecipeName
from flows.cli.terminal import (
    AsJson,
    DraftName,
    DraftNames,
    OptionalDraftName,
    artifact_store,
    home,
    print_json,
    progress,
    results,
    say,
    show,
    show_lines,
    show_table,
)


def compare(
    drafts: DraftNames,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="What they are judged by; default: that of the last run.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the page there, not into the home.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate drafts on a recipe's prompts, and show them side by side, with paired differences from the first.

    What was evaluated before is reused. The recipe must have been run once: its target's answers are taken from there.

    Example: deepspec compare models:/demo@champion models:/demo/2 --recipe demo
    """
    from deepspec.reports.comparison_terminal import comparison_table
    from flows.cli.commands import compare as compare_command
    from flows.cli.progress import display_on

    with display_on(progress()) as display:
        comparison, page = compare_command.compare(
            drafts, recipe, overrides or [], home=home(), out=out, display=display
        )
    if as_json:
        print_json({**comparison.to_json(), "report": str(page)})
    else:
        show(results(), comparison_table(comparison))
        show_lines(f"Report: {page}")


def export(
    draft: OptionalDraftName = None,
    format_name: Annotated[str, typer.Option("--format", help="The format to write or to check.")] = "deepspec",
    out: Annotated[Path | None, typer.Option(help="New directory to write.")] = None,
    check: Annotated[Path | None, typer.Option(help="Check a directory in that format instead.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="Check it for this engine, in whatever format that reads; not in --format's.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="The target's name at a hub; with --bundle also its folder, which is then compared.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Write DIR-UNCHECKED where the check finds flaws.")] = False,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Write what engines and people need besides, and an index of it.")
    ] = False,
    matrix: Annotated[bool, typer.Option("--matrix", help="Show what loads which draft, and why not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a draft in a format that others read (vllm, sglang, speculators, deepspec), or check such a directory.

    Example: deepspec export models:/demo@champion --format vllm --out exported
    Example: deepspec export --check exported --engine vllm
    """
    from deepspec.registry import draft_export

    if matrix:
        from deepspec.export.matrix import matrix as table

        rows = table()
        if as_json:
            print_json(rows)
        else:
            show_table(["draft", "family", "format", "loaded as, or why not"], [_matrix_cells(row) for row in rows])
        return

    if check is not None:
        _check(check, format_name, engine, as_json=as_json)
        return
    if engine is not None:
        raise BadArgument("an engine is named, but no directory to check.", where="--engine", remedy="Add --check DIR.")
    if draft is None or out is None:
        raise BadArgument(
            "nothing is named to write or to check.",
            where="export",
            remedy="Name a DRAFT and --out DIR, or --check DIR.",
        )
    if bundle:
        from deepspec.bundle.index import read_index
        from deepspec.bundle.write import write

        place = write(draft, format_name, out, target, home=home(), store=artifact_store(), force=force)
        left_out = read_index(place).left_out
    else:
        place = draft_export.write(draft, format_name, out, target, home=home(), store=artifact_store(), force=force)
        left_out = {}
    if as_json:
        print_json({"written": str(place), "format": format_name, **({"left_out": left_out} if bundle else {})})
    else:
        show_lines(f"Written: {place}", *(f"Left out: {file}: {reason}." for file, reason in left_out.items()))


def publish(
    draft: DraftName,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="OWNER/NAME at a model hub, or s3://bucket/prefix.")
    ],
    format_name: Annotated[str, typer.Option("--format", help="The format of its weights and config.json.")] = "vllm",
    target: Annotated[str, typer.Option(help="The target's name at a hub, or its folder, which is compared.")] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository of the hub public.")] = False,
    unpromoted: Annotated[
        bool, typer.Option("--unpromoted", help="Send a draft that never was champion, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a draft's bundle (or a folder that `export --bundle` wrote) to a model hub, or under a prefix of a bucket.

    All of it is checked before. The hub's token is in HF_TOKEN; HF_ENDPOINT names another hub than huggingface.co.

    Example: deepspec publish models:/demo@champion mine/demo-draft
    """
    from deepspec.bundle.publish import publish as publish_bundle

    done = publish_bundle(
        draft,
        destination,
        format_name=format_name,
        target=target,
        home=home(),
        store=artifact_store(),
        public=public,
        unpromoted=unpromoted,
    )
    if as_json:
        index = {"draft": done.bundle.draft.to_json(), "digest": done.bundle.digest}
        print_json({"published": done.where, "changed": done.changed, **index})
    else:
        show_lines(f"Published: {done.where}" if done.changed else f"Nothing to do: {done.where} has this bundle.")


def _check(directory: Path, format_name: str, engine: str | None, *, as_json: bool) -> None:
    from deepspec.registry import draft_export

    if engine is None:
        flaws, read = draft_export.check(format_name, directory), ""
    else:
        format_name, flaws = draft_export.check_for(engine, directory)
        read = f" for {engine}, in the format {format_name}"
    if as_json:
        named = {} if engine is None else {"engine": engine}
        print_json({"checked": str(directory), **named, "format": format_name, "flaws": flaws})
    else:
        show_lines(*flaws, f"{directory}{read}: {len(flaws)} flaws." if flaws else f"{directory} is fine{read}.")
    if flaws:
        raise typer.Exit(1)


def _matrix_cells(row: dict[str, str | None]) -> list[str]:
    loaded = f"{row['architecture']} ({row['checked']})" if row["architecture"] else f"no: {row['reason']}"
    return [str(row["draft"]), str(row["family"]), str(row["format"]), loaded]


def measure(
    recipe: RecipeName,
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Base URL of the server that serves the target.")],
    overrides: Overrides = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the JSON document there, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Play a recipe's benchmarks through a server (vLLM, SGLang), and compare its acceptance with the last run's.

    Others may use the server meanwhile if its replies say their rounds (vLLM: --per-request-spec-decode-metrics
    detailed, as `deepspec serve` starts it); else its counters are read, and no one may. The key, if it wants one, is
    in DEEPSPEC_ENDPOINT_API_KEY.

    Example: deepspec measure dspark-qwen3-4b --endpoint http://gpu1:8000 --set target.path=/models/qwen3-4b
    """
    from flows.cli.commands import measure as measure_command
    from flows.cli.progress import progress_of

    measure_command.check_out(out)
    with progress_of(progress(), "measure") as work:
        document = measure_command.document(
            recipe, overrides or [], endpoint=endpoint, concurrency=concurrency, home=home(), progress=work
        )
    if out is not None:
        measure_command.save(document, out)
    if as_json:
        print_json(document.to_json())
    else:
        measure_command.show(document, results())
    if document.problems:
        if as_json:
            say(progress(), *document.problems)
        raise typer.Exit(1)


def serve_check(
    url: Annotated[str, typer.Argument(metavar="URL", help="Base URL of the server that serves target and draft.")],
    draft: Annotated[str, typer.Option("--draft", metavar="DRAFT", help="What it is to serve, named as everywhere.")],
    target: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The target that is served; default: the last run's.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="What the server computes in: float32, bfloat16 or float16; default: as measured."),
    ] = None,
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Draw answers as the evaluation did; no weights are needed here.")
    ] = False,
    served_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the server calls the target; default: its directory.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Most prompts that are asked.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Ask a server the prompts of a draft's evaluation, and see whether it serves that draft as it was measured.

    Greedy and in float32, answers, rounds and tau from tokens have to be equal; else they have to lie within bounds. If
    they do not, it says what may be wrong, and ends with exit code 3. The key, if the server wants one, is in
    DEEPSPEC_ENDPOINT_API_KEY.

    Example: deepspec serve-check http://localhost:8000 --draft models:/demo@champion
    """
    from flows.cli.commands import serve_check as checking
    from flows.cli.progress import progress_of

    with progress_of(progress(), "serve-check") as work:
        found = checking.document(
            url,
            checking.Question(draft, target, dtype, sampled, served_model, prompts, concurrency),
            home=home(),
            store=artifact_store(),
            progress=work,
        )
    if as_json:
        print_json(found.to_json())
    else:
        checking.show(found, results())
    if not found.passed:
        if as_json:
            say(progress(), found.sentence)
        raise typer.Exit(3)
