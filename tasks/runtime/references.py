"""What stages are connected by: an artifact, an external input, a small value, or what is still to be made."""

from dataclasses import dataclass
from typing import Any

from deepspec.store import Artifact
from deepspec.store.fingerprint import External


@dataclass(frozen=True)
class NoInputs:
    """The inputs of a stage that needs none."""


@dataclass(frozen=True)
class Pending:
    """The output of a stage that would have to run first; only seen in a preview."""

    name: str


@dataclass(frozen=True)
class Value:
    """A small input that is part of the key as it is (layer ids, the champion's digest)."""

    value: Any


Reference = Artifact | External | Value | Pending
"""What stages are connected by."""
