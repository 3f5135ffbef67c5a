"""What one input row is: its position, its value, and why it may be refused. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from deepspec.errors import DataError

Message = Mapping[str, str]
"""One turn of a conversation: {"role": "system" | "user" | "assistant" | "tool", "content": text}.

An assistant's may also have its thought as `reasoning_content` and its `tool_calls` (a JSON list in OpenAI's form), a
tool's result the `tool_call_id` of the call that it answers. An answer whose `weight` is "0" is not supervised. A
message has no key for what it lacks."""

TOO_LONG = "longer than data.max_row_bytes"
EXCERPT_CHARACTERS = 200


class RowRejected(DataError):
    """One row that cannot be used: caught where rows are read, and quarantined with its reason.

    Args:
        reason: why, in words that many rows can share (they are counted by it).
        detail: what is particular to this row, if anything.
        plain: the reason without what it quotes of the row; None: it quotes nothing.
    """

    def __init__(self, reason: str, *, detail: str | None = None, plain: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.plain = plain or reason

    def unquoted(self) -> "RowRejected":
        """The same without anything that the row says: of a source that is private."""
        return RowRejected(self.plain)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a row stands.

    Attributes:
        path: file, folder or data set id, as the user gave it or as it was found.
        row: 1-based line of a text file, else 1-based row.
    """

    path: str
    row: int

    @property
    def name(self) -> str:
        """The base name: all of the location that may reach an artifact's bytes."""
        return source_name(self.path)

    def __str__(self) -> str:
        return f"{self.path}:{self.row}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it was read.

    Attributes:
        position: where it stands.
        value: what it says, or None.
        rejection: why it could not be read, or None.
        excerpt: beginning of a row that could not be read.
        num_bytes: bytes of its source that it takes, about: for showing progress.
        unread: columns of its table that hold something and were not read.
    """

    position: Position
    value: object = None
    rejection: RowRejected | None = None
    excerpt: str = ""
    num_bytes: int = 0
    unread: frozenset[str] = frozenset()


def source_name(path: str) -> str:
    """The base name of a file, folder or data set id."""
    return PurePath(path).name or path


def excerpt_of(value: object) -> str:
    """The first characters of a value, fit for a report: one line, valid Unicode, no control characters."""
    text = value if isinstance(value, str) else repr(value)
    head = text.strip()[: EXCERPT_CHARACTERS + 1]
    plain = "".join(character if character.isprintable() else " " for character in head)
    return plain if len(head) <= EXCERPT_CHARACTERS else plain[: EXCERPT_CHARACTERS - 1] + "…"
