"""What training logs of any draft: expected acceptance per position, and the acceptance length it would make.

Shapes: A chains (blocks, or indices that are unrolled), K positions, N supervised positions.
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
    num_positions: int,
    more: Mapping[str, tuple[Tensor, Tensor | float]],
) -> dict[str, Tensor]:
    """Metrics of a micro-batch as (sum, count); see `LossOutput`. Nothing waits for the device.

    Args:
        acceptance_N: `1 - ½·L1` of each supervised position: how likely its token is accepted, given that all before
            it were.
        places_N: chain · K + position of each, int64, without repeats.
        num_chains: A, all with at least one supervised position.
        num_positions: K.
        more: further metrics, (sum, count).

    Returns:
        `accept_rate@k` over the supervised positions k; `tau_probabilistic`, the mean over chains of the expected
        tokens of a round, unsupervised positions accepting nothing; and `more`.
    """
    acceptance_N = acceptance_N.double()
    acceptance_AK = acceptance_N.new_zeros(num_chains * num_positions)
    acceptance_AK[places_N] = acceptance_N
    acceptance_AK = acceptance_AK.view(num_chains, num_positions)
    # Not `bincount`, which waits for the device to learn how long its result is.
    position_N = places_N % num_positions
    supervised_K = acceptance_N.new_zeros(num_positions).index_add_(0, position_N, torch.ones_like(acceptance_N))
    pairs: dict[str, tuple[Tensor, Tensor | float]] = {
        f"accept_rate@{k}": pair for k, pair in enumerate(zip(acceptance_AK.sum(dim=0), supervised_K, strict=True))
    }
    pairs["tau_probabilistic"] = (num_chains + acceptance_AK.cumprod(dim=1).sum(), num_chains)
    return {name: sum_and_count(*pair) for name, pair in (pairs | dict(more)).items()}


def sum_and_count(total: Tensor, count: Tensor | float) -> Tensor:
    """A metric as `LossOutput` has it: fp64 [2], on the sum's device.

    Args:
        total, count: scalars; a count that is no tensor is known without the device.
    """
    if not isinstance(count, Tensor):
        count = torch.full((), count, dtype=torch.float64, device=total.device)
    return torch.stack((total.double(), count.double()))
