"""How many bytes each codec takes: what plans and file layouts need of it. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from deepspec.errors import DataError

NUM_PEAKS = 2


class Widths(Protocol):
    """Sizes of a codec's columns, which are named after suffixes."""

    def widths(self, num_vectors: int, hidden_size: int) -> Mapping[str, int]:
        """Suffix of each column -> its bytes per token.

        Raises:
            DataError: vectors of this size cannot be stored so.
        """


class Bf16Widths:
    """Two bytes a number."""

    def widths(self, num_vectors: int, hidden_size: int) -> Mapping[str, int]:
        return {"": num_vectors * hidden_size * 2}


@dataclass(frozen=True)
class GroupedWidths:
    """Integers of `bits` bits with a scale and peaks per group; see `codecs.Grouped`.

    Args:
        bits: 8 or 4.
        max_group: numbers that share a scale; fewer where a vector cannot be divided so.
    """

    bits: int
    max_group: int

    def widths(self, num_vectors: int, hidden_size: int) -> Mapping[str, int]:
        group, num_peaks = self.group(hidden_size)
        num_groups = num_vectors * (hidden_size // group)
        return {
            "": num_vectors * hidden_size * self.bits // 8,
            "_scale": num_groups * 2,
            "_peak": num_groups * num_peaks * 2,
            "_peak_index": num_groups * num_peaks,
        }

    def group(self, hidden_size: int) -> tuple[int, int]:
        """The largest group size that divides a vector into whole groups of whole bytes, and the peaks in each."""
        step = 8 // self.bits
        for group in range(self.max_group, 0, -1):
            if hidden_size % group == 0 and group % step == 0:
                return group, min(NUM_PEAKS, group)
        raise DataError(
            f"vectors of {hidden_size} numbers cannot be stored in {self.bits} bits each.",
            where="states.codec",
            remedy="Use bf16 or int8.",
        )


WIDTHS: Mapping[str, Widths] = MappingProxyType(
    {"bf16": Bf16Widths(), "int8": GroupedWidths(8, 128), "int4": GroupedWidths(4, 64)}
)


def bytes_per_token(codec: str, num_layers: int, hidden_size: int) -> int:
    """What a shard holds per token of states: the captured layers and the final state."""
    stored = WIDTHS[codec]
    return sum(stored.widths(num_layers, hidden_size).values()) + sum(stored.widths(1, hidden_size).values())
