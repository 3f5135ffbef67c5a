"""What the command `monitor` does: the draft found, its source looked at once or repeatedly, and what came shown."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data.config import plain_endpoint
from deepspec.data.responses.endpoint_exchange import KEY_VARIABLE
from deepspec.errors import BadArgument
from deepspec.monitoring import memory as memories
from deepspec.monitoring.report import ReferenceReport, Report, alarm_sentence
from deepspec.monitoring.subject import memory_of
from deepspec.monitoring.watch import Watch
from deepspec.store import Store
from deepspec.store.lease import leased
from flows.cli.terminal import say
from flows.cli.terminal import show as show_whole

if TYPE_CHECKING:
    from rich.console import Console

    from deepspec.monitoring.memory import Alarm

_LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Source:
    """Where served acceptance is read.

    Attributes:
        model: whose draft is served.
        url: of the server; None: a log is read.
        log: the log.
        served_model: what clients call the target; None: what was read first.
    """

    model: str
    url: str | None
    log: Path | None
    served_model: str | None

    def __post_init__(self) -> None:
        if (self.url is None) == (self.log is None):
            raise BadArgument("one source is wanted.", where="monitor", remedy="Give --url URL or --log FILE.")


def look(source: Source, store: Store) -> Report:
    """Look once.

    Raises:
        BadArgument: no such model, log or URL.
        LeaseHeld: another monitor watches this draft.
        DataError: the server refuses the key, or is none.
    """
    url = _plain(source)
    with leased(store.backend, _lease(source), _LEASE_SECONDS):
        watch = Watch(memory_of(source.model, store), served_model=source.served_model)
        return _look(watch, source, url, store)


def follow(
    source: Source,
    store: Store,
    poll_seconds: float,
    announced: Callable[["Alarm"], None],
    shown: Callable[[Report], None],
) -> None:
    """Look again and again, until Ctrl-C; what was found is in the store after each look.

    Args:
        source: what is read.
        store: where is remembered.
        poll_seconds: between looks.
        announced: is handed each alarm.
        shown: is handed the last look, at the end.

    Raises:
        as `look`.
    """
    url, report = _plain(source), None
    with leased(store.backend, _lease(source), _LEASE_SECONDS):
        watch = Watch(memory_of(source.model, store), served_model=source.served_model)
        try:
            while True:
                report = _look(watch, source, url, store)
                for alarm in report.alarms:
                    announced(alarm)
                time.sleep(poll_seconds)
        finally:
            if report is not None:
                shown(report)


def show(found: Report, console: "Console") -> None:
    """Streams with their references, what is to be known of the source, alarms with causes, and what to do."""
    from rich.text import Text

    from deepspec.reports.terminal import whole_table

    table = whole_table()
    for column in ("stream", "windows", "τ served", "registered", "burn-in", "finds a drop of"):
        table.add_column(column, justify="left" if column == "stream" else "right", no_wrap=True)
    for stream in found.streams:
        drops = [one.smallest_drop for one in (stream.registered, stream.burn_in) if one and one.smallest_drop]
        table.add_row(
            Text(stream.name),
            str(stream.windows),
            _with_interval(stream.tau, stream.tau_ci95),
            _reference(stream.registered, "-"),
            _reference(stream.burn_in, f"{stream.burn_in_windows} windows"),
            f"{min(drops):.1%}" if drops else "-",
        )
    show_whole(console, table)
    version = f" version {found.version}" if found.version else ""
    say(console, f"{found.model}{version}: {found.answers} of {found.rows} rows counted. {found.sentence}")
    for alarm in found.alarms:
        say(console, *(f"Likely cause ({cause.name}): {cause.sentence}" for cause in alarm.causes), alarm.advice)
    if found.evaluation is None:
        say(console, "Note: this draft has no evaluation in the store; its burn-in is the only reference.")
    say(console, *(f"Note: {sentence}" for sentence in found.said))
    say(console, *(f"Not counted: {count} rows, {reason}." for reason, count in found.not_counted.items()))


def alarm_lines(alarm: "Alarm") -> list[str]:
    """An alarm for people who follow."""
    return [alarm_sentence(alarm), f"Likely cause: {alarm.causes[0].sentence}", alarm.advice]


def _look(watch: Watch, source: Source, url: str, store: Store) -> Report:
    if source.log is not None:
        watch.read_log(source.log)
    else:
        watch.look_at(url, os.environ.get(KEY_VARIABLE) or None)
    memory = watch.memory()
    memories.write(store.backend, memory)
    report = watch.report()
    if report.alarms:
        from tasks.runtime.prefect.events import emit_drift_alarm

        for alarm in report.alarms:
            emit_drift_alarm(memory.model, alarm.to_json())
    return report


def _lease(source: Source) -> str:
    return f"monitor/{source.model.removeprefix('models:/').partition('@')[0].partition('/')[0]}"


def _plain(source: Source) -> str:
    if source.url is None:
        return ""
    try:
        return plain_endpoint(source.url, "this")
    except ValueError as error:
        raise BadArgument(
            f"this is no base URL of a server: {error}.", where="--url", remedy="Name it as http://127.0.0.1:8000."
        ) from error


def _reference(found: ReferenceReport | None, otherwise: str) -> str:
    return otherwise if found is None else _with_interval(found.tau, found.tau_ci95)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
