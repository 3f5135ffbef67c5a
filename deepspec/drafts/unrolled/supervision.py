"""What an autoregressive draft learns when it is unrolled over its own outputs (training-time test).

At step s the draft stands at index t with the output of step s-1 at the same index, reads token t + 1 + s and has to
predict the token after it. A step computes only the rows from which something supervised is still reached.

Source: EAGLE-3 paper (arXiv 2503.01840), spec page "Algorithms", Eagle3.

Shapes: T packed tokens, N rows of a step, M supervised rows of a step, S steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepspec.states.batch import PackedTokens


@dataclass(frozen=True)
class UnrollStep:
    """One step over the packed documents.

    Args:
        kept_N: which rows of the step before go on, ascending, int64; of step 0: all T indices.
        indices_N: packed index t of each row, int64.
        positions_N: rotary position t + s of each row, int64.
        seen_N: how many of its document's step-0 positions each row sees, t + 1, int64.
        seen: the same, on the host on every device: kernels choose their sizes by it.
        next_N: packed index t + 1 + s of the token that is read and whose successor is predicted, clamped to the
            document, int64.
        rows_per_document: how many of the N rows each document has.
        supervised_M: which of the rows are supervised, int64.
        weights_M: decay^s / (length of the document), fp64, so that sums don't depend on how a batch was split.
    """

    kept_N: Tensor
    indices_N: Tensor
    positions_N: Tensor
    seen_N: Tensor
    seen: npt.NDArray[np.int64]
    next_N: Tensor
    rows_per_document: tuple[int, ...]
    supervised_M: Tensor
    weights_M: Tensor

    def to(self, device: torch.device | str) -> "UnrollStep":
        """The same with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class UnrollSupervision:
    """What one micro-batch learns.

    Args:
        steps: all steps over the packed documents.
        num_chains: how many indices have something supervised at any step.
        places_M: (which of these chains) · S + step of each supervised row of all steps, int64.
        totals: the denominator of its loss: the number of documents.
    """

    steps: tuple[UnrollStep, ...]
    num_chains: int
    places_M: Tensor
    totals: Mapping[str, float]

    def to(self, device: torch.device | str) -> "UnrollSupervision":
        """The same with its tensors on `device`."""
        steps = tuple(step.to(device) for step in self.steps)
        return replace(self, steps=steps, places_M=self.places_M.to(device, non_blocking=True))


def unroll_supervision(tokens: PackedTokens, *, num_steps: int, step_decay: float) -> UnrollSupervision:
    """What each step computes and learns.

    Step s at index t is supervised iff position t + s is in the loss mask and lies before the document's last one.

    Args:
        tokens: packed documents, on the CPU.
        num_steps: S.
        step_decay: step s weighs step_decay^s.
    """
    mask_T = tokens.loss_mask_T.numpy()
    lengths = np.asarray(tokens.lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    document_T = np.repeat(np.arange(len(lengths)), lengths)
    end_T = (starts + lengths)[document_T]
    index_T = np.arange(len(mask_T), dtype=np.int64)
    at_ST = index_T + np.arange(num_steps)[:, None]
    supervised_ST = (at_ST < end_T - 1) & mask_T[np.minimum(at_ST, end_T - 1)]
    # From row t of step s something supervised is reached at this step or a later one.
    reached_ST = np.logical_or.accumulate(supervised_ST[::-1], axis=0)[::-1]
    steps, chains = [], []
    before = index_T
    for step in range(num_steps):
        rows = index_T if step == 0 else np.flatnonzero(reached_ST[step])
        supervised = supervised_ST[step][rows]
        documents = document_T[rows]
        seen = rows - starts[documents] + 1
        chains.append(rows[supervised])
        steps.append(
            UnrollStep(
                kept_N=_tensor(np.searchsorted(before, rows)),
                indices_N=_tensor(rows),
                positions_N=_tensor(rows - starts[documents] + step),
                seen_N=_tensor(seen),
                seen=seen,
                next_N=_tensor(np.minimum(rows + 1 + step, end_T[rows] - 1)),
                rows_per_document=tuple(np.bincount(documents, minlength=len(lengths)).tolist()),
                supervised_M=_tensor(np.flatnonzero(supervised)),
                weights_M=_tensor(step_decay**step / lengths[documents[supervised]].astype(np.float64)),
            )
        )
        before = rows
    distinct, chain_M = np.unique(np.concatenate(chains), return_inverse=True)
    step_M = np.repeat(np.arange(num_steps), [len(chain) for chain in chains])
    places_M = _tensor(chain_M * num_steps + step_M)
    return UnrollSupervision(tuple(steps), len(distinct), places_M, {"soft_ce": float(len(lengths))})


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
