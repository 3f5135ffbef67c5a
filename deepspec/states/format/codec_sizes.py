"""How many bytes each codec takes: what estimates and file layouts need of it. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from deepspec.errors import DataError


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
        bits: 4, 5 or 8.
        num_peaks: numbers of a group that are kept apart.
        max_group: numbers that share a scale; fewer where a vector cannot be divided so.
    """

    bits: int
    num_peaks: int
    max_group: int = 128

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
        step = {8: 1, 5: 8, 4: 2}[self.bits]
        for group in range(self.max_group, 0, -1):
            if hidden_size % group == 0 and group % step == 0:
                return group, min(self.num_peaks, group)
        raise DataError(
            f"vectors of {hidden_size} numbers cannot be stored in {self.bits} bits each.",
            where="states.codec",
            remedy="Use bf16 or int8.",
        )


VALUE_COLUMNS = ("states", "final")
_INT8 = GroupedWidths(8, 2)
WIDTHS: Mapping[str, Mapping[str, Widths]] = MappingProxyType(
    {
        "bf16": MappingProxyType(dict.fromkeys(VALUE_COLUMNS, Bf16Widths())),
        "int8": MappingProxyType(dict.fromkeys(VALUE_COLUMNS, _INT8)),
        "int4": MappingProxyType({"states": GroupedWidths(4, 3), "final": GroupedWidths(5, 3)}),
    }
)
"""Codec -> value column -> how it is stored."""


def bytes_per_token(codec: str, num_layers: int, hidden_size: int) -> int:
    """What a shard holds of a token at most: the captured layers and, where a draft learns from it, the final state."""
    counts = {"states": num_layers, "final": 1}
    return sum(sum(WIDTHS[codec][name].widths(count, hidden_size).values()) for name, count in counts.items())


_TOKEN_BYTES = 2.5
"""A token's id, whose it is and whether it is supervised, as Parquet packs them: 2 to 3 bytes were measured."""


def files_bytes(codec: str, num_layers: int, hidden_size: int, *, tokens: int, supervised_tokens: int) -> int:
    """What the files of captured states take.

    Args:
        codec: name of the codec.
        num_layers: captured layers.
        hidden_size: numbers per vector.
        tokens: of all documents.
        supervised_tokens: of these, how many the draft learns to predict.
    """
    states, final = (
        sum(WIDTHS[codec][name].widths(count, hidden_size).values())
        for name, count in zip(VALUE_COLUMNS, (num_layers, 1), strict=True)
    )
    return round(tokens * (states + _TOKEN_BYTES) + supervised_tokens * final)
