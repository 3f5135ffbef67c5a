"""The commands about registered models: `models …`, `promote`, `rollback`."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepspec.errors import BadArgument
from flows.cli.consumers import followers
from flows.cli.terminal import AsJson, DraftName, artifact_store, home, note, print_json, show_lines, show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepspec.registry.entries import Promotion
    from deepspec.registry.operations import VersionSummary
    from deepspec.registry.production import Production
    from deepspec.registry.show import VersionPage

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
    """Show the promotion log: who made what champion, instead of what, when and why; what is blocked is marked.

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
    from deepspec.registry.blocks import blocked_entries

    blocked = blocked_entries(entries)
    show_table(
        ["n", "kind", "version", "draft", "instead of", "blocked", "who", "when", "why"],
        [
            [
                str(entry.number),
                entry.kind,
                (entry.champion.version or "") if entry.kind != "unblock" else "",
                _about(entry)[:12],
                entry.previous.digest[:12] if entry.previous and entry.kind != "unblock" else "-",
                f"by {blocked[_about(entry)]}" if _about(entry) in blocked else "",
                entry.asked_by,
                entry.when.isoformat(timespec="seconds"),
                # What a person said first.
                "; ".join(filter(None, (entry.reason, entry.verdict.sentence if entry.verdict else ""))),
            ]
            for entry in entries
        ],
    )


def _about(entry: "Promotion") -> str:
    """Digest of the draft that an entry is about: that it made champion, or unblocked."""
    return entry.about.digest if entry.kind == "unblock" and entry.about else entry.champion.digest


@app.command("show")
def show_version(
    name: Annotated[str, typer.Argument(metavar="MODEL|DRAFT", help="A model: its champion; or models:/NAME/VERSION.")],
    as_json: AsJson = False,
) -> None:
    """Show what is known of a version: its verdict with every reason, acceptance, speed, and what it was made from.

    Example: deepspec models show models:/demo/2
    """
    from deepspec.registry import show

    page = show.show(home(), artifact_store(), name)
    if as_json:
        print_json(page.to_json())
    else:
        _show_page(page)


def _show_page(page: "VersionPage") -> None:
    aliases = f" ({', '.join(page.aliases)})" if page.aliases else ""
    show_lines(f"{page.name} version {page.version}{aliases}", f"draft: {page.kind}/{page.key} ({page.digest[:12]})")
    if page.blocked is not None:
        show_lines(f"blocked: {page.blocked}")
    if page.verdict is None:
        show_lines("verdict: it was never judged.")
    else:
        show_lines(f"verdict: {'accepted' if page.verdict['accepted'] else 'refused'}")
        show_lines(*(f"  {reason['gate']}: {reason['sentence']}" for reason in page.verdict["reasons"]))
    show_table(
        ["benchmark", "tau", "95 %", "speedup"],
        [
            [
                name,
                _number(part.tau),
                " … ".join(map(_number, part.tau_ci95)) if part.tau_ci95 else "",
                _number(page.speed[name].speedup) if name in page.speed else "",
            ]
            for name, part in page.tau.items()
        ],
    )
    show_lines("made from:")
    show_table(
        ["kind", "key", "digest", ""],
        [
            [item.kind, item.key[:12], item.digest[:12], "" if item.in_store else "not in this store"]
            for item in page.lineage
        ],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@app.command("reconcile")
def reconcile(model: Annotated[str, typer.Argument(help="Registered model.")]) -> None:
    """Make MLflow say what the store says: its versions, and who is champion.

    Example: deepspec models reconcile demo
    """
    from deepspec.registry import operations

    production = _production()
    show_lines(operations.reconcile(home(), artifact_store(), model).said)
    _show_again(model)
    _let_follow(production, model)


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

    production = _production()
    done = operations.promote(home(), artifact_store(), draft, reason, unblock=unblock)
    show_lines(*done.said)
    if done.serves:
        _end_waiting(done.model, done.said[-1])
    _show_again(done.model)
    _show_on_dashboard()
    _let_follow(production, done.model)


def _show_again(model: str) -> None:
    """Let the model's pages in MLflow and Prefect say who serves now."""
    from flows.model_page import show_again

    show_again(home(), artifact_store(), model)


def _production() -> "Production | None":
    """Where promoted drafts go on to; asked before anything is done, for it may be set up wrongly."""
    from deepspec.registry.production import production_of

    return production_of(artifact_store(), home())


def _let_follow(production: "Production | None", model: str) -> None:
    """Bring production up to the promotion log, and say so; end with an error where waiting does not help."""
    if production is None:
        return
    from deepspec.registry.following import follow

    followed = follow(artifact_store(), home(), model, production)
    show_lines(*followed.done)
    if followed.late is not None:
        note(f"deepspec: {followed.late}")
    if followed.error is not None:
        note(f"deepspec: {followed.error}")
        raise typer.Exit(1)


def _show_on_dashboard() -> None:
    """Bring the store's dashboard up to the promotion log."""
    from deepspec.dashboard.publish import publish_dashboard

    publish_dashboard(artifact_store())


def _end_waiting(model: str, why: str) -> None:
    """End the flow runs that wait for an approval of a model's drafts, where there is a Prefect server."""
    from tasks.runtime.prefect import server

    if not server.is_configured():
        return
    from flows.waiting import try_to_supersede

    ended = try_to_supersede(model, why)
    if ended:
        show_lines(f"Ended on Prefect's server, where they waited for an approval: {', '.join(ended)}.")


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

    production = _production()
    done = operations.rollback(home(), artifact_store(), model, to, reason)
    show_lines(done.said)
    _show_again(done.model)
    _show_on_dashboard()
    _let_follow(production, done.model)


def _note_differences(model: str | None) -> bool:
    """Say what MLflow lacks of what the store's promotion logs say; return whether there is anything."""
    from deepspec.registry import operations

    found = operations.differences(home(), artifact_store(), model)
    for sentence in found:
        note(f"deepspec: {sentence}")
    return bool(found)


app.command("followers")(followers)
