"""The one forward of a target's body: fused layers (model.py) and Hugging Face's module (hugging_face.py) both have it.

Shapes: B rows, Q new positions, N real ones of the B·Q, D hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from deepspec.targets.cache import Masks, RowCache


@dataclass(frozen=True)
class BodyInputs:
    """New positions of a batch.

    Args:
        input_ids_BQ: token ids, int64.
        position_ids_BQ: their positions, int64.
        cache: rows to read and extend; None: there is none.
        masks: by the layers' windows, each as in `causal_mask`.
        limit: bound of the positions.
        real_N: indices of the real positions in the flattened batch, int64; None: all are. A body that cannot leave
            positions out computes all of them.
    """

    input_ids_BQ: Tensor
    position_ids_BQ: Tensor
    cache: RowCache | None
    masks: Masks
    limit: int
    real_N: Tensor | None


Captured = dict[int, Tensor]
"""Raw outputs [B, Q, D] by decoder layer; -1 is the embedding."""
Body = Callable[[BodyInputs], tuple[Tensor, Captured]]
"""Computes the final states after the norm [B, Q, D], and the captured layers' outputs."""
