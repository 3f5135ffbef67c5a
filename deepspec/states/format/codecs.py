"""How vectors of target states become bytes and back.

`bf16` keeps bfloat16 numbers as they are. `int8` and `int4` cut each vector into groups of 128; the two or three
largest numbers of a group ("peaks") are kept apart in bfloat16, the others as integers times the group's own scale.
Hidden states have a few channels a hundred times larger than the rest, and without keeping peaks apart each would wipe
out its whole group. `int4` gives the final state five bits: with four, the target's distribution is off by 2 % (total
variation, the demo's target), with five by 1 %; there is one of them to several captured layers.
Bytes against bf16: int8 0.53; int4 0.29 for `states`, 0.36 for `final`. All numbers are little-endian.

Shapes: N tokens, C vectors per token (layers), D numbers per vector; G groups per token, g numbers and P peaks in each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepspec.states.format.codec_sizes import WIDTHS, Bf16Widths, GroupedWidths, Widths

_CHUNK_NUMBERS = 1 << 20

Bytes: TypeAlias = npt.NDArray[np.uint8]
"""uint8 [N, bytes per token]."""


class Codec(Widths, Protocol):
    """A way to store vectors; its parts are columns named after the suffixes."""

    def encode(self, vectors_NCD: Tensor) -> dict[str, Bytes]:
        """The columns of N tokens; any float dtype and device, finite."""

    def decode_into(self, columns: Mapping[str, Bytes], out_NCD: Tensor) -> None:
        """Write the vectors of N tokens to `out_NCD`, contiguous bfloat16 on the CPU."""


class Bf16(Bf16Widths):
    """bfloat16 as it is."""

    def encode(self, vectors_NCD: Tensor) -> dict[str, Bytes]:
        return {"": _bytes_of(vectors_NCD.to(torch.bfloat16))}

    def decode_into(self, columns: Mapping[str, Bytes], out_NCD: Tensor) -> None:
        np.copyto(out_NCD.view(torch.uint8).view(len(out_NCD), -1).numpy(), columns[""])


@dataclass(frozen=True)
class Grouped(GroupedWidths):
    """Integers of `bits` bits with a scale and peaks per group.

    Columns: "" integers, "_scale" and "_peak" bfloat16, "_peak_index" uint8 (place within the group). Integers of 8
    bits are signed bytes; of fewer, they are offset by 2^(bits-1), and of a token's n numbers byte i < n/2 holds the
    lowest four bits of number i in its low half and of number i + n/2 in its high half; with 5 bits n/8 bytes follow,
    bit k of the i-th is the fifth bit of number i + k·n/8. At a peak's place there is a 0.
    A group whose numbers are all below 2^-119 has a scale below bfloat16's normal range: they are off by up to 2^-126.
    """

    def encode(self, vectors_NCD: Tensor) -> dict[str, Bytes]:
        # A CPU computes in its caches, and in memory that is allocated already: both are several times faster.
        rows = len(vectors_NCD)
        if vectors_NCD.device.type == "cpu":
            rows = max(1, _CHUNK_NUMBERS // max(1, vectors_NCD[0].numel())) if rows else 1
        pieces = [self._encode(piece) for piece in torch.split(vectors_NCD, max(1, rows))]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _encode(self, vectors_NCD: Tensor) -> dict[str, Bytes]:
        num_tokens, num_vectors, hidden_size = vectors_NCD.shape
        group, num_peaks = self.group(hidden_size)
        num_groups = num_vectors * (hidden_size // group)
        # float32 here: the scale decides every number of its group.
        x_Mg = vectors_NCD.to(torch.float32, copy=True).view(num_tokens * num_groups, group)
        magnitude_Mg = x_Mg.abs()
        first_M = torch.arange(len(x_Mg), device=x_Mg.device) * group
        indices, peaks = [], []
        for _ in range(num_peaks):
            index_M = _first_largest(magnitude_Mg)
            places_M = first_M + index_M
            indices.append(index_M)
            peaks.append(x_Mg.view(-1)[places_M])
            magnitude_Mg.view(-1)[places_M] = -1.0
            x_Mg.view(-1)[places_M] = 0.0
        index_MP, peak_MP = torch.stack(indices, -1), torch.stack(peaks, -1)
        lowest = -(2 ** (self.bits - 1))
        # The largest of the rest becomes the lowest integer, whatever its sign: no level is wasted.
        least_M1, most_M1 = x_Mg.amin(-1, keepdim=True), x_Mg.amax(-1, keepdim=True)
        scale_M1 = (torch.where(most_M1 > -least_M1, most_M1, least_M1) / lowest).to(torch.bfloat16)
        x_Mg.div_(torch.where(scale_M1 == 0, 1.0, scale_M1.float())).round_().clamp_(lowest, -lowest - 1)
        return {
            "": self._pack(x_Mg.to(torch.int8).view(num_tokens, -1)),
            "_scale": _bytes_of(scale_M1.view(num_tokens, -1)),
            "_peak": _bytes_of(peak_MP.to(torch.bfloat16).view(num_tokens, -1)),
            "_peak_index": _bytes_of(index_MP.to(torch.uint8).view(num_tokens, -1)),
        }

    def decode_into(self, columns: Mapping[str, Bytes], out_NCD: Tensor) -> None:
        num_tokens, num_vectors, hidden_size = out_NCD.shape
        group, num_peaks = self.group(hidden_size)
        num_groups = num_tokens * num_vectors * (hidden_size // group)
        scale_M1 = _tensor(columns["_scale"], torch.bfloat16).view(num_groups, 1)
        index_MP = _tensor(columns["_peak_index"], torch.uint8).view(num_groups, num_peaks)
        # Levels of at most 8 bits are exact in bfloat16; the product is rounded once. A copy that converts and a
        # product in place: in one step, which mixes types, it takes three times as long.
        self._unpack(columns[""], out_NCD.view(num_tokens, -1))
        out_Mg = out_NCD.view(num_groups, group)
        torch.mul(out_Mg, scale_M1, out=out_Mg)
        # Not scatter_: on a CPU that is ten times slower.
        first_M1 = torch.arange(num_groups).mul_(group).view(-1, 1)
        out_NCD.view(-1)[(first_M1 + index_MP).view(-1)] = _tensor(columns["_peak"], torch.bfloat16).view(-1)

    def _pack(self, levels_Nn: Tensor) -> Bytes:
        if self.bits == 8:
            return _bytes_of(levels_Nn)
        offset_Nn = (levels_Nn + 2 ** (self.bits - 1)).view(torch.uint8)
        low, high = (offset_Nn & 15).chunk(2, dim=1)
        packed = [low | (high << 4)]
        if self.bits == 5:
            fifth = torch.zeros_like(offset_Nn[:, : offset_Nn.shape[1] // 8])
            for bit, part in enumerate((offset_Nn >> 4).chunk(8, dim=1)):
                fifth |= part << bit
            packed.append(fifth)
        return _bytes_of(torch.cat(packed, dim=1))

    def _unpack(self, data: Bytes, out_Nn: Tensor) -> None:
        """The integers as bfloat16."""
        packed_Nb = _tensor(data, torch.uint8)
        if self.bits == 8:
            out_Nn.copy_(packed_Nb.view(torch.int8))
            return
        count = out_Nn.shape[1]
        halves = packed_Nb[:, : count // 2]
        levels_Nn = torch.from_numpy(np.empty(out_Nn.shape, dtype=np.uint8))
        torch.bitwise_and(halves, 15, out=levels_Nn[:, : count // 2])
        torch.bitwise_right_shift(halves, 4, out=levels_Nn[:, count // 2 :])
        if self.bits == 5:
            fifth = packed_Nb[:, count // 2 :]
            for bit, part in enumerate(levels_Nn.chunk(8, dim=1)):
                part.bitwise_or_(((fifth >> bit) & 1) << 4)
        out_Nn.copy_(levels_Nn.view(torch.int8).sub_(2 ** (self.bits - 1)))


def _first_largest(x_Mg: Tensor) -> Tensor:
    """The place of the largest number of each row, int64; of equal ones the first: equal vectors encode alike."""
    if x_Mg.device.type == "cpu":
        return torch.from_numpy(x_Mg.numpy().argmax(-1))  # seven times as fast as torch's
    return x_Mg.argmax(-1)


def _codec(stored: Widths) -> Codec:
    if isinstance(stored, GroupedWidths):
        return Grouped(stored.bits, stored.num_peaks, stored.max_group)
    return Bf16()


CODECS: Mapping[str, Mapping[str, Codec]] = MappingProxyType(
    {
        name: MappingProxyType({column: _codec(stored) for column, stored in columns.items()})
        for name, columns in WIDTHS.items()
    }
)
"""Codec -> value column -> how it is stored."""


def _bytes_of(tensor: Tensor) -> Bytes:
    """The bytes of a tensor [N, …] on any device."""
    return tensor.contiguous().cpu().view(torch.uint8).numpy().reshape(len(tensor), -1)


def _tensor(data: Bytes, dtype: torch.dtype) -> Tensor:
    if not data.flags.writeable or not data.flags.c_contiguous:
        data = data.copy()  # bytes that came over a network are read-only, which tensors cannot be
    return torch.from_numpy(data).view(dtype)
