"""The GPUs that deepspec knows: their peak rates and memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deepspec.errors import RecipeError


@dataclass(frozen=True)
class Gpu:
    """Peak dense bf16 rate (FLOP/s) and memory (GiB)."""

    flops: float
    memory_gib: float


# From NVIDIA's data sheets of each product, in its fastest form (SXM where there is one); dense is half of what they
# state with sparsity. Names are looked for in those of devices: longer ones first.
GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "b200": Gpu(2250e12, 180),
        "h200": Gpu(989e12, 141),
        "h100": Gpu(989e12, 80),
        "a100": Gpu(312e12, 80),
        "l40s": Gpu(362e12, 48),
        "l4": Gpu(121e12, 24),
    }
)


def gpu_named(name: str, *, where: str) -> Gpu:
    """The GPU of that name.

    Raises:
        RecipeError: it is not in the table.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise RecipeError(f"{name!r} is not a GPU deepspec knows.", where=where, remedy=f"Known: {', '.join(GPUS)}.")
    return gpu
