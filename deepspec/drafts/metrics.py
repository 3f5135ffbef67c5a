"""What training logs of any draft: expected acceptance per slot, and the acceptance length it would make.

Shapes: A chains (blocks, or places of an unroll), K slots, N supervised slots.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def acceptance_metrics(
    acceptance_N: Tensor,
    places_N: Tensor,
    *,
    num_chains: int,
    num_slots: int,
    more: Mapping[str, tuple[Tensor, Tensor | float]],
) -> dict[str, tuple[float, float]]:
    """Metrics of a micro-batch as (sum, count).

    Args:
        acceptance_N: `1 - ½·L1` of each supervised slot: how likely its token is accepted, given that all before were.
        places_N: chain · K + slot of each, int64, without repeats.
        num_chains: A, all with at least one supervised slot.
        num_slots: K.
        more: further metrics, (sum, count).

    Returns:
        `accept_rate@k` over the supervised slots k; `tau_probabilistic`, the mean over chains of the expected tokens of
        a round, unsupervised slots accepting nothing; and `more`. One transfer from the device for all of them.
    """
    acceptance_AK = torch.zeros(num_chains * num_slots, dtype=torch.float64, device=acceptance_N.device)
    acceptance_AK[places_N] = acceptance_N.double()
    acceptance_AK = acceptance_AK.view(num_chains, num_slots)
    supervised_K = torch.bincount(places_N % num_slots, minlength=num_slots)
    tau = num_chains + acceptance_AK.cumprod(dim=1).sum()
    values = [acceptance_AK.sum(dim=0), supervised_K.double(), tau[None]]
    values += [part.double()[None] for pair in more.values() for part in pair if isinstance(part, Tensor)]
    numbers = iter(torch.cat(values).tolist())
    accepted = [next(numbers) for _ in range(num_slots)]
    supervised = [next(numbers) for _ in range(num_slots)]
    sums = {f"accept_rate@{k}": pair for k, pair in enumerate(zip(accepted, supervised, strict=True))}
    sums["tau_probabilistic"] = (next(numbers), float(num_chains))
    for name, (_, count) in more.items():
        total = next(numbers)
        sums[name] = (total, next(numbers) if isinstance(count, Tensor) else count)
    return sums
