"""A request log that grows: its new rows since the last look, each read once.

A row is complete where its line has ended: what a writer has only begun is left for the next look. A log that is
shorter than it was, or begins otherwise, is another one, and is read from its beginning.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deepspec.errors import BadArgument
from deepspec.foreign_json import parse
from deepspec.monitoring.served import ServedAnswer, served_answer
from deepspec.store.records import JsonRecord

NO_JSON = "no JSON object"
MOST_ROW_BYTES = 16 << 20
_HEAD_BYTES = 256


class Position(JsonRecord):
    """How far a log was read.

    Attributes:
        file: the log.
        offset: bytes.
        head: SHA-256 of its first bytes, as many as `head_bytes`.
        head_bytes: at most a few hundred.
    """

    file: str
    offset: int = 0
    head: str = ""
    head_bytes: int = 0


class LogReader:
    """Reads on where a position is.

    Args:
        file: the log.
        position: where the last look ended; None: it was never looked at.

    Attributes:
        rows: read.
        refused: reason -> rows that say no acceptance.
        said: what is to be known of the log, in sentences.
        position: where this look ended.
    """

    def __init__(self, file: Path, position: Position | None) -> None:
        name = str(file.absolute())
        self._file = file
        self.rows = 0
        self.refused: Counter[str] = Counter()
        self.said: list[str] = []
        self.position = position if position is not None and position.file == name else Position(file=name)

    def answers(self) -> Iterator[ServedAnswer]:
        """The new answers.

        Raises:
            BadArgument: there is no such file, or it cannot be read.
        """
        try:
            with self._file.open("rb") as log:
                size = log.seek(0, 2)
                if self._is_another(log, size):
                    self.said.append("The log is another one than at the last look; it is read from its beginning.")
                    self.position = Position(file=self.position.file)
                yield from self._rows(log)
                self._remember(log, size)
        except OSError as error:
            raise BadArgument(
                f"the log cannot be read ({error.strerror}).", where=f"--log {self._file}", remedy="Name a file."
            ) from error

    def _rows(self, log: IO[bytes]) -> Iterator[ServedAnswer]:
        log.seek(self.position.offset)
        offset = self.position.offset
        while line := log.readline(MOST_ROW_BYTES + 1):
            if not line.endswith(b"\n") and len(line) <= MOST_ROW_BYTES:
                self.said.append("The last row has no end yet; it is left for the next look.")
                break
            offset += len(line)
            self.position = self.position.model_copy(update={"offset": offset})
            if not line.strip():
                continue
            self.rows += 1
            found = _answer(line)
            if isinstance(found, str):
                self.refused[found] += 1
            else:
                yield found

    def _is_another(self, log: IO[bytes], size: int) -> bool:
        known = self.position
        if not known.offset:
            return False
        log.seek(0)
        return size < known.offset or hashlib.sha256(log.read(known.head_bytes)).hexdigest() != known.head

    def _remember(self, log: IO[bytes], size: int) -> None:
        log.seek(0)
        head = log.read(min(_HEAD_BYTES, self.position.offset))
        self.position = Position(
            file=self.position.file,
            offset=self.position.offset,
            head=hashlib.sha256(head).hexdigest(),
            head_bytes=len(head),
        )
        if size == 0:
            self.said.append("The log is empty.")
        elif self.rows and sum(self.refused.values()) == self.rows:
            self.said.append(f"None of {self.rows} new rows says acceptance: {self.refused.most_common(1)[0][0]}.")


def _answer(line: bytes) -> ServedAnswer | str:
    try:
        row = parse(line, MOST_ROW_BYTES)
    except ValueError:
        return NO_JSON
    return served_answer(row) if isinstance(row, dict) else NO_JSON
