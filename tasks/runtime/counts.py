"""What a stage counted while it made an artifact: kept in the artifact's manifest, and part of no digest."""

from deepspec.evaluation.results import Number
from deepspec.store.records import JsonRecord


class MemoryBytes(JsonRecord):
    """What a training took of memory.

    Attributes:
        peak: the most of a process.
    """

    peak: int = 0


class StageCounts(JsonRecord):
    """What a stage counted; each stage adds its own to these, which others read.

    Attributes:
        tokens: encoded.
        bytes: of what was captured.
        memory_bytes: that a training took.
        device: where a training ran.
        gpu_seconds: of all GPUs, while the stage ran; added when it has ended.
    """

    tokens: int | None = None
    bytes: int | None = None
    memory_bytes: MemoryBytes | None = None
    device: str | None = None
    gpu_seconds: Number | None = None
