"""What can be configured about the stack, by environment variables alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

from deepspec.errors import DeepspecError

ROOT = Path(__file__).parents[2]
"""The checkout: where flows and deployments are."""

HOST = "127.0.0.1"
"""Nothing listens anywhere else."""

# The servers' usual ports plus 10000 (monitor, gateway, MLflow, Prefect, PostgreSQL): easy to know, seldom taken.
PORTS = MappingProxyType({"postgres": 15432, "ceph-mon": 13300, "radosgw": 17480, "mlflow": 15000, "prefect": 14200})
"""Service -> its port, where nothing else is configured."""

S3_STORES = ("bluestore", "memstore")


class BadSetting(DeepspecError):
    """A variable that configures the stack has a value it cannot have."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """What is configured.

    Attributes:
        folder: everything that the stack keeps: data, logs, passwords.
        ports: service -> port; 0 takes one that is free.
        s3_store: how the S3 server keeps objects: `bluestore` on disk, `memstore` in memory (quicker to start; written
            to disk when it is stopped, lost when it is killed).
    """

    folder: Path
    ports: dict[str, int]
    s3_store: str

    @classmethod
    def from_environment(cls) -> Self:
        """The settings that the DEEPSPEC_STACK_ variables make.

        Raises:
            BadSetting: a value is none of those allowed.
        """
        store = os.environ.get("DEEPSPEC_STACK_S3") or S3_STORES[0]
        if store not in S3_STORES:
            raise BadSetting(
                f"{store!r} is not a way to keep objects.",
                where="DEEPSPEC_STACK_S3",
                remedy=f"Allowed: {', '.join(S3_STORES)}.",
            )
        folder = Path(os.environ.get("DEEPSPEC_STACK_DIR") or ROOT / ".deepspec" / "stack").absolute()
        return cls(folder, {name: _port(name, default) for name, default in PORTS.items()}, store)


def port_variable(service: str) -> str:
    """The environment variable that sets a service's port."""
    return f"DEEPSPEC_STACK_{service.upper().replace('-', '_')}_PORT"


def _port(service: str, default: int) -> int:
    text = os.environ.get(port_variable(service)) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise BadSetting(
            f"{text!r} is not a port.", where=port_variable(service), remedy="Allowed: 1 to 65535, or 0 for a free one."
        )
    return int(text)
