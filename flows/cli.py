"""The `deepspec` command: runs, plans, artifacts and models, as the command line's contract says.

People read stderr; with `--json` exactly one JSON document goes to stdout. Exit codes: 0 done, 1 a run failed, 2 the
input is wrong, 3 a gate refused, 130 interrupted. Everything heavy is imported by the commands that need it.
"""

import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from deepspec import __version__
from deepspec.errors import DeepspecError

if TYPE_CHECKING:
    from rich.console import Console

    from deepspec.store import Store

app = typer.Typer(
    name="deepspec",
    help="Retrain, judge and ship draft models for speculative decoding.\n\nExample: deepspec demo",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
artifacts_app = typer.Typer(
    help="Look at, check and clean the artifact store.\n\nExample: deepspec artifacts ls", no_args_is_help=True
)
models_app = typer.Typer(
    help="Registered drafts and who is champion.\n\nExample: deepspec models ls", no_args_is_help=True
)
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(models_app, name="models")
bench_app = typer.Typer(
    help="What this machine can do, measured.\n\nExample: deepspec bench warm", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")


def _finite(value: float | None) -> float | None:
    """Refuse NaN, which no lower bound does, and infinity."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field of the recipe; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the resolved recipe and the plan; run nothing.")]


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all log lines.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    os.environ["DEEPSPEC_HOME"] = str(Path(os.environ.get("DEEPSPEC_HOME", ".deepspec")).absolute())
    # Read by OpenMP when torch is imported: a waiting thread that spins long takes the core from the one it waits for.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if debug:
        os.environ["DEEPSPEC_DEBUG"] = "1"
    level = logging.DEBUG if os.environ.get("DEEPSPEC_DEBUG") else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@app.command()
def demo(overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Run the whole pipeline on a small target and corpus that it makes itself.

    Example: deepspec demo
    """
    _run("demo", overrides, dry_run=dry_run, as_json=as_json)


@app.command()
def run(recipe: RecipeName, overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Run a recipe: what is in the store already is reused, the rest is made.

    Example: deepspec run dspark-qwen3-4b --set target.path=/models/qwen3-4b --set data.source=chats.jsonl
    """
    _run(recipe, overrides, dry_run=dry_run, as_json=as_json)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="How many; default: counted in data.source.")] = None,
    mean_tokens: Annotated[
        float | None,
        typer.Option(min=1, callback=_finite, help="Mean length; default: estimated from the sources."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Estimate hours on this GPU (h200, h100, a100, l40s).")] = None,
    num_gpus: Annotated[int, typer.Option(min=1, help="How many GPUs.")] = 1,
    usd_per_gpu_hour: Annotated[float | None, typer.Option(min=0, callback=_finite, help="Price, for a cost.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a run will take: tokens, bytes of states per codec, memory, hours, cost.

    Example: deepspec plan dspark-qwen3-4b --conversations 1300000 --mean-tokens 950 --gpu h200 --num-gpus 8
    """
    from flows import _plan

    document = _plan.document(recipe, overrides or [], conversations, mean_tokens, gpu, num_gpus, usd_per_gpu_hour)
    if as_json:
        _print_json(document)
    else:
        _plan.show(document, _console())


@app.command()
def explain(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id; default: the last run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say for every stage of a run why it ran or was reused.

    Example: deepspec explain
    """
    from flows._display import line_of
    from flows._record import read_record
    from tasks._run import StageRecord

    record = read_record(_home(), run_id)
    if record is None:
        _fail(2, f"There is no run {run_id or 'yet'} in {_home()}. Start one with `deepspec demo`.")
    if as_json:
        _print_json({"run_id": record["run_id"], "stages": record["stages"]})
        return
    console = _console()
    console.print(f"Run {record['run_id']} of {record['recipe']}: {record['status']}", highlight=False)
    for stage in record["stages"]:
        console.print(line_of(StageRecord(**stage)), highlight=False, markup=False, soft_wrap=True)


@artifacts_app.command("ls")
def artifacts_ls(
    kind: Annotated[str | None, typer.Argument(help="Only this kind (a stage's name).")] = None, as_json: AsJson = False
) -> None:
    """List artifacts, newest first.

    Example: deepspec artifacts ls train
    """
    found = sorted(_store().artifacts(kind), key=lambda item: item.manifest.created_at, reverse=True)
    if as_json:
        _print_json([_brief(item) for item in found])
        return
    _table(
        ["kind", "key", "made", "files", "bytes"],
        [
            [item.kind, item.key[:12], item.manifest.created_at, str(len(item.manifest.files)), f"{item.size_bytes:,}"]
            for item in found
        ],
    )


@artifacts_app.command("show")
def artifacts_show(
    name: Annotated[str, typer.Argument(metavar="KIND/KEY", help="A key or its first digits, with or without kind.")],
    as_json: AsJson = False,  # noqa: ARG001  # a manifest is JSON either way
) -> None:
    """Print an artifact's manifest: files, ingredients, parents, counts, cost.

    Example: deepspec artifacts show train/1f3a
    """
    _print_json(_store().resolve(name).manifest.model_dump(mode="json"))


@artifacts_app.command("lineage")
def artifacts_lineage(
    name: Annotated[str, typer.Argument(metavar="KIND/KEY", help="A key or its first digits, with or without kind.")],
    as_json: AsJson = False,
) -> None:
    """Show everything an artifact was made from.

    Example: deepspec artifacts lineage register/9c2e
    """
    from deepspec.store.gc import lineage

    store = _store()
    found = lineage(store, store.resolve(name))
    if as_json:
        _print_json([_brief(item) for item in found])
        return
    rows = []
    for item in found:
        parents = ", ".join(
            f"{parent}={origin.kind}/{(origin.key or origin.digest)[:12]}"
            for parent, origin in item.manifest.parents.items()
        )
        rows.append([item.kind, item.key[:12], item.digest[:12], parents])
    _table(["kind", "key", "digest", "made from"], rows)


@artifacts_app.command("gc")
def artifacts_gc(
    grace_seconds: Annotated[float, typer.Option(min=0, callback=_finite, help="Nothing younger is removed.")] = 24
    * 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no registered version, champion or live run reaches.

    Example: deepspec artifacts gc --dry-run
    """
    from deepspec.store.gc import collect, garbage

    store = _store()
    # Asked for again just before anything is removed: a version may be registered meanwhile.
    items = (garbage if dry_run else collect)(store, lambda: _roots(store), grace_seconds)
    if as_json:
        _print_json([{"name": item.name, "bytes": item.size_bytes, "reason": item.reason} for item in items])
        return
    _table(["artifact", "bytes", "why"], [[item.name, f"{item.size_bytes:,}", item.reason] for item in items])
    total = sum(item.size_bytes for item in items)
    _console().print(f"{total:,} bytes {'would be' if dry_run else 'were'} freed.", highlight=False)


@artifacts_app.command("verify")
def artifacts_verify(
    name: Annotated[str | None, typer.Argument(metavar="[KIND/KEY]", help="One artifact; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare every file with its SHA-256; what is damaged will be rebuilt by the next run.

    Example: deepspec artifacts verify
    """
    store = _store()
    chosen = [store.resolve(name)] if name else list(store.artifacts())
    damaged = {}
    for item in chosen:
        flaws = item.verify()
        if flaws:
            item.condemn("; ".join(flaws))
            damaged[f"{item.kind}/{item.key}"] = flaws
    if as_json:
        _print_json({"checked": len(chosen), "damaged": damaged})
    else:
        for where, flaws in damaged.items():
            _console().print(f"{where}: {'; '.join(flaws)}", highlight=False, markup=False, soft_wrap=True)
        _console().print(f"{len(chosen)} artifacts checked, {len(damaged)} damaged.", highlight=False)
    if damaged:
        raise typer.Exit(1)


ModelName = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Registered model; default: all.")]


@models_app.command("ls")
def models_ls(model: ModelName = None, as_json: AsJson = False) -> None:
    """List registered versions with their acceptance lengths; the champion is marked.

    Example: deepspec models ls demo
    """
    from flows import _models

    rows = _models.versions(_home(), model)
    if model and not rows:
        _fail(2, f"There is no registered model {model}. `deepspec models ls` lists them.")
    if as_json:
        _print_json(rows)
        return
    _table(
        ["model", "version", "alias", "draft", "run", "tau"],
        [
            [
                str(row["name"]),
                str(row["version"]),
                ", ".join(row["aliases"]),
                str(row["draft"])[:12],
                str(row["run_id"]),
                "\n".join(f"{name} {tau}" for name, tau in row["tau"].items()),
            ]
            for row in rows
        ],
    )


@models_app.command("history")
def models_history(model: Annotated[str, typer.Argument(help="Registered model.")], as_json: AsJson = False) -> None:
    """Show the promotion log: who became champion, instead of whom, when and why.

    Example: deepspec models history demo
    """
    from deepspec.registry.promotions import PromotionLog

    entries = PromotionLog(_store().backend).history(model)
    if not entries:
        _fail(2, f"Nothing was ever promoted as {model}. `deepspec models ls` lists the registered models.")
    if as_json:
        _print_json([entry.model_dump(mode="json") for entry in entries])
        return
    _table(
        ["n", "kind", "version", "draft", "instead of", "who", "when", "why"],
        [
            [
                str(entry.number),
                entry.kind,
                entry.champion.version or "",
                entry.champion.digest[:12],
                entry.previous.digest[:12] if entry.previous else "-",
                entry.who,
                entry.when.isoformat(timespec="seconds"),
                entry.verdict.sentence if entry.verdict else entry.reason,
            ]
            for entry in entries
        ],
    )


@models_app.command("reconcile")
def models_reconcile(model: Annotated[str, typer.Argument(help="Registered model.")]) -> None:
    """Make MLflow's alias `champion` say what the promotion log says.

    Example: deepspec models reconcile demo
    """
    from flows import _models

    _console().print(_models.reconcile(_home(), _store(), model), highlight=False)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str, typer.Argument(help="Version to make champion.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")] = "",
) -> None:
    """Make a registered version champion, if its gate accepted it against the present champion.

    Example: deepspec promote demo 2 --reason "canary was fine"
    """
    from flows import _models

    _console().print(_models.promote(_home(), _store(), model, version, reason), highlight=False)


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    to: Annotated[str | None, typer.Option(help="Version or draft digest; default: the champion before.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")] = "",
) -> None:
    """Make an earlier champion the champion again, by appending it to the promotion log.

    Example: deepspec rollback demo --reason "latency regression"
    """
    from flows import _models

    _console().print(_models.rollback(_home(), _store(), model, to, reason), highlight=False)


@app.command()
def export(
    draft: Annotated[
        str | None,
        typer.Argument(metavar="[DRAFT]", help="A directory, train/<key>, models:/<name>/<version> or …@champion."),
    ] = None,
    format_name: Annotated[str, typer.Option("--format", help="The format to write or to check.")] = "deepspec",
    out: Annotated[Path | None, typer.Option(help="New directory to write.")] = None,
    check: Annotated[Path | None, typer.Option(help="Check a directory in that format instead.")] = None,
    target: Annotated[str, typer.Option(help="The target's name, where the format wants it.")] = "",
) -> None:
    """Write a draft in a format that others read, or check such a directory.

    Example: deepspec export models:/demo@champion --format deepspec --out exported
    """
    from flows import _export

    console = _console()
    if check is not None:
        flaws = _export.check(format_name, check)
        for flaw in flaws:
            console.print(flaw, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{check}: {len(flaws)} flaws." if flaws else f"{check} is fine.", highlight=False)
        if flaws:
            raise typer.Exit(1)
        return
    if draft is None or out is None:
        _fail(2, "Name a DRAFT and --out DIR, or --check DIR.")
    _export.write(draft, format_name, out, target, home=_home(), store=_store())
    console.print(f"Written: {out}", highlight=False, markup=False, soft_wrap=True)


@bench_app.command("warm")
def bench_warm(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe that has been run here.")] = "demo",
    repeat: Annotated[int, typer.Option(min=1, help="How many runs; the median counts.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Time a run in which every stage is in the store already.

    Example: deepspec bench warm demo --repeat 5
    """
    from flows import _bench

    document = _bench.warm(recipe, _home(), repeat=repeat)
    if as_json:
        _print_json(document)
    else:
        ours = document["ours"]
        text = f"{recipe}: {ours['seconds']:.1f} s, median of {repeat}; peak {ours['peak_rss_bytes'] >> 20} MiB"
        _console().print(text, highlight=False)


@bench_app.command(
    "loss",
    # The bench reads its own options, here as in `python -m deepspec.bench`.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench_loss(context: typer.Context) -> None:
    """Compare the losses without logits with plain autograd: seconds, peak memory, gradients.

    Example: deepspec bench loss --anchors 64 --threads 2 --json
    """
    from deepspec.bench.__main__ import main as run_bench

    run_bench(["loss", *context.args], command="deepspec bench")


def main() -> NoReturn:
    """Entry point: errors become one sentence and an exit code."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        os._exit(130)
    except DeepspecError as error:
        if os.environ.get("DEEPSPEC_DEBUG"):
            raise
        print(f"deepspec: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's own usage errors
            print(f"deepspec: {error.format_message()} `deepspec --help` lists commands.", file=sys.stderr)
            sys.exit(2)
        if os.environ.get("DEEPSPEC_DEBUG"):
            raise
        print(f"deepspec: {type(error).__name__}: {error} (`deepspec --debug …` shows where.)", file=sys.stderr)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _run(name: str, overrides: list[str] | None, *, dry_run: bool, as_json: bool) -> None:
    from flows import _command

    code = _command.run(name, overrides or [], home=_home(), dry_run=dry_run, as_json=as_json, console=_console())
    if code:
        raise typer.Exit(code)


def _home() -> Path:
    return Path(os.environ["DEEPSPEC_HOME"])


def _store() -> "Store":
    from flows._home import store_of

    return store_of(_home())


def _roots(store: "Store") -> list[tuple[str, str]]:
    """Registered versions and champions, past and present, and what lies in the home as a demo's inputs."""
    from deepspec.registry.promotions import PromotionLog
    from flows.demo_inputs import made_inputs

    # By name: a damaged registration is rebuilt from its parents, which must still be there.
    roots = set(store.names("register"))
    return sorted(roots | PromotionLog(store.backend).roots() | made_inputs(_home()))


def _brief(item: Any) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "key": item.key,
        "digest": item.digest,
        "created_at": item.manifest.created_at,
        "files": len(item.manifest.files),
        "bytes": item.size_bytes,
    }


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        # The last one gives way: names and keys are to be copied whole.
        table.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _fail(code: int, message: str) -> NoReturn:
    print(f"deepspec: {message}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
