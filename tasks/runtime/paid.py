"""What an attempt at an artifact uses, accounted for while it lasts: nothing of it is lost when it is killed.

An attempt keeps its account in the store (deepspec/cost/accounts.py). One that is killed leaves it, and so does one
that fails. The artifact that is made in the end takes them over into its manifest, in whichever home that is, and the
accounts go.
"""

import contextlib
import hashlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.cost.accounts import Account, Accounts, content_of, path_of
from deepspec.errors import DeepspecError, TransientError
from deepspec.recipe import Recipe
from deepspec.store import Backend, Writing
from deepspec.store.lease import live
from deepspec.store.manifest import EarlierAttempt, Payer
from deepspec.usage import counted_since, counted_so_far, cpu_seconds_so_far

if TYPE_CHECKING:
    from tasks.runtime.run import Run

_FIRST_SECONDS = 5.0
_EVERY_SECONDS = 10.0
_JOIN_SECONDS = 5.0


def payer_of(run: "Run[Any]") -> Payer:
    """Who pays for the attempt that begins now: the run, for the model of the recipe that it is at."""
    name, recipe = {"run": run.run_id, "attempt": uuid.uuid4().hex[:6]}, run.recipe
    if not isinstance(recipe, Recipe):
        return Payer(**name)
    prices = recipe.run
    return Payer(
        **name,
        model=recipe.registered_model,
        price_per_gpu_hour=prices.price_per_gpu_hour,
        price_per_cpu_hour=prices.price_per_cpu_hour,
        currency=prices.currency,
    )


class OpenAccount:
    """The account of an attempt that goes on."""

    def __init__(self, accounts: Accounts, home: Path, key: str, payer: Payer, num_gpus: int) -> None:
        self.path = path_of(key, payer)
        self._accounts = accounts
        self._home = _name_of(home)
        self._key = key
        self._payer = payer
        self._num_gpus = num_gpus
        self._started, self._cpu, self._counted = time.monotonic(), cpu_seconds_so_far(), counted_so_far()
        self._gone: set[str] = set()
        self._writing: Writing | None = None

    def write(self) -> None:
        """Write the account as things are now."""
        seconds = time.monotonic() - self._started
        used = {
            **counted_since(self._counted),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds_so_far() - self._cpu,
            "gpu_seconds": seconds * self._num_gpus,
        }
        self._gone.add(self.path)
        with contextlib.suppress(DeepspecError):  # without it the stage is none the worse
            self._accounts.backend.put(self.path, content_of(self._payer, used, self._home))
            self._accounts.wrote(self.path)

    def earlier(self) -> tuple[EarlierAttempt, ...]:
        """What attempts that are over have used; from now on they are this one's to remove."""
        over: list[Account] = []
        with contextlib.suppress(DeepspecError):
            over = [account for account in self._accounts.of(self._key) if self._is_over(account)]
        self._gone.update(account.path for account in over)
        found = [(account.attempt.payer, account.attempt.used) for account in over]
        return tuple(EarlierAttempt(payer=payer, cost=used) for payer, used in found if payer is not None and used)

    def close_with(self, writing: Writing) -> None:
        """The manifest of what is being written tells of it from then on, and of those that were taken over."""
        self._writing = writing

    def is_in_manifest(self) -> bool:
        """Whether a manifest tells of it; not where another writer's artifact was first, and was taken."""
        return self._writing is None or self._writing.artifact.manifest.made_by == self._payer

    def remove(self) -> None:
        """Remove the account, and those that were taken over."""
        for path in self._gone:
            with contextlib.suppress(DeepspecError):
                self._accounts.backend.delete(path)
                self._accounts.removed(path)

    def _is_over(self, account: Account) -> bool:
        if account.path == self.path:
            return False
        mine = account.home == self._home or account.run == self._payer.run
        return mine or not _may_live(self._accounts.backend, account.run)


@contextmanager
def paid(accounts: Accounts, home: Path, key: str, payer: Payer, *, num_gpus: int) -> Iterator[OpenAccount]:
    """Account for one attempt at the artifact `key` while the block runs; if it raises, the account stays.

    Args:
        accounts: in the store where the artifact will be.
        home: of the user; no other process in it is making this artifact.
        key: of the artifact.
        payer: the run that makes it.
        num_gpus: that it computes on.

    Yields:
        the account; `earlier` says what the artifact's manifest takes over.
    """
    account = OpenAccount(accounts, home, key, payer, num_gpus)
    ended = threading.Event()

    def keep_writing() -> None:
        pause = _FIRST_SECONDS
        while not ended.wait(pause):
            account.write()
            pause = _EVERY_SECONDS

    writing = threading.Thread(target=keep_writing, name="paid", daemon=True)
    writing.start()
    finished = waits = False
    try:
        yield account
        finished = True
    except TransientError:
        waits = True  # the store may not answer: what was written last has to do
        raise
    finally:
        ended.set()
        writing.join(_JOIN_SECONDS)
        if finished and account.is_in_manifest():
            account.remove()
        elif not waits:
            account.write()


def _may_live(backend: Backend, run_id: str) -> bool:
    try:
        return any(True for _ in live(backend, f"runs/{run_id}"))
    except DeepspecError:
        return True


def _name_of(home: Path) -> str:
    """A home among those that share a store; it says neither where it is nor whose."""
    return hashlib.sha256(f"{socket.gethostname()}:{home.absolute()}".encode()).hexdigest()[:16]
