"""What the registry's records (log, looks, versions) ask of the store's backend that they lie in."""

from collections.abc import Mapping
from typing import Any, Protocol

ROOT = "registry"
"""The folder of all of them."""


class Records(Protocol):
    """The part of a store's backend that they stand on."""

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` if nothing is at `path`; return whether this call did."""

    def read(self, path: str) -> bytes:
        """The content of `path`; FileNotFoundError if nothing is there."""

    def list(self, prefix: str) -> Mapping[str, Any]:
        """Everything under the folder `prefix`, by full path."""
