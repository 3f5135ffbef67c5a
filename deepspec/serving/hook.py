"""The command that a person wants to be run after each swap: a restart of their server, most often."""

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

from deepspec.errors import BadArgument
from deepspec.serving.pull import Pulled

MOST_SECONDS = 600.0
"""A command that takes longer is ended: it restarts a server, and is not the server."""
_NOT_FOUND = 127
_TIMED_OUT = 124


def words_of(command: str) -> list[str]:
    """The command as a list; no shell reads it (name one for pipes: `sh -c '…'`).

    Raises:
        BadArgument: it is empty, or a quote in it does not end.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadArgument(f"{command!r} cannot be read: {error}.", where="--hook", remedy="Close the quote.") from error
    if not words:
        raise BadArgument("the command is empty.", where="--hook", remedy="Name a command, or leave --hook out.")
    return words


def run(words: list[str], held: Pulled, folder: Path, link: Path, seconds: float = MOST_SECONDS) -> int:
    """Run the command for the draft that was put in place; return its exit code (124: it took too long; 127: missing).

    Its output goes to stderr. It runs in a process group of its own, which is ended if it takes too long, or this
    process is interrupted.
    """
    try:
        process = subprocess.Popen(
            words, env={**os.environ, **variables(held, folder, link)}, stdout=2, start_new_session=True
        )
    except OSError:
        return _NOT_FOUND
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return _TIMED_OUT
    except BaseException:
        _end(process)
        raise


def variables(held: Pulled, folder: Path, link: Path) -> dict[str, str]:
    """What the command finds in its environment."""
    return {
        "DEEPSPEC_DRAFT_DIR": str(folder),
        "DEEPSPEC_DRAFT_LINK": str(link),
        "DEEPSPEC_DRAFT_MODEL": held.model,
        "DEEPSPEC_DRAFT_VERSION": held.version,
        "DEEPSPEC_DRAFT_DIGEST": held.digest,
        "DEEPSPEC_DRAFT_KEY": f"{held.kind}/{held.key}",
    }


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
