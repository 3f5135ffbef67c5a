"""Small JSON records that carry a checksum of their own: a flipped bit makes them invalid, never wrong.

The checksum is SHA-256 over the rest of the record as sorted, compact JSON. That rule is the same for every format
version, so that an old deepspec can tell a record that is too new for it from a damaged one.
"""

import hashlib
import json
from typing import Any


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
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    checksum = record.pop("checksum", None)
    if checksum != _checksum(record):
        raise ValueError("its checksum does not match")
    return record


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
