"""Small JSON records that carry a checksum of their own: a flipped bit makes them invalid, never wrong.

The checksum is SHA-256 over the rest of the record as sorted, compact JSON. That rule is the same for every format
version, so that an old deepspec can distinguish a record that is too new for it from a damaged one.

A record that is read later, perhaps by another deepspec, says its `format`, a number that is raised when it is written
in a way that an older deepspec could not read. Without one it is of format 1. `refuse_newer` comes before anything else
of a record is looked at: what is too new is not damaged, and must not be written again.

`JsonRecord` is the base of results that are read by later stages, reports and commands.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from deepspec.errors import ArtifactError


class JsonRecord(BaseModel):
    """An immutable result that is written as JSON and read back by this and by later versions.

    Only the fields that were given are written. A field without a default was written by every version; one that came
    later has a default, and is absent again when the older record is written once more. Fields that this version does
    not know are kept as they are.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)

    @classmethod
    def from_json(cls, content: object, *, where: str) -> Self:
        """Read a record back.

        Args:
            content: what `to_json` gave, read from JSON.
            where: its place, for the error.

        Raises:
            ArtifactError: it is no such record.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"This is no valid {cls.__name__}: {first['msg']}{f' at {place}' if place else ''}.",
                where=where,
                remedy="Restore the file from a backup, or make it again: `deepspec run` with the same recipe.",
            ) from error


def seal(body: dict[str, Any]) -> bytes:
    """`body` as JSON with its checksum.

    Raises:
        TypeError, ValueError: it cannot be JSON.
    """
    # What is sealed is what a reader will see: names that were numbers, say, sort differently once they are text.
    seen = json.loads(json.dumps(body))
    return json.dumps({"checksum": _checksum(seen), **seen}, indent=1, sort_keys=True).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The body of a sealed record.

    Raises:
        ValueError: it is not such a record, or it changed since it was sealed.
    """
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        checksum = record.pop("checksum", None)
        if checksum != _checksum(record):
            raise ValueError("its checksum does not match")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return record


def refuse_newer(
    record: Mapping[str, Any], newest: int, *, what: str, where: str, otherwise: str, field: str = "format"
) -> None:
    """Refuse a record that a newer deepspec wrote.

    Args:
        record: its content.
        newest: the highest format that can be read.
        what: what it is, e.g. "This artifact".
        where: its place, for the error.
        otherwise: what a reader who cannot upgrade may do, e.g. "use another store".
        field: in which its format stands.

    Raises:
        ArtifactError: its format is higher.
    """
    written = record.get(field)
    if isinstance(written, int) and written > newest:
        raise ArtifactError(
            f"{what} has format {written}; this deepspec reads up to {newest}.",
            where=where,
            remedy=f"Upgrade deepspec, or {otherwise}.",
        )


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
