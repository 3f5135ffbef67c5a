"""The commands about registered models: `models …`, `promote`, `rollback`."""

from typing import Annotated

import typer

from deepspec.errors import BadArgument
from flows.cli.terminal import AsJson, artifact_store, home, print_json, show_lines, show_table

app = typer.Typer(help="Registered drafts and who is champion.\n\nExample: deepspec models ls", no_args_is_help=True)

ModelName = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Registered model; default: all.")]


@app.command("ls")
def ls(model: ModelName = None, as_json: AsJson = False) -> None:
    """List registered versions with their acceptance lengths; the champion is marked.

    Example: deepspec models ls demo
    """
    from deepspec.registry import operations

    rows = operations.versions(home(), model)
    if model and not rows:
        raise BadArgument(
            f"there is no registered model {model}.", where=str(home()), remedy="`deepspec models ls` lists them."
        )
    if as_json:
        print_json([row.to_json() for row in rows])
        return
    show_table(
        ["model", "version", "alias", "draft", "run", "tau"],
        [
            [
                row.name,
                row.version,
                ", ".join(row.aliases),
                row.draft[:12],
                row.run_id,
                ", ".join(f"{name} {tau}" for name, tau in row.tau.items()),
            ]
            for row in rows
        ],
    )


@app.command("history")
def history(model: Annotated[str, typer.Argument(help="Registered model.")], as_json: AsJson = False) -> None:
    """Show the promotion log: who became champion, instead of whom, when and why.

    Example: deepspec models history demo
    """
    from deepspec.registry.promotions import PromotionLog

    backend = artifact_store().backend
    entries = PromotionLog(backend).history(model)
    if not entries:
        raise BadArgument(
            f"nothing was ever promoted as {model}.",
            where=backend.location,
            remedy="`deepspec models ls` lists the registered models.",
        )
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in entries])
        return
    show_table(
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
                # What a person said first.
                "; ".join(filter(None, (entry.reason, entry.verdict.sentence if entry.verdict else ""))),
            ]
            for entry in entries
        ],
    )


@app.command("reconcile")
def reconcile(model: Annotated[str, typer.Argument(help="Registered model.")]) -> None:
    """Make MLflow say what the store says: its versions, and who is champion.

    Example: deepspec models reconcile demo
    """
    from deepspec.registry import operations

    show_lines(operations.reconcile(home(), artifact_store(), model))


def promote(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str, typer.Argument(help="Version to make champion.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")] = "",
) -> None:
    """Make a registered version champion, if its gate accepted it against the present champion.

    Example: deepspec promote demo 2 --reason "canary was fine"
    """
    from deepspec.registry import operations

    show_lines(operations.promote(home(), artifact_store(), model, version, reason))


def rollback(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    to: Annotated[str | None, typer.Option(help="Version or draft digest; default: the champion before.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")] = "",
) -> None:
    """Make an earlier champion the champion again, by appending it to the promotion log.

    Example: deepspec rollback demo --reason "latency regression"
    """
    from deepspec.registry import operations

    show_lines(operations.rollback(home(), artifact_store(), model, to, reason))
