"""The commands about registered models: `models …`, `promote`, `rollback`."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepspec.errors import BadArgument
from flows.cli.terminal import AsJson, DraftName, artifact_store, home, note, print_json, show_lines, show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepspec.registry.entries import Promotion
    from deepspec.registry.operations import VersionSummary

app = typer.Typer(help="Registered drafts and who is champion.\n\nExample: deepspec models ls", no_args_is_help=True)

ModelName = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Registered model; default: all.")]


@app.command("ls")
def ls(model: ModelName = None, as_json: AsJson = False) -> None:
    """List registered versions with their acceptance lengths; the champion is marked.

    Example: deepspec models ls demo
    """
    from deepspec.registry import operations

    rows = operations.versions(home(), model)
    differs = _note_differences(model)
    if model and not rows and not differs:
        raise BadArgument(
            f"there is no registered model {model}.", where=str(home()), remedy="`deepspec models ls` lists them."
        )
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        columns = ["model", "version", "alias", "draft", "run", "tau"]
        show_table(columns, [_cells(row) for row in rows])
    if model and differs:
        raise typer.Exit(1)


def _cells(row: "VersionSummary") -> list[str]:
    taus = ", ".join(f"{name} {tau}" for name, tau in row.tau.items())
    return [row.name, row.version, ", ".join(row.aliases), row.draft[:12], row.run_id, taus]


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
    else:
        _show_log(entries)
    _note_differences(model)  # last: MLflow may take long to answer, or not answer


def _show_log(entries: "Sequence[Promotion]") -> None:
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
    draft: DraftName,
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")] = "",
    unblock: Annotated[
        bool, typer.Option("--unblock", help="Let a draft that was rolled back be promoted again, by runs too.")
    ] = False,
) -> None:
    """Make a registered version champion, if its gate accepted it against the present champion.

    Example: deepspec promote models:/demo/2 --reason "canary was fine"
    """
    from deepspec.registry import operations

    show_lines(*operations.promote(home(), artifact_store(), draft, reason, unblock=unblock))


def rollback(
    model: Annotated[str, typer.Argument(help="Registered model; or models:/<name>/<version>, the version to go to.")],
    to: Annotated[
        str | None,
        typer.Option(help="Version, draft digest or models:/<name>/<version>; default: the champion before."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the promotion log.")] = "",
) -> None:
    """Make an earlier champion the champion again, by appending it to the promotion log.

    Example: deepspec rollback demo --reason "latency regression"
    """
    from deepspec.registry import operations

    show_lines(operations.rollback(home(), artifact_store(), model, to, reason))


def _note_differences(model: str | None) -> bool:
    """Say what MLflow lacks of what the store's promotion logs say; return whether there is anything."""
    from deepspec.registry import operations

    found = operations.differences(home(), artifact_store(), model)
    for sentence in found:
        note(f"deepspec: {sentence}")
    return bool(found)
