"""Sequential Temperature Scaling: makes the confidence head's numbers mean what they say.

c_k is the draft's probability that position k is accepted, given that all before it were. Schedulers use the product
a_k = c_1 … c_k, the probability that the prefix of length k survives. Left to right, with the earlier temperatures
fixed, T_k is the one on a grid that brings a_k closest to the observed survival: sigmoid(logit(c_k) / T_k).

Judged on other prompts than fitted on. Torch-free; not here: decoding, plots.

Legend: N rounds, K draft positions, M temperatures tried, W equal-width bins.
Source: the DSpark paper (arXiv 2607.05147).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from deepspec.evaluation.calibration.results import ReliabilityBin
from deepspec.evaluation.config import Calibration
from deepspec.evaluation.intervals import Floats, Ints
from deepspec.evaluation.results import Rates

Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

_EDGE = 1e-7  # fp32 sigmoids saturate to 0 and 1, whose logits are infinite


@dataclass(frozen=True)
class Observations:
    """What a draft said about its proposals, and what became of them.

    Attributes:
        confidence_NK: raw conditional confidences; NaN beyond the effective proposal.
        proposed_N: effective proposal length.
        accepted_N: accepted draft tokens.
    """

    confidence_NK: Floats
    proposed_N: Ints
    accepted_N: Ints

    @classmethod
    def of(cls, rounds: Sequence[tuple[int, int, Sequence[float]]], num_draft_tokens: int) -> "Observations":
        """From (proposed, accepted, confidences) per round."""
        confidence_NK = np.full((len(rounds), num_draft_tokens), np.nan)
        for row, (_, _, confidences) in enumerate(rounds):
            confidence_NK[row, : len(confidences)] = confidences
        counts_N2 = np.asarray([(proposed, accepted) for proposed, accepted, _ in rounds], dtype=np.int64)
        counts_N2 = counts_N2.reshape(-1, 2)
        return cls(confidence_NK, counts_N2[:, 0], counts_N2[:, 1])

    def survival(self, position: int) -> tuple[Flags, Flags]:
        """Rounds that proposed `position` (0-based) [N], and whether each of those survived it [their number]."""
        proposed_N = self.proposed_N > position
        return proposed_N, self.accepted_N[proposed_N] > position


@dataclass(frozen=True)
class Judged:
    """How good confidences are at each position; None where it cannot be said.

    Attributes:
        ece: calibration error over equal-width bins.
        ece_mass: over equal-mass bins.
        brier: mean squared error.
        auc: area under the ROC curve of the product of confidences; None where only one outcome was seen.
        reliability: the bins that hold rounds.
        trials: rounds behind each.
    """

    ece: Rates
    ece_mass: Rates
    brier: Rates
    auc: Rates
    reliability: tuple[tuple[ReliabilityBin, ...], ...]
    trials: tuple[int, ...]


def fit(observations: Observations, config: Calibration) -> list[float]:
    """The temperature of each position.

    Of equally good temperatures the one nearest to 1 is taken; a position that was never proposed keeps 1.

    Args:
        observations: of prompts that nothing else is measured on.
        config: grid and bins.
    """
    grid_M = np.unique(
        np.append(np.geomspace(config.min_temperature, config.max_temperature, config.num_temperatures), 1.0)
    )
    distance_M = np.abs(np.log(grid_M))
    before_N = np.ones(len(observations.proposed_N))
    temperatures = []
    for position in range(observations.confidence_NK.shape[1]):
        proposed_N, survived = observations.survival(position)
        confidence = observations.confidence_NK[proposed_N, position]
        best = 1.0
        if len(confidence):
            candidates = before_N[proposed_N] * tempered(confidence, grid_M[:, None])
            errors_M = [expected_calibration_error(one, survived, config.num_width_bins) for one in candidates]
            best = float(grid_M[np.lexsort((distance_M, errors_M))[0]])
        temperatures.append(best)
        before_N[proposed_N] *= tempered(confidence, best)
    return temperatures


def tempered(confidence: Floats, temperature: float | Floats) -> Floats:
    """sigmoid(logit(confidence) / temperature), element by element."""
    clipped = np.clip(confidence, _EDGE, 1.0 - _EDGE)
    logits = np.log(clipped) - np.log1p(-clipped)
    result: Floats = 1.0 / (1.0 + np.exp(-logits / temperature))
    return result


def prefix_confidence(observations: Observations, temperatures: Sequence[float]) -> Floats:
    """a_k of every round, [N, K]; NaN beyond the effective proposal."""
    return np.cumprod(tempered(observations.confidence_NK, np.asarray(temperatures)), axis=1, dtype=np.float64)


def judge(observations: Observations, temperatures: Sequence[float], config: Calibration) -> Judged:
    """How good tempered confidences are, per position, against prefix survival."""
    prefix_NK = prefix_confidence(observations, temperatures)
    positions = []
    for position in range(prefix_NK.shape[1]):
        proposed_N, survived = observations.survival(position)
        positions.append((prefix_NK[proposed_N, position], survived))
    known = [(confidence, survived) if len(confidence) else None for confidence, survived in positions]
    return Judged(
        ece=tuple(one and expected_calibration_error(*one, config.num_width_bins) for one in known),
        ece_mass=tuple(one and equal_mass_error(*one, config.num_mass_bins) for one in known),
        brier=tuple(one and float(np.mean((one[0] - one[1]) ** 2)) for one in known),
        auc=tuple(area_under_curve(*one) for one in positions),
        reliability=tuple(reliability(*one, config.num_width_bins) for one in positions),
        trials=tuple(len(confidence) for confidence, _ in positions),
    )


def conditional_auc(observations: Observations) -> list[float | None]:
    """ROC-AUC of the raw c_k for "position k is accepted" among rounds that accepted all before it.

    No temperature changes it; None where only one outcome was seen.
    """
    areas = []
    for position in range(observations.confidence_NK.shape[1]):
        reached_N = (observations.proposed_N > position) & (observations.accepted_N >= position)
        accepted = observations.accepted_N[reached_N] > position
        areas.append(area_under_curve(observations.confidence_NK[reached_N, position], accepted))
    return areas


def expected_calibration_error(confidence: Floats, outcome: Flags, num_bins: int) -> float:
    """Mean gap between confidence and frequency over equal-width bins, weighted by their rounds."""
    bins = _bins(confidence, num_bins)
    gaps = np.bincount(bins, weights=confidence - outcome, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def equal_mass_error(confidence: Floats, outcome: Flags, num_bins: int) -> float:
    """The same over bins with equally many rounds; equal confidences may fall into neighbouring bins."""
    gaps = (confidence - outcome)[np.argsort(confidence, kind="stable")]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, num_bins)) / len(confidence))


def area_under_curve(score: Floats, outcome: Flags) -> float | None:
    """Probability that a positive scores above a negative, ties counting half; None if one of the kinds is missing."""
    num_positive = int(outcome.sum())
    num_negative = len(outcome) - num_positive
    if not num_positive or not num_negative:
        return None
    from scipy.stats import rankdata

    rank_sum = rankdata(score)[outcome].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def reliability(confidence: Floats, outcome: Flags, num_bins: int) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram that hold rounds, from low to high confidence."""
    bins = _bins(confidence, num_bins)
    rounds_W = np.bincount(bins, minlength=num_bins)
    confidence_W = np.bincount(bins, weights=confidence, minlength=num_bins)
    observed_W = np.bincount(bins, weights=outcome, minlength=num_bins)
    return tuple(
        ReliabilityBin(
            confidence=float(confidence_W[index] / rounds_W[index]),
            observed=float(observed_W[index] / rounds_W[index]),
            rounds=int(rounds_W[index]),
        )
        for index in np.flatnonzero(rounds_W)
    )


def _bins(confidence: Floats, num_bins: int) -> Ints:
    return np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
