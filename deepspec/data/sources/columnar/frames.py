"""What the two processes say to each other: JSON, each piece behind its length.

Not pickled: a process that damaged bytes led astray may write anything.
"""

import json
import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any, BinaryIO

_LENGTH = struct.Struct(">I")
_MOST_BYTES = 1 << 31
_FOREIGN = "\0"


class Broken(Exception):
    """The other process has ended, or says what no frame is."""


class Foreign:
    """A value that JSON has no form for, a time or bytes: it is shown in reports, and is no text, number or list."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return self._shown


class Writer:
    """Writes messages to the other process; one is sent when the file is flushed, or its buffer is full.

    Args:
        file: where to.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._has_foreign = False
        # One for all messages: `json.dumps` with a `default` makes another one each time, and takes four times as long.
        self._encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=self._foreign)

    def write(self, message: Mapping[str, Any]) -> None:
        """Write one message.

        Raises:
            OSError: the other process has ended.
        """
        self._has_foreign = False
        text = self._encoder.encode(message).encode("utf-8", "surrogatepass")  # as `json.loads` reads bytes
        self._file.write(_LENGTH.pack(len(text)) + bytes([self._has_foreign]))
        self._file.write(text)

    def flush(self) -> None:
        """Send what has been written; raises what `write` raises."""
        self._file.flush()

    def _foreign(self, value: object) -> dict[str, str] | str:
        if isinstance(value, datetime):
            return value.isoformat()
        self._has_foreign = True
        return {_FOREIGN: repr(value)}


def read(file: BinaryIO) -> dict[str, Any]:
    """The next message.

    Raises:
        Broken: there is none.
    """
    head = file.read(_LENGTH.size + 1)
    if len(head) <= _LENGTH.size:
        raise Broken
    (length,) = _LENGTH.unpack_from(head)
    text = file.read(length) if length < _MOST_BYTES else b""
    if len(text) < length or not text:
        raise Broken
    try:
        found = json.loads(text, object_hook=_rebuilt if head[-1] else None)
    except (ValueError, RecursionError) as error:
        raise Broken from error
    if not isinstance(found, dict):
        raise Broken
    return found


def _rebuilt(value: dict[str, Any]) -> object:
    return Foreign(str(value[_FOREIGN])) if value.keys() == {_FOREIGN} else value
