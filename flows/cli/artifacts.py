"""The commands `artifacts …`: what is in the store, where it came from, whether it is whole, what can go."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepspec.errors import BadArgument
from deepspec.units import in_units
from flows.cli.backup import copy
from flows.cli.terminal import AsJson, artifact_store, finite, home, print_json, show_lines, show_table
from flows.cli.terminal import progress as console

if TYPE_CHECKING:
    from deepspec.store import Artifact, Store

app = typer.Typer(
    help="Look at, check and clean the artifact store.\n\nExample: deepspec artifacts ls", no_args_is_help=True
)


_NAMES = (
    "A key or its first digits, with or without kind (train/1f3a); models:/<name>/<version>, models:/<name>@champion."
)
ArtifactName = Annotated[str, typer.Argument(metavar="NAME", help=_NAMES)]


@app.command("ls")
def ls(
    kind: Annotated[str | None, typer.Argument(help="Only this kind (a stage's name).")] = None, as_json: AsJson = False
) -> None:
    """List artifacts, newest first.

    Example: deepspec artifacts ls train
    """
    store = artifact_store()
    if kind is not None:
        _check_kind(store, kind)
    found = sorted(store.artifacts(kind), key=lambda item: item.manifest.created_at, reverse=True)
    if as_json:
        print_json([_brief(item) for item in found])
        return
    show_table(
        ["kind", "key", "made", "files", "size"],
        [
            [
                item.kind,
                item.key[:12],
                item.manifest.created_at,
                str(len(item.manifest.files)),
                in_units(item.size_bytes),
            ]
            for item in found
        ],
    )


@app.command("show")
def show(
    name: ArtifactName,
    as_json: AsJson = False,  # noqa: ARG001  # a manifest is JSON either way
) -> None:
    """Print an artifact's manifest: files, ingredients, parents, counts, cost.

    Example: deepspec artifacts show train/1f3a
    """
    print_json(_named(artifact_store(), name).manifest.to_json())


@app.command("lineage")
def lineage(
    name: ArtifactName,
    as_json: AsJson = False,
) -> None:
    """Show everything an artifact was made from, down to the files of conversations.

    Example: deepspec artifacts lineage models:/demo@champion
    """
    from deepspec.store.gc import absent, lineage

    store = artifact_store()
    found = lineage(_named(store, name), store.find)
    elsewhere = absent(found)
    if as_json:
        here = [{**_brief(item), "sources": _sources(item)} for item in found]
        print_json([*here, *({"kind": one.kind, "key": one.key, "digest": one.digest} for one in elsewhere)])
        return
    rows = []
    for item in found:
        parents = ", ".join(
            f"{parent}={origin.kind}/{(origin.key or origin.digest)[:12]}"
            for parent, origin in item.manifest.parents.items()
        )
        rows.append([item.kind, item.key[:12], item.digest[:12], parents])
    rows += [[one.kind, str(one.key)[:12], one.digest[:12], "not in this store"] for one in elsewhere]
    show_table(["kind", "key", "digest", "made from"], rows)
    sources = [(item, source) for item in found for source in _sources(item)]
    if sources:
        show_lines("")
        show_table(
            ["read by", "rows", "kept", "licence", "source"],
            [
                [
                    f"{item.kind}/{item.key[:12]}",
                    f"{source['rows']:,}",
                    "-" if source["conversations"] is None else f"{source['conversations']:,}",
                    source["licence"] or "none is named",
                    source["name"],
                ]
                for item, source in sources
            ],
        )


@app.command("gc")
def gc(
    context: typer.Context,
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, callback=finite, help="Nothing younger is removed; default: store.gc_grace_seconds, or a day."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no registered version, champion or live run reaches.

    Example: deepspec artifacts gc --dry-run
    """
    from deepspec.home import last_store
    from deepspec.store.gc import GRACE_SECONDS, collect, garbage

    store = artifact_store()
    if grace_seconds is None:
        settings = vars(context.obj) if context.obj is not None else last_store(home())
        grace_seconds = float(settings.get("gc_grace_seconds", GRACE_SECONDS))
    # Asked for again just before anything is removed: a version may be registered meanwhile.
    items = (garbage if dry_run else collect)(store, lambda: _roots(store), grace_seconds)
    if as_json:
        print_json([{"name": item.name, "bytes": item.size_bytes, "reason": item.reason} for item in items])
        return
    show_table(["artifact", "size", "why"], [[item.name, in_units(item.size_bytes), item.reason] for item in items])
    total = sum(item.size_bytes for item in items)
    show_lines(f"{in_units(total)} {'would be' if dry_run else 'were'} freed.")


@app.command("verify")
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help=f"One artifact; default: all. {_NAMES}")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare every file with its SHA-256; what is damaged will be rebuilt by the next run.

    Example: deepspec artifacts verify
    """
    from flows.cli.progress import progress_of

    store = artifact_store()
    chosen = [_named(store, name)] if name else list(store.artifacts())
    damaged = {}
    with progress_of(console(), "verify") as progress:
        progress.start(len(chosen), "artifacts")
        for item in chosen:
            flaws = item.verify()
            if flaws:
                item.condemn("; ".join(flaws))
                damaged[f"{item.kind}/{item.key}"] = flaws
            progress.advance()
    if as_json:
        print_json({"checked": len(chosen), "damaged": damaged})
    else:
        for where, flaws in damaged.items():
            show_lines(f"{where}: {'; '.join(flaws)}")
        show_lines(f"{len(chosen)} artifacts checked, {len(damaged)} damaged.")
    if damaged:
        raise typer.Exit(1)


app.command("copy")(copy)


def _check_kind(store: "Store", kind: str) -> None:
    """Refuse a kind that is neither a stage's name nor in the store."""
    from tasks.stages import STAGES

    # What an older version's stages left may be in the store.
    stages = {stage.name for stage in STAGES}
    if kind in stages:
        return
    known = stages | {found for found, _ in store.names()}
    if kind not in known:
        raise BadArgument(
            f"{kind!r} is no kind of artifact.", where="KIND", remedy=f"Name one of {', '.join(sorted(known))}."
        )


def _roots(store: "Store") -> list[tuple[str, str]]:
    """Registered versions and champions, past and present, and what lies in the home as a demo's inputs."""
    from deepspec.demo.inputs import made_inputs
    from deepspec.registry.promotions import PromotionLog

    # By name: a damaged registration is rebuilt from its parents, which must still be there.
    roots = set(store.names("register"))
    return sorted(roots | PromotionLog(store.backend).roots() | made_inputs(home()))


def _named(store: "Store", name: str) -> "Artifact":
    from deepspec.registry.draft_names import artifact_of

    return artifact_of(name, home(), store, where="NAME")


def _sources(item: "Artifact") -> list[dict[str, Any]]:
    """The files that an artifact of conversations was read from, as they were then; empty for any other."""
    counts = item.manifest.counts
    names = ("name", "rows", "conversations", "licence")
    if "sources" in counts:
        return [{name: source.get(name) for name in names} for source in counts["sources"]]
    # An earlier deepspec counted rows alone.
    rows = counts.get("rows_by_source", {})
    return [dict(zip(names, (name, number, None, None), strict=True)) for name, number in rows.items()]


def _brief(item: "Artifact") -> dict[str, str | int]:
    return {
        "kind": item.kind,
        "key": item.key,
        "digest": item.digest,
        "created_at": item.manifest.created_at,
        "files": len(item.manifest.files),
        "bytes": item.size_bytes,
    }
