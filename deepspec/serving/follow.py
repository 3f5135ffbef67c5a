"""Following a champion: one listing a poll, a pull when the promotion log has changed, a command after each swap.

    poll ──► the log's listing ──► changed? ──► pull ──► hook, or a server that is to run it
                 │ no answer: the draft stays, pauses grow              └──► followers/<model>/<host>-<id>.json

What goes wrong is said once, until it changes; the draft that is held stays whatever happens.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from deepspec.errors import ArtifactError, BadArgument, DeepspecError
from deepspec.progress import SILENT, Progress
from deepspec.registry.draft_names import RegisteredName
from deepspec.registry.keys import CHAMPION
from deepspec.registry.records import ROOT
from deepspec.serving import hook
from deepspec.serving.followers import Follower, empty
from deepspec.serving.names import LOGGED, WHERE, appointed
from deepspec.serving.pull import Pulled, pull
from deepspec.serving.swap import Place
from deepspec.store import Stat, Store

MOST_PAUSE_SECONDS = 60.0
"""However long an outage lasts, the store is asked again after this."""
SAY_SECONDS = 30.0
"""How often a follower says what it holds, where nothing has changed."""
HOOK_TRIES = 5
"""How often a command that fails is run for one swap."""


class Holder(Protocol):
    """A server that is to run what is held."""

    def hold(self, held: Pulled, folder: Path) -> bool:
        """Let it run the draft in a folder; whether that changed anything. It is asked with every poll.

        Raises:
            DeepspecError: it does not run it.
        """


@dataclass(frozen=True)
class Settings:
    """How a draft is followed.

    Attributes:
        poll_seconds: between two listings of the log.
        command: what is run after each swap, as a list; None: nothing.
        target: the target that the host serves; None: any.
        memo: remembers fingerprints of the target's files.
        server: what is to run each draft; None: that is the command's part.
    """

    poll_seconds: float = 5.0
    command: list[str] | None = None
    target: Path | None = None
    memo: Path | None = None
    server: Holder | None = None


class Following:
    """A follower: one model's champion in one DIR.

    Args:
        name: `models:/X@champion` or `models:/X@previous`.
        store: a bucket's cache should be `place.download`.
        place: DIR.
        settings: how.
        say: takes a sentence for people.
        clock: seconds, for pauses.
        progress: of pulls.

    Raises:
        BadArgument: the name always means the same draft.
    """

    def __init__(
        self,
        name: RegisteredName,
        store: Store,
        place: Place,
        settings: Settings,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        progress: Progress = SILENT,
    ) -> None:
        if name.alias not in LOGGED:
            raise BadArgument(
                f"{name} cannot be followed.",
                where=WHERE,
                remedy=f"Name models:/{name.model}@{CHAMPION}, or leave --follow out.",
            )
        self._name, self._store, self._place, self._settings = name, store, place, settings
        self._say, self._clock, self._progress = say, clock, progress
        self._listing: Mapping[str, Stat] | None = None
        self._outages = 0
        self._failures = 0
        self._again_at = 0.0
        self._trouble = ""
        self._hook_tries = 0
        self._not_served = ""
        self._unwritten: tuple[Path, Pulled] | None = None
        self._said: Follower | None = None
        self._said_at = 0.0
        self._refused = False

    @property
    def held(self) -> Pulled | None:
        """What DIR holds now."""
        folder = self._place.held()
        return None if folder is None else Pulled.read(folder)

    def run(self, wait: Callable[[float], None] = time.sleep) -> NoReturn:
        """Poll until an exception ends it: a signal's handler raises one."""
        while True:
            wait(self.poll())

    def poll(self) -> float:
        """Look once, and do what there is to do; return how many seconds to pause."""
        try:
            listing = self._log()
        except DeepspecError as error:
            self._outages += 1
            self._tell(error)
            return min(self._settings.poll_seconds * 2.0**self._outages, self._most_pause())
        self._outages = 0
        if listing != self._listing or (self._failures and self._clock() >= self._again_at):
            self._listing = listing
            self._update()
        elif not self._failures:
            self._tell(None)
        self._run_hook()
        self._serve()
        self.say_back()
        return self._settings.poll_seconds

    def say_back(self, *, stopped: bool = False) -> None:
        """Write to the store what this host holds, if that has changed or is some time ago; a refusal is said once."""
        if stopped and self._outages:
            return  # no answer is waited for
        now = self._clock()
        says = self._follower(stopped=stopped)
        if says == self._said and now - self._said_at < self._every_seconds():
            return
        self._said, self._said_at = says, now
        try:
            says.say(self._store.backend)
        except DeepspecError as error:
            if not self._refused and not stopped:
                self._say(f"The store does not take what this host holds: {error.what} Following goes on without.")
            self._refused = True

    def _log(self) -> Mapping[str, Stat]:
        """The promotion log's listing.

        Raises:
            ArtifactError: it is empty, and cannot be: a folder that is not mounted looks like that.
            TransientError: the store does not answer.
        """
        backend = self._store.backend
        listing = backend.list(f"{ROOT}/{self._name.model}/promotions")
        if not listing and self.held is not None:
            raise ArtifactError(
                f"There is no promotion log of {self._name.model} any more.",
                where=backend.location,
                remedy="Check that this is the store, and that it is mounted.",
            )
        return listing

    def _update(self) -> None:
        """Pull what the log says; what goes wrong is said, and tried again later."""
        try:
            draft = appointed(self._name, self._store)
            outcome = pull(
                draft,
                self._store,
                self._place,
                target=self._settings.target,
                memo=self._settings.memo,
                progress=self._progress,
            )
        except DeepspecError as error:
            self._failures += 1
            pause = min(self._settings.poll_seconds * 2.0**self._failures, self._most_pause())
            self._again_at = self._clock() + pause
            self._tell(error)
            return
        self._failures = 0
        self._tell(None)
        if outcome.tampered:
            self._say(f"What was there was not what was pulled: {outcome.tampered}.")
        if outcome.changed:
            self._hook_tries = 0
            self._say(f"{self._place.link}: {self._name.model} version {draft.version} ({draft.digest[:12]}).")

    def _run_hook(self) -> None:
        """Run the command for the draft in place, unless it ended well for it, or failed too often."""
        folder, held = self._place.held(), self.held
        if self._unwritten is not None and self._unwritten[0] == folder:
            held = self._unwritten[1]
            self._write_down(folder, held)
        command = self._settings.command
        if command is None or folder is None or held is None or held.hook_exit == 0 or self._hook_tries >= HOOK_TRIES:
            return
        self._hook_tries += 1
        code = hook.run(command, held, folder, self._place.link)
        self._write_down(folder, held.model_copy(update={"hook_exit": code}))
        if code:
            again = "with the next poll" if self._hook_tries < HOOK_TRIES else "after the next swap only"
            self._say(f"The command ended with exit code {code}; it is run again {again}.")

    def _serve(self) -> None:
        """Let the server run what is held; what goes wrong is said once, until it changes."""
        server, folder, held = self._settings.server, self._place.held(), self.held
        if server is None or folder is None or held is None:
            return
        try:
            changed, trouble = server.hold(held, folder), ""
        except DeepspecError as error:
            changed, trouble = False, error.what
            if trouble != self._not_served:
                self._say(f"The server does not run what is held. {error}")
        if changed or (self._not_served and not trouble):
            self._say(f"The server runs {held.model} version {held.version} ({held.digest[:12]}).")
        self._not_served = trouble

    def _write_down(self, folder: Path, record: Pulled) -> None:
        """Write how the command ended; on a full disk that is said, and tried again with every poll."""
        known, self._unwritten = self._unwritten, None
        try:
            record.write(folder)
        except OSError as error:
            self._unwritten = (folder, record)
            if known is None:
                again = f"It is tried again with every poll; after a restart the command would run again. ({error})"
                self._say(f"How the command ended cannot be written to {folder}. {again}")

    def _follower(self, *, stopped: bool) -> Follower:
        held = self.held
        says = empty(self._name.model, self._place.link, self._every_seconds())
        if held is not None:
            update = {"version": held.version, "digest": held.digest, "since": held.since}
            says = says.model_copy(update=update)
        hook_exit = held.hook_exit if held is not None and self._settings.command is not None else None
        failed = f"the command ended with exit code {hook_exit}" if hook_exit else ""
        trouble = self._trouble or self._not_served or failed
        return says.model_copy(
            update={"healthy": not trouble, "trouble": trouble, "hook_exit": hook_exit, "stopped": stopped}
        )

    def _tell(self, error: DeepspecError | None) -> None:
        """Say what is wrong when it begins, and that it is over when it ends."""
        trouble = "" if error is None else error.what
        if trouble == self._trouble:
            return
        self._say("All is well again." if error is None else f"{error} The draft stays; trying on.")
        self._trouble = trouble

    def _every_seconds(self) -> float:
        return max(SAY_SECONDS, self._settings.poll_seconds)

    def _most_pause(self) -> float:
        return max(MOST_PAUSE_SECONDS, self._settings.poll_seconds)
