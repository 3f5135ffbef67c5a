"""How far a measured value may be from the true one: a jackknife over prompts, and Student's t.

For what is computed from sums over prompts: τ, speedups, differences, and their means over benchmarks. A prompt is
left out with all of its rounds, since rounds of one answer resemble each other, and with all of its columns, so that
ratios and differences are paired. Few prompts of which some decide much make the error itself uncertain: the degrees
of freedom are the number of prompts less one, divided by one plus the squared skewness of what leaving one out does.
Below `FEWEST_PROMPTS` nothing can be said.

Not `scipy.stats.bootstrap`: resampled percentiles are too narrow for few prompts; the demo's cover 79 % instead of 95 %
at four. The guide's page "judging" has what these cover; `make campaign PART=verdict` simulates it.

Sources: Tukey's jackknife (Miller 1974, Biometrika 61); the degrees of freedom of a sum of errors by Satterthwaite
(1946, Biometrics Bulletin 2). The division by skewness is ours, and stands on the simulation alone.

Legend: P prompts, C columns that are summed, S sets of sums.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from deepspec.evaluation.results import FEWEST_PROMPTS, Interval

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

Statistic: TypeAlias = Callable[[Floats], Floats]
"""Sums over prompts [S, C] -> its value of each [S]; NaN where it has none."""

LEVEL = 0.95
"""Of the intervals in results and reports."""


@dataclass(frozen=True)
class Estimate:
    """A measured value and its uncertainty.

    Attributes:
        value: what was measured.
        error: its standard error, in the same unit.
        freedom: degrees of freedom of `error`.
    """

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> Interval:
        """The two-sided interval that holds the true value with this probability."""
        half = quantile((1.0 + level) / 2.0, self.freedom) * self.error
        return self.value - half, self.value + half

    def at_least(self, confidence: float) -> float:
        """The true value is at least this, with probability `confidence`: the one-sided interval's end."""
        return self.value - quantile(confidence, self.freedom) * self.error

    def at_most(self, confidence: float) -> float:
        """The true value is at most this, with probability `confidence`."""
        return self.value + quantile(confidence, self.freedom) * self.error


def quantile(probability: float, freedom: float) -> float:
    """The value that Student's t with `freedom` degrees of freedom stays below with `probability`."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def estimate(table_PC: Floats, statistic: Statistic) -> Estimate | None:
    """A statistic of sums over prompts.

    Args:
        table_PC: what each prompt adds to the sums.
        statistic: of these sums.

    Returns:
        None for fewer than `FEWEST_PROMPTS`, or where all that counts comes from one of them.
    """
    num_prompts = len(table_PC)
    if num_prompts < FEWEST_PROMPTS:
        return None
    sums_1C = table_PC.sum(0, keepdims=True)
    without_P = statistic(sums_1C - table_PC)
    value = float(statistic(sums_1C)[0])
    if math.isnan(value) or bool(np.isnan(without_P).any()):
        return None
    shifts_P = without_P - without_P.mean()
    spread = float(np.square(shifts_P).mean())
    skewness = float((shifts_P**3).mean()) / spread**1.5 if spread > 0.0 else 0.0
    freedom = max((num_prompts - 1) / (1.0 + skewness**2), 1.0)
    return Estimate(value, math.sqrt((num_prompts - 1) * spread), freedom)


def mean_estimate(tables_PC: Sequence[Floats], statistic: Statistic) -> Estimate | None:
    """The plain mean over benchmarks of a statistic; None if there is no benchmark, or one of them has no estimate.

    The benchmarks are given, their prompts are a sample.

    Args:
        tables_PC: of each benchmark, what its prompts add to the sums.
        statistic: of these sums.
    """
    found = [one for table_PC in tables_PC if (one := estimate(table_PC, statistic)) is not None]
    if not found or len(found) < len(tables_PC):
        return None
    share = 1.0 / len(found)
    value = share * sum(one.value for one in found)
    return Estimate(value, *_together([(share * one.error, one.freedom) for one in found]))


def widened(one: Estimate, values: Sequence[float]) -> Estimate:
    """An estimate of a mean over repeats, with what the repeats vary by added to what prompts vary by.

    Args:
        one: over prompts, of the mean over repeats.
        values: of each repeat; of a single one nothing is known, and nothing added.
    """
    if len(values) < 2:
        return one
    repeats = (statistics.stdev(values) / math.sqrt(len(values)), len(values) - 1.0)
    return Estimate(one.value, *_together([(one.error, one.freedom), repeats]))


def _together(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Error and degrees of freedom of a sum of independent parts: those of each."""
    squares = [error**2 for error, _ in errors]
    total = sum(squares)
    unsure = sum(square**2 / freedom for square, (_, freedom) in zip(squares, errors, strict=True))
    return math.sqrt(total), total**2 / unsure if unsure > 0.0 else min(freedom for _, freedom in errors)


def ratio(numerator_S: Floats, denominator_S: Floats) -> Floats:
    """One over the other, [S]; NaN where the other is 0."""
    return np.asarray(numerator_S / np.where(denominator_S == 0, np.nan, denominator_S))


def student_interval(values: Sequence[float]) -> Interval | None:
    """Interval of the mean of few repeats; None for one."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.mean(values), error, len(values) - 1.0).interval()
