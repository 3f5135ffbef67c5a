"""Evidence that served acceptance fell below a reference: a Shiryaev-Roberts e-detector over windows.

What is tested: the mean of an answer's *loss*, the tokens that its rounds would have brought at the reference less
those that they brought. At or above the reference its mean is at most 0, whatever the answers' lengths.

* **An e-value for each window.** An answer's loss x is bet on by λ: Catoni's influence function φ, with
  E exp φ(λx) <= 1 + λ²σ²/2 where the mean of x is at most 0. So the product over answers of exp(φ(λx) - λ²σ²/2) has a
  mean of at most 1. Answers differ in length by factors of a hundred: this needs a variance, and no bound.
* **An e-detector over windows.** M ← e · (M + 1) adds up the evidence for a change at any earlier window. The mean of M
  after n windows is at most n, so an alarm at M >= A comes in the first n windows with a probability of at most n / A,
  and after A windows or more in the mean. A CUSUM tuned to one drop would be as fast at that drop, and its threshold
  would need the distribution of answers; a test at fixed times would have to divide its error over all windows.
* **A mixture over drops** (`DROPS`): the mean of e-detectors is one; each bets as is best for one drop.
* **The reference's own error** is inside: losses are counted from its lower bound (`REFERENCE_ERROR`), so a
  reference that was measured on few prompts cannot make an alarm by its luck.
* **The variance** is that of the windows before, about the same reference, raised by `CAUTION` / √answers for what it
  does not know; so the guarantee is as good as that, and the simulation counts what comes of it.

Budget: at most one false alarm in `PER_WINDOWS` windows of all traffic. The windows of all domains are together as many
as those of all traffic, and each stream has two references, so that each e-detector may spend a fourth of it, less
what references may spend that lie too high.

Sources: Shin, Ramdas, Rinaldo (2023), "E-detectors", NEJSDS 2(2); Wang and Ramdas (2023), "Catoni-style confidence
sequences", Stochastic Processes and their Applications 163; Catoni (2012), Annales de l'IHP 48.

Legend: N answers, J bets.
"""

import math
from dataclasses import dataclass

import numpy as np

from deepspec.evaluation.intervals import Floats

DROPS = (0.03, 0.06, 0.1, 0.2, 0.5)
"""Shares of τ that bets are tuned to."""
PER_WINDOWS = 200
"""One false alarm in this number of windows of all traffic, all streams together."""
REFERENCE_ERROR = 0.005
"""Probability with which a reference's lower bound may lie above the truth."""
CAUTION = 3.0
"""A variance of n answers is raised by the factor 1 + CAUTION / √n: three standard errors of about 1 / √n, for losses
with tails somewhat heavier than a normal distribution's."""

_FOR_REFERENCES = 0.2
_DETECTORS = 4
THRESHOLD = _DETECTORS * PER_WINDOWS / (1.0 - _FOR_REFERENCES)
"""M of an alarm; the mean number of windows to a false one, at least."""

_POWER_QUANTILE = 1.645
"""Of a standard normal distribution, at 95 %."""


@dataclass(frozen=True)
class Scale:
    """What losses are measured by.

    Attributes:
        tokens: that an answer's rounds bring at the reference, in the mean.
        variance: of an answer's loss, in squared tokens.
    """

    tokens: float
    variance: float


def evidence(losses_N: Floats, scale: Scale) -> Floats:
    """The logarithm of a window's e-value for each bet, [J].

    Args:
        losses_N: tokens that each answer lacks to the reference's lower bound; below 0: it has more.
        scale: known before the window.
    """
    bets_J = np.asarray(DROPS) * scale.tokens / scale.variance
    stakes_JN = bets_J[:, None] * losses_N
    gains_JN = np.sign(stakes_JN) * np.log1p(np.abs(stakes_JN) + 0.5 * np.square(stakes_JN))
    return np.asarray(gains_JN.sum(1) - 0.5 * len(losses_N) * np.square(bets_J) * scale.variance)


def advanced(log_m_J: Floats, evidence_J: Floats) -> Floats:
    """log M of each bet after another window: M ← e · (M + 1)."""
    return np.asarray(np.logaddexp(log_m_J, 0.0) + evidence_J)


def begun() -> Floats:
    """log M of each bet before any window."""
    return np.full(len(DROPS), -np.inf)


def strength(log_m_J: Floats) -> float:
    """The logarithm of M, the mean over bets."""
    return float(np.logaddexp.reduce(log_m_J)) - math.log(len(DROPS))


def is_alarm(log_m_J: Floats) -> bool:
    """Whether the evidence reaches the threshold."""
    return strength(log_m_J) >= math.log(THRESHOLD)


def smallest_drop(*, margin: float, error: float, spread: float, answers: float) -> float:
    """The share of τ whose loss is found with a probability of 95 %.

    By the normal approximation of the best bet: its evidence after `answers` is half the square of what is observed in
    standard errors, and has to reach the threshold although the luck of both is at its lower 5 %.

    Args:
        margin: of the reference above its lower bound, as a share of it.
        error: of the reference, as a share of it.
        spread: standard deviation of an answer's loss, as a share of the tokens of a mean answer.
        answers: until it has to be found.
    """
    noise = spread / math.sqrt(answers)
    needed = math.sqrt(2.0 * math.log(THRESHOLD * len(DROPS)))
    return margin + noise * needed + _POWER_QUANTILE * math.hypot(noise, error)
