"""From logits to a distribution, and from a distribution and a uniform number to a token.

One function makes the target's p and the draft's q, so that both are truncated alike; everything is fp32, because a
bf16 softmax biases the ratios p/q near 1. Drawing inverts the cumulative sum in fp64: one number per draw, whatever V.

Legend: V vocabulary, N rows, `...` any leading axes.
"""

import torch
from torch import Tensor

from deepspec.decoding.config import Sampling


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that tokens are drawn from.

    Temperature first, then top-k, then top-p over what top-k left. Both truncations are thresholds on the logit: a
    token that ties with the last one kept is kept too, so the result depends on no sorting order.

    Args:
        logits: [..., V], any floating dtype; already soft-capped.
        sampling: not greedy (greedy decoding needs no distribution).

    Returns:
        fp32 [..., V], each row sums to 1.
    """
    scaled = logits.float()
    if sampling.temperature != 1.0:
        scaled = scaled / sampling.temperature
    if sampling.truncated:
        scaled = scaled.masked_fill(scaled < _lowest_kept(scaled, sampling), float("-inf"))
    return torch.softmax(scaled, dim=-1)


def _lowest_kept(scaled: Tensor, sampling: Sampling) -> Tensor:
    """The smallest scaled logit that survives top-k and top-p, [..., 1]."""
    vocab_size = scaled.shape[-1]
    if 0 < sampling.top_k < vocab_size:
        ranked = scaled.topk(sampling.top_k, dim=-1).values
    else:
        ranked = scaled.sort(dim=-1, descending=True).values
    if sampling.top_p >= 1.0:
        return ranked[..., -1:]
    mass_before = torch.softmax(ranked, dim=-1).cumsum(dim=-1)
    num_kept = 1 + (mass_before[..., :-1] < sampling.top_p).sum(dim=-1, keepdim=True)
    return ranked.gather(-1, num_kept - 1)


def draw(weights_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """Draw one token per row.

    Args:
        weights_NV: fp32, non-negative, not necessarily normalised; at least one positive entry per row.
        uniforms_N: fp64 in [0, 1).

    Returns:
        int64 [N]; a token of weight 0 is never drawn. A row with NaN gives V, which is no token: callers check for it.
    """
    cumulative_NV = weights_NV.cumsum(dim=-1, dtype=torch.float64)
    threshold_N1 = (uniforms_N * cumulative_NV[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative_NV, threshold_N1, right=True).squeeze(-1)


def likeliest(logits: Tensor) -> Tensor:
    """The greedy token.

    Args:
        logits: [..., V].

    Returns:
        int64 [...]; V, which is no token, where the logits hold NaN.
    """
    peak, tokens = logits.max(dim=-1)
    return tokens.masked_fill(peak.isnan(), logits.shape[-1])
