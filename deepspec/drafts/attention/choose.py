"""Which backend computes attention: flex attention on a GPU, scaled dot products elsewhere."""

from typing import Literal

import torch

from deepspec.drafts.attention.contracts import AttentionBackend

BackendName = Literal["auto", "sdpa", "flex"]


def choose_backend(name: BackendName, device: torch.device) -> AttentionBackend:
    """The backend of that name; auto: flex attention on a GPU, scaled dot products elsewhere.

    Cost: flex attention imports torch's compiler when it is first asked for.
    """
    if name == "flex" or (name == "auto" and device.type == "cuda"):
        from deepspec.drafts.attention.flex import FLEX

        return FLEX
    from deepspec.drafts.attention.sdpa import SDPA

    return SDPA
