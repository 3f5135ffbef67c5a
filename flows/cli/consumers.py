"""The commands about hosts that serve: `pull`, `serve`, and `models followers`."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepspec.errors import BadArgument, LaunchError
from deepspec.units import in_units
from flows.cli import heartbeat
from flows.cli.terminal import (
    AsJson,
    DraftName,
    artifact_store,
    finite,
    home,
    note,
    print_json,
    print_text,
    progress,
    show_lines,
    show_table,
)

if TYPE_CHECKING:
    from deepspec.registry.draft_names import RegisteredName
    from deepspec.serving.follow import Holder, Settings
    from deepspec.serving.pull import Pulled
    from deepspec.serving.swap import Place
    from deepspec.store import Store


def pull(
    draft: DraftName,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where the draft is to lie: a new directory, or one that was pulled.")
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Go on, and pull each new champion.")] = False,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="With --follow: how often the store is asked.")
    ] = 5.0,
    hook: Annotated[
        str | None, typer.Option(metavar="CMD", help="Run this after each swap; it finds DEEPSPEC_DRAFT_… set.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The target that is served: a draft of another one is refused.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Change the draft of a running server of vllm or sglang by its own calls.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Base URL of that server, on this host.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a promoted draft into a directory: every byte checked, swapped from one moment to the next.

    It only reads the store; --follow also writes there what this host holds, if it may (`deepspec models followers`).

    Example: deepspec pull models:/demo@champion serving
    """
    from deepspec.home import store_of_last_run
    from deepspec.serving import hook as hooks
    from deepspec.serving.follow import Settings
    from deepspec.serving.names import draft_named
    from deepspec.serving.pull import pull as pull_draft
    from deepspec.serving.swap import Place
    from flows.cli.progress import progress_of

    command = None if hook is None else hooks.words_of(hook)
    if target is not None and not target.is_dir():
        raise BadArgument("there is no such directory.", where=f"--target {target}", remedy="Name the target's.")
    place = Place(directory)
    store = store_of_last_run(home(), place.download)
    memo = home() / "fingerprints.json"
    server = _endpoint(engine, endpoint, target, store)
    if follow:
        _follow(draft, place, store, Settings(poll_seconds, command, target, memo, server), as_json=as_json)
        return
    with progress_of(progress(), "pull") as work:
        outcome = pull_draft(draft_named(draft, home(), store), store, place, target=target, memo=memo, progress=work)
    held, code = outcome.held, 0
    if outcome.tampered:
        note(f"deepspec: what was there was not what was pulled: {outcome.tampered}.")
    if server is not None:
        server.hold(held, outcome.folder)
    if command is not None and held.hook_exit != 0:
        code = hooks.run(command, held, outcome.folder, place.link)
        held = held.model_copy(update={"hook_exit": code})
        held.write(outcome.folder)
    if as_json:
        print_json({**_document(held, place.link), "downloaded_bytes": outcome.downloaded_bytes})
    else:
        did = f"{in_units(outcome.downloaded_bytes)} downloaded" if outcome.downloaded_bytes else "nothing to download"
        show_lines(f"{directory}: {_name(held)}; {did}, every byte is as it was promoted.")
    if code:
        raise LaunchError(
            f"The command ended with exit code {code}.", where="--hook", remedy="The draft is in place; run it again."
        )


