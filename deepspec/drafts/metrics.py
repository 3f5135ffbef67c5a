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
        `accept_rate@k` over the supervised positions k; `tau_probabilistic`, the expected tokens of a round, mean over
        the chains whose position 0 is supervised (a round begins there; of a chain that is supervised later only,
        nothing says whether its first token is accepted), unsupervised positions accepting nothing; and `more`.
    """
    acceptance_N = acceptance_N.double()
    acceptance_AK, supervised_AK = acceptance_N.new_zeros(2, num_chains * num_positions)
    acceptance_AK[places_N] = acceptance_N
    supervised_AK[places_N] = 1.0
    acceptance_AK, supervised_AK = (x.view(num_chains, num_positions) for x in (acceptance_AK, supervised_AK))
    pairs: dict[str, tuple[Tensor, Tensor | float]] = {
        f"accept_rate@{k}": pair
        for k, pair in enumerate(zip(acceptance_AK.sum(dim=0), supervised_AK.sum(dim=0), strict=True))
    }
    begun_A = supervised_AK[:, 0]
    expected_A = 1.0 + acceptance_AK.cumprod(dim=1).sum(dim=1)
    pairs["tau_probabilistic"] = ((begun_A * expected_A).sum(), begun_A.sum())
    return {name: sum_and_count(*pair) for name, pair in (pairs | dict(more)).items()}


def sum_and_count(total: Tensor, count: Tensor | float) -> Tensor:
    """A metric as `LossOutput` has it: fp64 [2], on the sum's device.

    Args:
        total, count: scalars; a count that is no tensor is known without the device.
    """
    if not isinstance(count, Tensor):
        count = torch.full((), count, dtype=torch.float64, device=total.device)
    return torch.stack((total.double(), count.double()))
