"""Accounts: what an attempt at an artifact has used so far, in the store while it lasts and if it does not finish.

An account is the record `leases/paid/<key>/<run id>-<attempt>.json`. It has no format of its own: what cannot be read
counts nothing. Not here: who keeps it, and when it goes (tasks/runtime/paid.py).
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from deepspec.cost.attempts import Attempt
from deepspec.errors import DeepspecError
from deepspec.store import Backend
from deepspec.store.manifest import Payer
from deepspec.usage import USED

ALWAYS = ("seconds", "cpu_seconds", "gpu_seconds")
"""What every account says, one of an earlier deepspec too."""

_FOLDER = "leases/paid"


@dataclass(frozen=True)
class Account:
    """One account.

    Attributes:
        path: of the record.
        attempt: what it says.
        home: which home keeps it; None: it does not say.
    """

    path: str
    attempt: Attempt
    home: str | None

    @property
    def run(self) -> str:
        """Id of the run that keeps it."""
        return _names(self.path)[1]


class Accounts:
    """The accounts in a store, as a run knows them: listed once, when it first makes something.

    Args:
        backend: of the store.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._paths: set[str] | None = None

    def of(self, key: str) -> Iterator[Account]:
        """Those about one artifact that can be read.

        Raises:
            ArtifactError, TransientError: the store cannot be listed.
        """
        return _read(self.backend, (path for path in self._listed() if _names(path)[0] == key))

    def of_run(self, run_id: str) -> Iterator[Account]:
        """Those of one run that can be read; raises as `of`."""
        return _read(self.backend, (path for path in self._listed() if _names(path)[1] == run_id))

    def wrote(self, path: str) -> None:
        """One more is there: this run's."""
        if self._paths is not None:
            self._paths.add(path)

    def removed(self, path: str) -> None:
        """One is not there any more."""
        if self._paths is not None:
            self._paths.discard(path)

    def _listed(self) -> list[str]:
        if self._paths is None:
            self._paths = set(self.backend.list(_FOLDER))
        return sorted(self._paths)


def path_of(key: str, payer: Payer) -> str:
    """Where the account of an attempt at the artifact `key` is."""
    return f"{_FOLDER}/{key}/{payer.run}-{payer.attempt}.json"


def content_of(payer: Payer, used: Mapping[str, float], home: str) -> bytes:
    """An account as it is written."""
    numbers = {name: round(used.get(name, 0.0), 3) for name in USED if name in ALWAYS or used.get(name)}
    return json.dumps({**numbers, "home": home, "payer": payer.model_dump(mode="json", exclude_none=True)}).encode()


def _read(backend: Backend, paths: Iterable[str]) -> Iterator[Account]:
    for path in paths:
        with contextlib.suppress(DeepspecError, FileNotFoundError, ValueError, KeyError, TypeError):
            content: dict[str, Any] = json.loads(backend.read(path))
            numbers = {name: float(content[name]) for name in USED if name in content or name in ALWAYS}
            if all(0 <= number < math.inf for number in numbers.values()):
                key, run, attempt = _names(path)
                used = {name: number for name, number in numbers.items() if number}
                payer = _payer(content.get("payer"), run, attempt)
                yield Account(path, Attempt(key, payer, used, finished=False), content.get("home"))


def _payer(said: Any, run: str, attempt: str) -> Payer:
    """The payer by the account's name; the rest of what it says, if it can be read."""
    try:
        return Payer.model_validate({**said, "run": run, "attempt": attempt})
    except (ValidationError, TypeError):
        return Payer(run=run, attempt=attempt)


def _names(path: str) -> tuple[str, str, str]:
    """Key, run and attempt, by an account's path; empty where it is none."""
    folder, _, name = path.removeprefix(f"{_FOLDER}/").rpartition("/")
    run, _, attempt = name.removesuffix(".json").rpartition("-")
    return folder, run, attempt
