"""How many drafted tokens of each row are worth verifying, decided in ways that keep decoding lossless.

A scheduler may look at everything but the token whose verification it decides on, and what was drawn after it. Each of
these keeps to that:

* `StaticThreshold` keeps the positions before the first one whose confidence is too low. The confidence of position k
  was computed before token k was drawn.
* `PrefixScheduler` (the paper's Algorithm 1) admits positions of all rows in the order of their probability of
  survival, and stops at the first that does not pay. Whether it admits position k depends on positions with a higher
  probability only: earlier ones of its own row, and other rows', whose randomness is their own. Choosing the best of
  all prefixes instead would look at confidences that depend on token k, and change what is committed.
* Its second rule, `modes`, looks at the number of rows alone: at some loads it pays to verify everything, at others
  drafting costs more than it saves, and the step is a plain one. The rule does not look at what is drafted, so it is
  lossless as well. Each load's mode is chosen before anything is decoded (`modes_by_load`).

With sampling, a scheduled answer is drawn from the same distribution as an unscheduled one, but need not be the same
draw: which random number decides a position depends on whether its draft was verified. Greedy answers are equal.

Legend: R rows, K draft positions, B tokens of a verification. Source: the DSpark paper (arXiv 2607.05147), Algorithm 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from deepspec.decoding.step_costs import Floats, StepCosts
from deepspec.drafts.algorithm import Proposal
from deepspec.errors import IncompatibleDraft, NoConfidence

_EDGE = 1e-7  # as in evaluation.calibration: fp32 sigmoids saturate, and infinite logits cannot be tempered
_SAMPLES = 16
_DRAFTING_PAYS = 1.05
"""By how much drafting has to beat a plain step: costs are measured, and prompts' contexts are not in them."""
_CHOOSING_PAYS = 1.05
"""By how much choosing has to beat verifying everything: costs are measured."""


class Scheduler(Protocol):
    """Decides what of a step's proposals is verified."""

    def drafts(self, num_rows: int) -> bool:
        """Whether a step over `num_rows` rows drafts at all; may depend on nothing else."""

    def lengths(self, proposal: Proposal) -> Tensor:
        """How many positions of each row are verified: int64 [R], 0 … K.

        Args:
            proposal: of R rows. Whether position k is verified must depend neither on token k nor on later draws.

        Raises:
            NoConfidence: the draft says nothing about its confidence, and this scheduler needs to know.
        """


class DraftsAlways:
    """What schedulers share that draft at every load."""

    def drafts(self, num_rows: int) -> bool:
        """See `Scheduler.drafts`."""
        del num_rows
        return True


@dataclass(frozen=True)
class FixedLength(DraftsAlways):
    """Verifies the first `length` positions of every row, whatever the draft thinks of them; asks for no confidence."""

    length: int

    def lengths(self, proposal: Proposal) -> Tensor:
        """See `Scheduler.lengths`."""
        rows, positions = proposal.tokens_RK.shape
        return torch.full((rows,), min(self.length, positions), dtype=torch.int64, device=proposal.tokens_RK.device)


@dataclass(frozen=True)
class StaticThreshold(DraftsAlways):
    """Keeps the positions before the first whose raw confidence is below `threshold`: none, if that is the first."""

    threshold: float

    def lengths(self, proposal: Proposal) -> Tensor:
        """See `Scheduler.lengths`."""
        return (confidence_of(proposal) >= self.threshold).cumprod(dim=1).sum(dim=1)


Mode = Literal["none", "all", "scheduled"]
"""What is done at a load: nothing is drafted; all drafts are verified; Algorithm 1 chooses."""


