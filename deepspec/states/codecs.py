"""How vectors of target states become bytes and back.

`bf16` keeps bfloat16 numbers as they are. `int8` and `int4` cut each vector into groups; the two largest numbers of a
group ("peaks") are kept apart in bfloat16, the others as integers times the group's own scale. Hidden states have a few
channels a hundred times larger than the rest, and without keeping peaks apart each would wipe out its whole group.
Measured with 8 such channels of 1,024, relative error of the ordinary channels: int4 0.08 this way, 0.58 with group
scales alone, 1 with a scale per vector; int8 0.02 against 0.15 and 0.7.

Bytes per number against bf16: int8 0.53 (groups of 128), int4 0.31 (groups of 64). All numbers are little-endian.

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

from deepspec.states.widths import WIDTHS, Bf16Widths, GroupedWidths, Widths

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
    """Integers of `bits` bits with a scale and two peaks per group.

    Columns: "" integers, "_scale" and "_peak" bfloat16, "_peak_index" uint8 (place within the group). Integers are
    signed bytes, or 4-bit ones offset by 8, two to a byte, the first in the low half. At a peak's place there is a 0.
    A group whose numbers are all below 2^-119 has a scale below bfloat16's normal range: they are off by up to 2^-126.
    """

    def encode(self, vectors_NCD: Tensor) -> dict[str, Bytes]:
        num_tokens, num_vectors, hidden_size = vectors_NCD.shape
        group, num_peaks = self.group(hidden_size)
        num_groups = num_vectors * (hidden_size // group)
        # float32 here: the scale decides every number of its group.
        x_NGg = vectors_NCD.to(torch.float32, copy=True).view(num_tokens, num_groups, group)
        index_NGP = x_NGg.abs().topk(num_peaks, dim=-1).indices
        peak_NGP = x_NGg.gather(-1, index_NGP).to(torch.bfloat16)
        x_NGg.view(-1)[_places(index_NGP, group)] = 0.0
        lowest = -(2 ** (self.bits - 1))
        # The largest of the rest becomes the lowest integer, whatever its sign: no level is wasted.
        least_NG1, most_NG1 = torch.aminmax(x_NGg, dim=-1, keepdim=True)
        scale_NG1 = (torch.where(most_NG1 > -least_NG1, most_NG1, least_NG1) / lowest).to(torch.bfloat16)
        x_NGg.div_(torch.where(scale_NG1 == 0, 1.0, scale_NG1.float())).round_().clamp_(lowest, -lowest - 1)
        return {
            "": self._pack(x_NGg.to(torch.int8)),
            "_scale": _bytes_of(scale_NG1),
            "_peak": _bytes_of(peak_NGP),
            "_peak_index": _bytes_of(index_NGP.to(torch.uint8)),
        }

    def decode_into(self, columns: Mapping[str, Bytes], out_NCD: Tensor) -> None:
        num_tokens, num_vectors, hidden_size = out_NCD.shape
        group, num_peaks = self.group(hidden_size)
        shape = (num_tokens, num_vectors * (hidden_size // group))
        scale_NG1 = _tensor(columns["_scale"], torch.bfloat16).view(*shape, 1)
        index_NGP = _tensor(columns["_peak_index"], torch.uint8).view(*shape, num_peaks).long()
        # Levels of at most 8 bits are exact in bfloat16; the product is rounded once.
        torch.mul(self._unpack(columns[""]).view(*shape, group), scale_NG1, out=out_NCD.view(*shape, group))
        # Not scatter_: on a CPU that is ten times slower.
        out_NCD.view(-1)[_places(index_NGP, group)] = _tensor(columns["_peak"], torch.bfloat16).view(-1)

    def _pack(self, levels_NGg: Tensor) -> Bytes:
        if self.bits == 8:
            return _bytes_of(levels_NGg)
        offset = (levels_NGg + 8).to(torch.uint8)
        return _bytes_of(offset[..., 0::2] | (offset[..., 1::2] << 4))

    def _unpack(self, data: Bytes) -> Tensor:
        """The integers as bfloat16, flat."""
        if self.bits == 8:
            return _tensor(data, torch.int8).view(-1).to(torch.bfloat16)
        # One look-up makes two numbers of a byte.
        return torch.from_numpy(_PAIRS.take(data).reshape(-1)).view(torch.bfloat16)


def _places(index_NGP: Tensor, group: int) -> Tensor:
    """Where the numbers with these places in their groups lie in the flat tensor."""
    first_NG1 = torch.arange(index_NGP.shape[0] * index_NGP.shape[1], device=index_NGP.device) * group
    return (index_NGP + first_NG1.view(*index_NGP.shape[:2], 1)).view(-1)


def _pairs() -> npt.NDArray[np.int32]:
    """Byte -> two bfloat16 numbers, as the 32 bits they take."""
    byte = torch.arange(256)
    return torch.stack([byte % 16 - 8, byte // 16 - 8], dim=-1).to(torch.bfloat16).view(torch.int32).view(-1).numpy()


_PAIRS = _pairs()
CODECS: Mapping[str, Codec] = MappingProxyType(
    {"bf16": Bf16()}
    | {name: Grouped(w.bits, w.max_group) for name, w in WIDTHS.items() if isinstance(w, GroupedWidths)}
)


def _bytes_of(tensor: Tensor) -> Bytes:
    """The bytes of a tensor [N, …] on any device."""
    return tensor.contiguous().cpu().view(torch.uint8).numpy().reshape(len(tensor), -1)


def _tensor(data: Bytes, dtype: torch.dtype) -> Tensor:
    # A copy: mapped bytes are read-only, which tensors cannot be.
    return torch.from_numpy(data.copy()).view(dtype)
