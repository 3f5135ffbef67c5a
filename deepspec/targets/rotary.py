"""Rotary positions as the target has them, for drafts and for the fused forward.

Frequencies are always computed and kept in fp32 and never pass a module's `.to(dtype)`: in bf16 they would be off by
0.6 rad at distance 512. Only the finished cosines and sines are cast, as the targets themselves do.

Shapes: N positions in any arrangement, P table length, d head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepspec.errors import UnsupportedTarget
from deepspec.targets.family import TargetSpec


class Rotary:
    """Table of rotations by position, grown as positions are asked for.

    Args:
        spec: the target whose full-attention positions these are.

    Raises:
        UnsupportedTarget: a rotary type that transformers does not know.
    """

    def __init__(self, spec: TargetSpec) -> None:
        self._inverse_frequency, self._scaling = _frequencies(spec)
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def lookup(self, positions: Tensor, dtype: torch.dtype, *, limit: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [..., 1, d] (one for all heads) of positions [...], for `rotate`.

        Args:
            positions: int64.
            dtype: of the result.
            limit: an upper bound of the positions plus one, known to the caller without reading them back.
        """
        table = self._tables.get((positions.device, dtype))
        if table is None or table.shape[0] < limit:
            # Not an inference tensor even if first asked for in inference mode: training may use this table next.
            with torch.inference_mode(mode=False):
                table = self._table(max(1024, 1 << (limit - 1).bit_length()), positions.device, dtype)
            self._tables[positions.device, dtype] = table
        cos, sin = F.embedding(positions, table).unsqueeze(-2).chunk(2, dim=-1)
        return cos, sin

    def _table(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * self._inverse_frequency.to(device)
        cos = angles.to(wide).cos() * self._scaling
        sin = angles.to(wide).sin() * self._scaling
        # The sign of "rotate half" is folded into the sines, so that rotating is one roll and two products.
        return torch.cat((cos, cos, -sin, sin), dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [..., heads, d] by what `Rotary.lookup` gave for their positions."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _frequencies(spec: TargetSpec) -> tuple[Tensor, float]:
    """Inverse frequencies fp32 [d/2] and the factor on cosines and sines."""
    kind = str(spec.rope["rope_type"])
    theta, head_dim = float(spec.rope["rope_theta"]), spec.head_dim
    # On the CPU also inside `torch.device("meta")`: an estimate's module has no weights, but its positions are real.
    with torch.device("cpu"):
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        if kind == "default":
            return 1.0 / (theta**exponents), 1.0
        if kind == "proportional":
            # Only the first pairs turn, at the speed they would have if all did; the others stay where they are.
            turning = int(float(spec.rope.get("partial_rotary_factor", 1.0)) * head_dim // 2)
            frequencies = 1.0 / (theta**exponents) / float(spec.rope.get("factor", 1.0))
            return torch.where(torch.arange(len(frequencies)) < turning, frequencies, 0.0), 1.0
        return _scaled_frequencies(spec, kind)


def _scaled_frequencies(spec: TargetSpec, kind: str) -> tuple[Tensor, float]:
    from transformers import PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind not in ROPE_INIT_FUNCTIONS:
        raise UnsupportedTarget(
            f"rope_type {kind!r} is not one of {sorted(ROPE_INIT_FUNCTIONS)}.",
            where=f"{spec.path.name}/config.json",
            remedy="Choose another target, or install a newer transformers.",
        )
    # Not the target's own configuration: in some families it holds one set of parameters per kind of layer.
    config = PreTrainedConfig(
        hidden_size=spec.hidden_size,
        num_attention_heads=spec.num_attention_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_position_embeddings,
        rope_parameters=dict(spec.rope),
    )
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.float(), float(scaling)