@dataclass(frozen=True)
class PrefixScheduler:
    """Algorithm 1, with costs measured on this machine.

    Attributes:
        costs: seconds of a step.
        temperatures: of each position's confidence (Sequential Temperature Scaling).
        modes: what is done at each load, by number of rows. Other numbers take the mode of the next larger one given,
            beyond the largest that of the largest. Empty: Algorithm 1 always chooses.
    """

    costs: StepCosts
    temperatures: tuple[float, ...]
    modes: Mapping[int, Mode] = field(default_factory=dict)
    _rates: dict[tuple[int, int, torch.device], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def mode(self, num_rows: int) -> Mode:
        """What is done with `num_rows` rows."""
        above = [rows for rows in self.modes if rows >= num_rows]
        if above:
            return self.modes[min(above)]
        return self.modes[max(self.modes)] if self.modes else "scheduled"

    def drafts(self, num_rows: int) -> bool:
        """See `Scheduler.drafts`."""
        return self.mode(num_rows) != "none"

    def lengths(self, proposal: Proposal) -> Tensor:
        """See `Scheduler.lengths`; O(n log n) in n = R·K, without a loop."""
        confidence_RK = confidence_of(proposal)
        rows, positions = confidence_RK.shape
        if positions != len(self.temperatures):
            raise IncompatibleDraft(
                f"The draft proposes {positions} tokens, but {len(self.temperatures)} confidences were calibrated.",
                remedy="Schedule with this draft's own calibration.",
            )
        if self.mode(rows) == "all":
            return torch.full((rows,), positions, dtype=torch.int64, device=confidence_RK.device)
        temperatures_K = torch.tensor(self.temperatures, dtype=torch.float64, device=confidence_RK.device)
        survival_RK = survival(confidence_RK, temperatures_K)
        return admitted(survival_RK, self._steps_per_second(rows, positions, confidence_RK.device))

    def _steps_per_second(self, rows: int, positions: int, device: torch.device) -> Tensor:
        key = (rows, positions, device)
        if key not in self._rates:
            rates = self.costs.steps_per_second(rows, np.arange(rows, rows * (positions + 1) + 1, dtype=np.float64))
            self._rates[key] = torch.from_numpy(rates).to(device)
        return self._rates[key]


def confidence_of(proposal: Proposal) -> Tensor:
    """Its confidences [R, K]; NoConfidence if it has none."""
    if proposal.confidence_RK is None:
        raise NoConfidence(
            "The draft has no confidence head, and its proposals cannot be scheduled by confidence.",
            remedy="Verify all of them, or use a draft with a confidence head (DSpark).",
        )
    return proposal.confidence_RK


def survival(confidence_RK: Tensor, temperatures_K: Tensor) -> Tensor:
    """a_k: the probability that positions 1 … k are all accepted, fp64 [R, K].

    Args:
        confidence_RK: raw conditional confidences, 0 … 1.
        temperatures_K: what their logits are divided by.
    """
    logits_RK = torch.logit(confidence_RK.double(), eps=_EDGE)
    return torch.sigmoid(logits_RK / temperatures_K).cumprod(dim=1)


def admitted(survival_RK: Tensor, steps_per_second: Tensor) -> Tensor:
    """Algorithm 1: how many positions of each row are verified, int64 [R].

    Positions are admitted by falling probability of survival (ties: earlier positions first, then earlier rows), as
    long as each raises the expected tokens per second; the first that does not ends it, and is left out.

    Args:
        survival_RK: as from `survival`; falls along K.
        steps_per_second: SPS at B = R, R+1, …, R·(K+1); [R·K + 1].
    """
    rows = survival_RK.shape[0]
    # Position-major, so that a stable sort leaves equal ones in the order of their positions.
    value_N, order_N = survival_RK.t().reshape(-1).sort(descending=True, stable=True)
    expected_N = rows + torch.cat((value_N.new_zeros(1), value_N.cumsum(0)))
    throughput_N = expected_N * steps_per_second.to(expected_N.dtype)
    pays_N = (throughput_N[1:] > throughput_N[:-1]) & (value_N > 0)
    taken_N = pays_N.to(torch.int64).cumprod(0)
    return torch.zeros(rows, dtype=torch.int64, device=order_N.device).index_add_(0, order_N % rows, taken_N)


def modes_by_load(
    costs: StepCosts, survival_NK: Floats, candidates: Sequence[int], *, seed: int = 0
) -> dict[int, Mode]:
    """What to do at each load, by expected tokens per second.

    For each number of rows the expectation is averaged over a few draws of R rounds from held-out ones. Depends on
    nothing that is being decoded.

    Args:
        costs: of this machine.
        survival_NK: calibrated probabilities of survival of N held-out rounds.
        candidates: numbers of rows.
        seed: of the draws.

    Returns:
        By number of rows: "none" unless drafting wins over plain steps by a twentieth, "all" unless choosing wins over
        verifying everything by as much. Once nothing is drafted, nothing is at any higher load.
    """
    draws = np.random.default_rng(seed)
    positions = survival_NK.shape[1]
    modes: dict[int, Mode] = {}
    stopped = False
    for rows in sorted(candidates):
        tokens = np.arange(rows, rows * (positions + 1) + 1, dtype=np.float64)
        rates = torch.from_numpy(costs.steps_per_second(rows, tokens))
        chosen, everything = [], []
        for _ in range(_SAMPLES):
            drawn_RK = torch.from_numpy(survival_NK[draws.integers(len(survival_NK), size=rows)])
            length_R = admitted(drawn_RK, rates)
            kept_RK = torch.arange(positions) < length_R[:, None]
            chosen.append((rows + float(drawn_RK[kept_RK].sum())) * float(rates[int(length_R.sum())]))
            everything.append((rows + float(drawn_RK.sum())) * float(rates[-1]))
        scheduled, verified = float(np.mean(chosen)), float(np.mean(everything))
        plain = rows / float(costs.plain(float(rows)))
        stopped = stopped or max(scheduled, verified) <= _DRAFTING_PAYS * plain
        choosing = scheduled > _CHOOSING_PAYS * verified
        modes[rows] = "none" if stopped else "scheduled" if choosing else "all"
    return modes
