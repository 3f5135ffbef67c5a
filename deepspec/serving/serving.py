"""Which server runs the draft that a host holds: one that others started, or one that we start ourselves.

Following ──► Held.hold(held, folder)      with every poll; nothing is done if the server runs it already
                 ├─ Endpoint               the engine's own calls; a server without them is reported
                 └─ OwnServer              the same, or a restart: answers under way end first
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

from deepspec.errors import DeepspecError, IncompatibleDraft
from deepspec.serving.errors import EngineEnded, NotUpdatable
from deepspec.serving.launch import Launch, Server, launch
from deepspec.serving.live import CLIENTS, Vllm
from deepspec.serving.prepare import Prepared
from deepspec.serving.process import EngineProcess
from deepspec.serving.pull import Pulled

Prepare = Callable[[Pulled, Path], Prepared]
"""(what is held, its folder) -> the draft in the engine's format."""


def version_of(held: Pulled) -> str:
    """The version that a server reports for a draft: its name for people, and the beginning of its digest."""
    name = f"{held.model}/{held.version}" if held.version else f"{held.kind}/{held.key[:12]}"
    return f"{name} {held.digest[:12]}"


class Endpoint:
    """A server that we did not start, asked by its own calls.

    Args:
        engine: whose server it is.
        url: base URL.
        prepare: makes the engine's format of what is held.
        api_key: sent as bearer token.
    """

    def __init__(self, engine: str, url: str, prepare: Prepare, api_key: str | None = None) -> None:
        self._client = CLIENTS[engine](url, api_key)
        self._prepare = prepare
        self._refused: tuple[str, str, DeepspecError] | None = None

    def hold(self, held: Pulled, folder: Path) -> bool:
        """Let the server run what is held; whether that changed anything.

        Raises:
            NotUpdatable, IncompatibleDraft: it cannot; it is not asked again before one of them changes.
            TransientError: it does not answer.
        """
        version, runs = version_of(held), self._client.version()
        if runs == version:
            return False
        if self._refused is not None and self._refused[:2] == (version, runs):
            raise self._refused[2]
        try:
            self._client.update(self._prepare(held, folder).directory, version)
        except NotUpdatable as error:
            self._refused = (version, runs, error)
            raise
        return True


class OwnServer:
    """A server that we start, and start again where it cannot take a new draft while it runs; a context.

    Args:
        server: how it is started.
        prepare: makes the engine's format of what is held.
        log: takes what it says.
        say: takes a sentence for people.
    """

    def __init__(self, server: Server, prepare: Prepare, log: Path, say: Callable[[str], None]) -> None:
        self._server, self._prepare, self._log, self._say = server, prepare, log, say
        self._process: EngineProcess | None = None
        self._version = ""
        self._refused: tuple[str, DeepspecError] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> int | None:
        """End it, if it runs; its exit code."""
        return None if self._process is None else self._process.end()

    def wait(self, seconds: float) -> None:
        """Let time pass while it runs.

        Raises:
            EngineEnded: it does not.
        """
        if self._process is not None and self._process.wait(seconds) is not None:
            self._process.refuse_ended()

    def hold(self, held: Pulled, folder: Path) -> bool:
        """Let it run what is held; whether that changed anything.

        Raises:
            IncompatibleDraft: the engine loads no such draft; what ran runs on.
            EngineEnded: it does not start with it, and runs with the draft before again; or it ended.
        """
        version = version_of(held)
        if version == self._version:
            return False
        if self._refused is not None and self._refused[0] == version:
            raise self._refused[1]
        try:
            self._change(launch(self._prepare(held, folder), self._server), version)
        except (EngineEnded, IncompatibleDraft) as error:
            self._refused = (version, error)
            raise
        self._version = version
        return True

    def _change(self, new: Launch, version: str) -> None:
        running = self._process
        if running is None:
            self._start(new, version)
            return
        running.refuse_ended()
        if self._server.live and self._updated(new, version):
            return
        self._say("Restarting the server: it ends what it has begun, and takes no new requests until it is back.")
        running.end()
        try:
            self._start(new, version)
        except EngineEnded:
            self._say("It does not start with the new draft; starting it with the one before.")
            self._start(running.launch, self._version)
            raise

    def _updated(self, new: Launch, version: str) -> bool:
        """Whether the running server could take the draft."""
        try:
            CLIENTS[new.draft.engine](new.url).update(new.draft.directory, version)
        except DeepspecError as error:
            self._say(f"The draft cannot be changed while the server runs: {error.what}")
            return False
        return True

    def _start(self, new: Launch, version: str) -> None:
        self._process = EngineProcess(new, self._log)
        self._process.wait_ready()
        if self._server.live and new.draft.engine == "vllm":
            Vllm(new.url).name(version)
