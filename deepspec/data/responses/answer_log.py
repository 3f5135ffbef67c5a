"""Answers as they come, so that a run that is killed and started again asks for none of them twice.

A SQLite file in the stage's work folder, one row an answer, looked up by key. Memory does not grow with the answers,
and a killed process leaves each row whole or not at all. After a power failure the last answers may be missing; they
are asked for again. The order of completion leaves no trace in what is read back.

Not here: what an answer is, and what it depends on (regenerate.py).
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepspec.errors import ArtifactError


class Journal:
    """What was answered, by key.

    Args:
        path: the file, made if it is missing; its folder, too.

    Raises:
        ArtifactError: the file is no journal, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Each answer is a transaction of its own. Without waiting for the disk: a killed process loses nothing by it.
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB NOT NULL UNIQUE, answer TEXT NOT NULL)"
            )
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise self._damaged(error) from error

    def find(self, key: bytes) -> dict[str, Any] | None:
        """The answer that was added under a key; None: there is none.

        Raises:
            ArtifactError: the file is damaged.
        """
        try:
            found = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error
        return None if found is None else json.loads(found[0])

    def add(self, key: bytes, answer: Mapping[str, Any]) -> None:
        """Keep an answer.

        Raises:
            ArtifactError: the file is damaged, cannot be written, or has an answer under this key.
        """
        text = json.dumps(answer, separators=(",", ":"))
        try:
            self._database.execute("INSERT INTO answers VALUES (?, ?)", (key, text))
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def _damaged(self, error: sqlite3.DatabaseError) -> ArtifactError:
        return ArtifactError(
            f"The journal of answers cannot be used: {error}.",
            where=str(self.path),
            remedy="Make room if the disk is full; else delete the file: what it holds is asked for again.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()


def journal_key(*parts: Any) -> bytes:
    """A key of everything that an answer depends on: 16 bytes of a hash over JSON values."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":"), sort_keys=True).encode()).digest()[:16]
