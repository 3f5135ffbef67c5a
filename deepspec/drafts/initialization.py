"""A draft's weights before training: NaN until they are set, the target's tables copied and frozen, the rest drawn."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Draft = TypeVar("Draft", bound=nn.Module)

TABLES = ("embed_tokens.weight", "lm_head.weight")
"""The tensors that a draft has of its target: never trained."""


def build(make: Callable[[], Draft], check: Callable[[Draft], None] | None = None) -> Draft:
    """The draft that `make` returns, on the current default device.

    Its weights are NaN, so that a forgotten initialisation fails loudly; its buffers (layer scalars) are 1.

    Args:
        make: makes its modules.
        check: is shown it before its tensors have memory; what it raises passes through.
    """
    device = torch.get_default_device()
    with torch.device("meta"):
        draft = make()
    if check is not None:
        check(draft)
    # Not `to_empty`: what it calls imports sympy for tensors without storage, which takes more than a second.
    for module in draft.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            values = torch.full(weight.shape, torch.nan, dtype=weight.dtype, device=device)
            setattr(module, name, nn.Parameter(values, requires_grad=weight.requires_grad))
        for name, scalar in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.ones(scalar.shape, dtype=scalar.dtype, device=device))
    for name in TABLES:
        draft.get_parameter(name).requires_grad_(False)  # noqa: FBT003  # torch names this argument differently in its stubs
    return draft


def initialize(draft: nn.Module, spread: float, target_embedding_VD: Tensor, target_head_VD: Tensor, seed: int) -> None:
    """Take over the target's embedding and head, and draw everything else.

    Linear weights and embeddings are normal, biases 0, norms 1.

    Args:
        draft: from `build`.
        spread: standard deviation: the target's `initializer_range`.
        target_embedding_VD, target_head_VD: the target's tables; cast to the draft's dtype, where they are of another.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = draft.get_parameter(TABLES[0]).dtype
    share_tables(draft, target_embedding_VD.to(dtype), target_head_VD.to(dtype))
    with torch.no_grad():
        # Tied tables are one parameter's data, not one parameter: each has its name here.
        for name, weight in sorted(draft.named_parameters()):
            if name in TABLES:
                continue
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith(".bias"):
                weight.zero_()
            else:
                weight.copy_(torch.empty(weight.shape, device="cpu").normal_(0.0, spread, generator=generator))


def share_tables(draft: nn.Module, embedding_VD: Tensor, head_VD: Tensor) -> None:
    """Let a draft read the target's tables where they lie: frozen tensors are held once in a process.

    Args:
        draft: whose tables they become, in their dtype.
        embedding_VD, head_VD: moved to the draft's device, where they are elsewhere; may be one tensor. No one may
            change them afterwards.
    """
    for name, table_VD in zip(TABLES, (embedding_VD, head_VD), strict=True):
        parameter = draft.get_parameter(name)
        if parameter.shape != table_VD.shape:
            raise ValueError(f"{name} has shape {list(parameter.shape)}, the target's {list(table_VD.shape)}")
        parameter.data = table_VD.detach().to(parameter.device)


def unset_embedding(num_rows: int, width: int) -> nn.Embedding:
    """An embedding whose weights are still to be set.

    On the meta device torch's own initialisation would import its compiler first, a second of CPU time for nothing.
    """
    return nn.Embedding(num_rows, width, _weight=torch.empty(num_rows, width))
