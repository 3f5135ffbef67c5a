"""The command `monitor`: served acceptance against what was registered."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import heartbeat
from flows.cli.terminal import AsJson, artifact_store, finite, note, print_json, results

if TYPE_CHECKING:
    from deepspec.monitoring.memory import Alarm
    from deepspec.monitoring.report import Report


def monitor(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Registered model, whose champion is served, or models:/<name>/<n>.")
    ],
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Base URL of the server, whose counters are read.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Request log, JSON Lines: with domains, if it has them.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the target; default: what was read first.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Look again and again; Ctrl-C ends it.")] = False,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="With --follow: the time between looks.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Test what a draft has served against its registered evaluation, and alarm where acceptance fell.

    It ends with exit code 3 where there is a new alarm. What was read is remembered in the store.

    Example: deepspec monitor demo --log requests.jsonl
    """
    from flows.cli.commands import monitor as monitoring

    source = monitoring.Source(model, url, log, served_model)
    store = artifact_store()

    def shown(found: "Report") -> None:
        if as_json:
            print_json(found.to_json())
        else:
            monitoring.show(found, results())

    def announced(alarm: "Alarm") -> None:
        for line in monitoring.alarm_lines(alarm):
            note(line)

    if follow:
        note(f"Following what {model} serves; a look every {poll_seconds:g} s. Ctrl-C ends it.")
        with heartbeat.elsewhere():
            monitoring.follow(source, store, poll_seconds, announced, shown)
        return
    found = monitoring.look(source, store)
    shown(found)
    for alarm in found.alarms:
        announced(alarm)
    if found.alarms:
        raise typer.Exit(3)
