"""Rows of JSON text: JSON Lines, or one array of rows. No more than one row is in memory. Standard library only."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from deepspec.data.sources.finding import is_array
from deepspec.data.sources.opening import is_compressed, opened
from deepspec.data.sources.rows import TOO_LONG, Position, RawRow, RowRejected, excerpt_of
from deepspec.errors import DataError

_HEAD_BYTES = 4096
_CHUNK_BYTES = 1 << 16
_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')  # of a string
_BEHIND = "text behind the JSON array"
_TRUNCATED = " in the last {} (a truncated file?)"


def read_json(path: str, max_row_bytes: int) -> Iterator[RawRow]:
    """The rows of a file of JSON Lines, or of one JSON array, numbered by lines or rows.

    Args:
        path: plain or compressed.
        max_row_bytes: longer ones are rejected unread.

    Raises:
        DataError: it is UTF-16, or its compression is damaged.
        OSError: it cannot be read.
    """
    with opened(path) as (file, position):
        text = _Peeked(file)
        if text.head[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            raise DataError("is UTF-16, not UTF-8.", where=path, remedy="Convert it to UTF-8.")
        text.skip(codecs.BOM_UTF8)
        found = _elements(text, max_row_bytes) if is_array(text.head) else _lines(text, max_row_bytes)
        before = 0
        for number, (content, length, cut) in enumerate(found, start=1):
            num_bytes = len(content) if length <= max_row_bytes else length
            if is_compressed(path):
                num_bytes, before = position() - before, position()
            if length > max_row_bytes or cut == _BEHIND:
                excerpt = excerpt_of(content.decode("utf-8", errors="replace"))
                why = _BEHIND if cut == _BEHIND else TOO_LONG
                yield RawRow(Position(path, number), None, RowRejected(why), excerpt, num_bytes)
            elif content.strip():
                yield _row(Position(path, number), content, cut, num_bytes)


def count_json(path: str) -> tuple[int, int]:
    """Lines or elements of a file, and its bytes unpacked; raises what `read_json` raises."""
    with opened(path) as (file, _):
        text = _Peeked(file)
        pieces = _elements(text, 0) if is_array(text.head) else _lines(text, _CHUNK_BYTES)
        rows = size = 0
        for _, length, _ in pieces:
            rows += 1
            size += length
    return rows, size


class _Peeked:
    """A stream whose beginning is known."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.head = file.read(_HEAD_BYTES)
        self._left = self.head

    def skip(self, prefix: bytes) -> None:
        """Leave out what it begins with."""
        self.head = self._left = self.head.removeprefix(prefix)

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; none at its end."""
        left, self._left = self._left, b""
        return left or self._file.read(num_bytes)

    def readline(self, limit: int) -> bytes:
        """The next line, or so much of it."""
        if not self._left:
            return self._file.readline(limit)
        end = self._left.find(b"\n") + 1 or len(self._left)
        line, self._left = self._left[: min(end, limit)], self._left[min(end, limit) :]
        if self._left or line.endswith(b"\n") or len(line) == limit:
            return line
        return line + self._file.readline(limit - len(line))


def _lines(text: _Peeked, max_row_bytes: int) -> Iterator[tuple[bytes, int, str]]:
    """Each line, its length in bytes, and what to say if it is damaged; of one that is too long only the beginning."""
    limit = max_row_bytes + 2  # with the end of the line
    while line := text.readline(limit):
        length = len(line.rstrip(b"\r\n"))
        piece = line
        while not piece.endswith(b"\n") and (piece := text.readline(limit)):
            length += len(piece)
        yield line, length, "" if line.endswith(b"\n") else _TRUNCATED.format("line")


def _elements(text: _Peeked, max_row_bytes: int) -> Iterator[tuple[bytes, int, str]]:
    """Each element of the array, as `_lines` does it: found by its brackets, so that a damaged one is one row."""
    element, length, depth = bytearray(), 0, -1
    in_string = is_escaped = is_closed = False

    def take(piece: bytes) -> None:
        nonlocal length
        piece = piece if length else piece.lstrip()
        length += len(piece)
        element.extend(piece[: max(0, max_row_bytes + 2 - len(element))])

    while chunk := text.read(_CHUNK_BYTES):
        place = 0
        while place < len(chunk):
            if is_closed:
                take(chunk[place:])
                break
            if is_escaped:
                take(chunk[place : place + 1])
                place, is_escaped = place + 1, False
                continue
            mark = (_INSIDE if in_string else _OUTSIDE).search(chunk, place)
            end = mark.end() if mark else len(chunk)
            found = mark.group() if mark else b""
            if not in_string and depth <= 0 and found in (b"[", b",", b"]") and (depth, found) != (0, b"["):
                take(chunk[place : end - 1])
                if element or found == b",":
                    yield bytes(element) or b",", length, ""
                element, length = bytearray(), 0
                depth, is_closed = 0, found == b"]"
            else:
                take(chunk[place:end])
                if found == b'"':
                    in_string = not in_string
                elif found == b"\\":
                    is_escaped = True
                elif depth >= 0:
                    depth = max(0, depth + {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found, 0))
            place = end
    if bytes(element).strip():
        yield bytes(element), length, _BEHIND if is_closed else _TRUNCATED.format("row")


def _row(position: Position, content: bytes, cut: str, num_bytes: int) -> RawRow:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        excerpt = excerpt_of(content.decode("utf-8", errors="replace"))
        return RawRow(position, None, RowRejected("not valid UTF-8" + cut, detail=str(error)), excerpt, num_bytes)
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except RowRejected as rejection:
        return RawRow(position, None, rejection, excerpt_of(text), num_bytes)
    except (ValueError, RecursionError) as error:
        # Not only JSONDecodeError: numbers of thousands of digits and deep nesting end here too.
        malformed = RowRejected("malformed JSON" + cut, detail=str(error))
        return RawRow(position, None, malformed, excerpt_of(text), num_bytes)
    return RawRow(position, value, num_bytes=num_bytes)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that stands twice is refused, because which of the two is meant cannot be known."""
    keyed = dict(pairs)
    if len(keyed) < len(pairs):
        raise RowRejected("a key stands twice in one JSON object")
    return keyed