def serve(
    draft: DraftName,
    engine: Annotated[str, typer.Option(help="Whose server: vllm or sglang.")],
    further: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT", help="After --: arguments of the engine itself.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The target that is served; default: the last run's.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where the draft is to lie; default: in the home.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Python of the engine's environment; default: $DEEPSPEC_ENGINE_PYTHON."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model; default: the target's directory.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the engine's own (8000, 30000).")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Let its draft be changed while it serves, by any client of its port.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Serve each new champion; implies --live.")] = False,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="With --follow: how often the store is asked.")
    ] = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, and start nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a draft and its target with the engine's own server: exported for it, checked, and started.

    Example: deepspec serve models:/demo@champion --engine vllm --dry-run
    """
    from flows.cli.commands import serve as serving

    wanted = serving.Wanted(
        draft, engine, directory, target, python, name, host, port, live or follow, tuple(further or ())
    )
    followed = _followed(draft) if follow else None
    ready = serving.Ready(wanted, home())
    document = ready.launch.to_json()
    if dry_run:
        if as_json:
            print_json(document)
        else:
            print_text(f"{ready.launch.shell_line()}\n")
        return
    ready.before_start()
    with heartbeat.elsewhere(), _sigterm():
        if followed is None:
            code = serving.run(ready, note, _Terminated)
        else:
            code = serving.run_following(ready, followed, poll_seconds, note, _Terminated)
    if as_json:
        print_json({**document, "exit_code": code})
    else:
        show_lines(f"{engine} ended with exit code {code}.")


def followers(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Registered model; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the hosts that follow a champion: what each holds, since when, and whether it is well.

    Example: deepspec models followers demo
    """
    from deepspec.serving import followers as serving

    found = serving.followers(artifact_store().backend, model)
    if as_json:
        print_json([serving.document(seen) for seen in found])
        return
    show_table(
        ["model", "host", "directory", "version", "draft", "champion", "since", "seen", "state"],
        [
            [
                seen.follower.model,
                seen.follower.host,
                seen.follower.directory,
                seen.follower.version or "-",
                seen.follower.digest[:12] or "-",
                {True: "yes", False: "no", None: "unknown"}[seen.is_champion],
                seen.follower.since or "-",
                f"{seen.silent_seconds:.0f} s ago",
                ": ".join(filter(None, (seen.state, seen.follower.trouble))),
            ]
            for seen in found
        ],
    )


def _follow(
    draft: str,
    place: "Place",
    store: "Store",
    settings: "Settings",
    *,
    as_json: bool,
) -> None:
    """Follow until a signal: SIGTERM ends it well, Ctrl-C as any command."""
    from deepspec.serving.follow import Following

    name = _followed(draft)
    following = Following(name, store, place, settings, say=note)
    note(f"Following {name}; the store is asked every {settings.poll_seconds:g} s. Ctrl-C ends it.")
    with _sigterm(), heartbeat.elsewhere():
        try:
            following.run()
        except _Terminated:
            note("Ended.")
        finally:
            following.say_back(stopped=True)
    held = following.held
    if as_json:
        print_json(None if held is None else _document(held, place.link))


def _followed(draft: str) -> "RegisteredName":
    """The name of a champion.

    Raises:
        BadArgument: it always means the same draft.
    """
    from deepspec.registry.draft_names import registered_name
    from deepspec.serving.names import WHERE

    name = registered_name(draft, WHERE)
    if name is None:
        raise BadArgument(
            f"{draft!r} always means the same draft.", where=WHERE, remedy="Name models:/<name>@champion."
        )
    return name


def _endpoint(engine: str | None, url: str | None, target: Path | None, store: "Store") -> "Holder | None":
    """The server that is to run what is pulled.

    Raises:
        BadArgument: only one of the two options is there.
    """
    if engine is None and url is None:
        return None
    if engine is None or url is None:
        missing = "--engine" if engine is None else "--endpoint"
        raise BadArgument(f"{missing} is missing.", where="pull", remedy="Name the engine and its server's URL.")
    from flows.cli.commands.serve import endpoint

    return endpoint(engine, url, target, store)


class _Terminated(BaseException):
    """SIGTERM."""


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """Let SIGTERM raise `_Terminated` for the block, once: what tidies up afterwards is not interrupted."""

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _document(held: "Pulled", link: Path) -> dict[str, Any]:
    return {**held.to_json(), "directory": str(link)}


def _name(held: "Pulled") -> str:
    return f"{held.model} version {held.version}" if held.version else f"{held.kind}/{held.key[:12]}"
