"""Which requests have been read, by their ids' digests: in a file, so that memory does not grow with the data."""

import sqlite3
from pathlib import Path


class SeenRequests:
    """Digests of requests' ids.

    Args:
        folder: of files that are removed when the conversations are made.
    """

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "requests.sqlite", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("CREATE TABLE seen (request BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, request: str) -> bool:
        """Note a request; whether it was not known."""
        found = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (bytes.fromhex(request),))
        return found.rowcount == 1

    def close(self) -> None:
        """Nothing is added any more."""
        self._database.close()
