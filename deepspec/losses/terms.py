"""Loss terms written plainly: full logits, fp32 throughout. The reference for their twins in `chunked.py`.

Each function is per position; weighting, masking and normalisation are the caller's. Source: spec page "Algorithms",
"Losses (DFlash, DSpark)" and "Eagle3".

Shapes: N supervised positions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In fp32 (fp64 stays): bf16 logarithms and sums over a vocabulary are too coarse for gradients near zero."""
    return x if x.dtype == torch.float64 else x.float()


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """`cap·tanh(logits / cap)`; the logits as they are without a cap."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def cross_entropy(draft_logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """`-log q(label)` per position, [N]."""
    return F.cross_entropy(wide(draft_logits_NV), labels_N, reduction="none")


def l1_distance(draft_logits_NV: Tensor, target_logits_NV: Tensor) -> Tensor:
    """`Σ_v |q - p|` per position (0 … 2, twice the total variation), [N]."""
    draft_NV = torch.softmax(wide(draft_logits_NV), dim=-1)
    target_NV = torch.softmax(wide(target_logits_NV), dim=-1)
    return (draft_NV - target_NV).abs().sum(dim=-1)


def soft_cross_entropy(draft_logits_NV: Tensor, target_logits_NV: Tensor) -> Tensor:
    """`-Σ_v p log q` per position, [N]; `p` is the target's distribution."""
    target_NV = torch.softmax(wide(target_logits_NV), dim=-1)
    return -(target_NV * torch.log_softmax(wide(draft_logits_NV), dim=-1)).sum(dim=-1)


def acceptance(l1_N: Tensor) -> Tensor:
    """Probability `1 - ½·L1` that the target accepts a token drawn from the draft, detached; the confidence's label."""
    return (1 - 0.5 * l1_N.detach()).clamp(0, 1)


def confidence_loss(confidence_logits_N: Tensor, acceptance_N: Tensor) -> Tensor:
    """Binary cross-entropy of the confidence with its soft label, per position, [N]."""
    return F.binary_cross_entropy_with_logits(wide(confidence_logits_N), acceptance_N, reduction="none")
