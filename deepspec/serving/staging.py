"""A candidate on a staging server: swapped in by the engine's own calls, and asked whether it is served as measured.

    gate ──► staged ──► live.CLIENTS (the draft that it has is replaced) ──► served_check

The champion's servers are not touched: a candidate may be worse. The server was started with `deepspec serve --live`,
for the same target, and reads the folder that the candidate is written to: it runs on this host, or shares the disk.
What cannot take another draft while it runs is asked as it is: it may have been started with the candidate. The
candidate stays in it afterwards, and the next one replaces it.
"""

from pathlib import Path

from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.errors import DataError, IncompatibleDraft, TransientError
from deepspec.evaluation.server.asked import Pace, Server
from deepspec.evaluation.server.check_results import ServedCheck
from deepspec.gates.evidence import Served
from deepspec.progress import SILENT, Progress
from deepspec.serving.errors import NotUpdatable
from deepspec.serving.live import CLIENTS, Engine
from deepspec.serving.prepare import prepared
from deepspec.serving.served_check import Wanted, served_check


def staged(
    wanted: Wanted,
    server: Server,
    vocabulary: Vocabulary,
    out: Path,
    *,
    pace: Pace | None = None,
    progress: Progress = SILENT,
) -> Served:
    """Let a staging server serve a candidate, and ask it; whatever keeps it from that is the answer.

    Args:
        wanted: the candidate, which lies in the store.
        server: the staging server.
        vocabulary: the target's.
        out: where the candidate goes in the engine's format; the server reads it there.
        pace: of reading counters.
        progress: advances by prompts.
    """
    version = f"{wanted.name} {wanted.digest[:12]}" if wanted.digest else wanted.name
    place = f"The server at {server.url}"
    try:
        client, kept = _swapped(wanted, server, version, out)
        found = served_check(wanted, server, vocabulary, pace=pace, progress=progress)
        if client is not None and client.version() != version:
            return Served(passed=False, sentence=f"{place} was given another draft meanwhile.")
    except (DataError, IncompatibleDraft, NotUpdatable, TransientError) as error:
        return Served(passed=False, sentence=f"{place} was not asked to the end: {error.what.rstrip('.')}.")
    return Served(
        passed=found.passed,
        sentence=_sentence(place, found, kept),
        rounds=found.served.rounds,
        expected=found.expected.rounds,
    )


def _swapped(wanted: Wanted, server: Server, version: str, out: Path) -> tuple[Engine | None, str]:
    """The server's calls, by which it runs the candidate now; or why it runs what it was started with.

    Raises:
        IncompatibleDraft: the engine loads no such draft.
        TransientError: it does not answer.
    """
    for engine, make in CLIENTS.items():
        client = make(server.url, server.api_key)
        try:
            says = client.version()
        except NotUpdatable:  # it is no such engine, or not started for it
            continue
        if says == version:
            return client, ""
        directory = prepared(wanted.draft, engine, out / engine, wanted.target.name, {}).directory
        try:
            client.update(directory, version)
        except NotUpdatable as error:
            return None, error.what
        return client, ""
    return None, "it was not started with deepspec serve --live."


def _sentence(place: str, found: ServedCheck, kept: str) -> str:
    said = f"{place}: {found.sentence}"
    if found.passed:
        return said
    cause = f" {found.causes[0]}" if found.causes else ""
    return f"{said}{cause}{f' It could not be given the draft: {kept}' if kept else ''}"
