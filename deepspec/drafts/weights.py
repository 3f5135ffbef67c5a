"""A draft's weights before training: NaN until they are set, the target's tables copied and frozen, the rest drawn."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Draft = TypeVar("Draft", bound=nn.Module)

TABLES = ("embed_tokens.weight", "lm_head.weight")
"""The tensors that a draft has of its target: never trained."""


def build(make: Callable[[], Draft]) -> Draft:
    """The draft that `make` returns, on the current default device.

    Its weights are NaN, so that a forgotten initialisation fails loudly; its buffers (layer scalars) are 1.
    """
    device = torch.get_default_device()
    with torch.device("meta"):
        draft = make()
    draft.to_empty(device=device)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.fill_(torch.nan)
        for scalar in draft.buffers():
            scalar.fill_(1.0)
    for name in TABLES:
        draft.get_parameter(name).requires_grad_(False)  # noqa: FBT003  # torch names this argument differently in its stubs
    return draft


def initialize(draft: nn.Module, spread: float, target_embedding_VD: Tensor, target_head_VD: Tensor, seed: int) -> None:
    """Copy the target's embedding and head, and draw everything else.

    Linear weights and embeddings are normal, biases 0, norms 1.

    Args:
        draft: from `build`.
        spread: standard deviation: the target's `initializer_range`.
        target_embedding_VD, target_head_VD: the target's tables.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = dict(zip(TABLES, (target_embedding_VD, target_head_VD), strict=True))
    with torch.no_grad():
        for name, weight in sorted(draft.named_parameters()):
            if name in tables:
                weight.copy_(tables[name])
            elif name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith(".bias"):
                weight.zero_()
            else:
                weight.copy_(torch.empty(weight.shape, device="cpu").normal_(0.0, spread, generator=generator))
