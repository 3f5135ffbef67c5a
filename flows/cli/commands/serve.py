"""`deepspec serve`: the draft pulled and exported, and the engine's own server started with it, or only shown.

DRAFT ──► pull ──► the engine's format, checked ──► the command line ──► a child process ──► follow
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepspec.data.responses.endpoint_exchange import KEY_VARIABLE
from deepspec.errors import BadArgument
from deepspec.home import last_target, store_of_last_run
from deepspec.registry.draft_export import about_draft
from deepspec.registry.draft_names import RegisteredName, draft_directory
from deepspec.serving.follow import Following, Settings
from deepspec.serving.launch import PORTS, Launch, Server, launch
from deepspec.serving.live import Vllm
from deepspec.serving.names import draft_named
from deepspec.serving.prepare import Prepared, has_confidences, known_engine, prepared
from deepspec.serving.process import EngineProcess, refuse_missing, refuse_taken
from deepspec.serving.pull import Pulled, check_config, pull
from deepspec.serving.serving import Endpoint, OwnServer, Prepare, version_of
from deepspec.serving.swap import Place
from deepspec.store import Store
from deepspec.store.fingerprint import Fingerprints, model_files

PYTHON = "DEEPSPEC_ENGINE_PYTHON"
"""Names the Python of the engine's environment."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        draft: its name.
        engine: whose server.
        directory: where the draft is to lie; None: in the home.
        target: the target's directory; None: where the last run's is.
        python: of the engine's environment; None: the variable's, or this one.
        name: what the model is called by its clients; None: as the target's directory.
        host, port: where it listens; port None: the engine's own default.
        live: whether its draft shall be changed while it serves.
        further: arguments of the engine.
    """

    draft: str
    engine: str
    directory: Path | None
    target: Path | None
    python: str | None
    name: str | None
    host: str
    port: int | None
    live: bool
    further: tuple[str, ...]


class Ready:
    """A draft that lies there in the engine's format, and how the engine is started with it.

    Args:
        wanted: what the user asked for.
        home: the home folder.

    Raises:
        BadArgument: a directory or the target is missing, or there is no such engine.
        DeepspecError: the draft cannot be pulled, or the engine cannot load it.
    """

    def __init__(self, wanted: Wanted, home: Path) -> None:
        engine = known_engine(wanted.engine)
        self.target = _target(wanted.target, home)
        self.server = Server(
            python=wanted.python or os.environ.get(PYTHON) or sys.executable,
            target=self.target,
            name=wanted.name or self.target.resolve().name,
            host=wanted.host,
            port=PORTS[engine] if wanted.port is None else wanted.port,
            live=wanted.live,
            further=wanted.further,
        )
        self.memo = home / "fingerprints.json"
        directory = wanted.directory or home / "serving" / _plain(wanted.draft)
        self.log = directory.with_name(f"{directory.name}-{engine}.log")
        self.held: Pulled | None = None
        if Path(wanted.draft).is_dir():
            draft = draft_directory(Path(wanted.draft))
            check_config(draft, self.target)
            out = home / "serving" / Fingerprints(self.memo).files(model_files(draft), within=draft)[:12] / engine
            found = prepared(draft, engine, out, self.target.name, {})
        else:
            self.place = Place(directory)
            self.store = store_of_last_run(home, self.place.download)
            self.prepare = preparing(engine, self.target.name, self.store)
            outcome = pull(
                draft_named(wanted.draft, home, self.store),
                self.store,
                self.place,
                target=self.target,
                memo=self.memo,
            )
            self.held, found = outcome.held, self.prepare(outcome.held, outcome.folder)
        self.launch: Launch = launch(found, self.server)

    def before_start(self) -> None:
        """See that the engine is there, and its port free; remove its old log.

        Raises:
            BadArgument: they are not.
        """
        refuse_missing(self.server.python, self.launch.draft.engine)
        refuse_taken(self.server.host, self.server.port)
        self.log.unlink(missing_ok=True)

    @property
    def pulled(self) -> Pulled:
        """What lies in the store as well.

        Raises:
            BadArgument: the draft is a directory of the user's.
        """
        if self.held is None:
            raise BadArgument("a directory has no champion.", where="DRAFT", remedy="Name models:/<name>@champion.")
        return self.held


def run(ready: Ready, say: Callable[[str], None], terminated: type[BaseException]) -> int:
    """Start the server, and wait until it ends, or `terminated` is raised, which ends it; its exit code.

    Raises:
        EngineEnded: it ended by itself, or did not start.
    """
    with EngineProcess(ready.launch, ready.log) as process:
        try:
            say(f"Starting {ready.launch.draft.engine} (process {process.pid}); what it says is in {ready.log}.")
            process.wait_ready()
            if ready.server.live and ready.launch.draft.engine == "vllm" and ready.held is not None:
                Vllm(ready.launch.url).name(version_of(ready.held))
            say(serves(ready))
            process.wait()
            process.refuse_ended()
        except terminated:
            say("Ending: what it has begun is finished first.")
        return process.end()


def serves(ready: Ready) -> str:
    """What answers where, in a sentence."""
    draft = ready.held.model if ready.held is not None else str(ready.launch.draft.directory)
    version = f" version {ready.held.version}" if ready.held is not None and ready.held.version else ""
    return f"{ready.launch.url} serves {ready.launch.name} with {draft}{version} ({ready.launch.draft.method})."


def run_following(
    ready: Ready,
    name: RegisteredName,
    poll_seconds: float,
    say: Callable[[str], None],
    terminated: type[BaseException],
) -> int:
    """The same, and let the server run each new champion, until it ends.

    Raises:
        EngineEnded: it ended by itself, or did not start.
    """
    with OwnServer(ready.server, ready.prepare, ready.log, say) as server:
        settings = Settings(poll_seconds, None, ready.target, ready.memo, server)
        following = Following(name, ready.store, ready.place, settings, say=say)
        try:
            say(f"Starting {ready.launch.draft.engine}; what it says is in {ready.log}.")
            server.hold(ready.pulled, ready.place.link.resolve())
            say(f"{serves(ready)} Following {name}.")
            following.run(server.wait)
        except terminated:
            say("Ending: what it has begun is finished first.")
            return server.end() or 0
        finally:
            following.say_back(stopped=True)


def endpoint(engine: str, url: str, target: Path | None, store: Store) -> Endpoint:
    """A server that runs already, and is to run what is pulled."""
    name = target.name if target is not None else ""
    known_engine(engine)
    return Endpoint(engine, url, preparing(engine, name, store), os.environ.get(KEY_VARIABLE) or None)


def preparing(engine: str, target_name: str, store: Store) -> Prepare:
    """Makes the engine's format of what is held, next to it in its folder."""

    def prepare(held: Pulled, folder: Path) -> Prepared:
        beside: Mapping[str, str] = {}
        if engine == "sglang" and has_confidences(folder):
            beside = about_draft(held.digest, store)
        return prepared(folder, engine, folder / f".{engine}", target_name, beside)

    return prepare


def _target(named: Path | None, home: Path) -> Path:
    """The target's directory: the one named, or the last run's.

    Raises:
        BadArgument: there is none.
    """
    found = named if named is not None else last_target(home)
    if found is None or not found.is_dir():
        raise BadArgument(
            f"there is no such directory: {found}." if found is not None else "which target is served is not known.",
            where="--target",
            remedy="Name the directory of the target that the draft was trained for.",
        )
    return found.absolute()


def _plain(name: str) -> str:
    """A draft's name as a folder's."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name.removeprefix("models:/"))
