"""95 % intervals: by a percentile bootstrap over prompts, and Student's over few repeats.

The bootstrap is of what is computed from sums over prompts: τ, speedups, differences, and their means. Prompts are
resampled, not rounds: rounds of one answer resemble each other. A prompt's columns are resampled together, so that
ratios and differences are paired.

Not `scipy.stats.bootstrap`: it refuses a benchmark with a single prompt and gives no interval once a resample has no
round, and its other draws would change the intervals that stores already hold.

Legend: P prompts, C columns that are summed, S bootstrap samples.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from deepspec.evaluation.results import Interval

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

Statistic: TypeAlias = Callable[[Floats], Floats]
"""Sums over prompts [S, C] -> its value of each [S]; NaN where it has none."""


def mean_interval(tables_PC: Sequence[Floats], statistic: Statistic, num_samples: int, seed: int) -> Interval | None:
    """Bootstrap interval of the plain mean over benchmarks of a statistic; None if no resample has a value.

    Each benchmark's prompts are resampled by themselves: the benchmarks are given, the prompts are a sample.

    Args:
        tables_PC: of each benchmark, what its prompts add to the sums.
        statistic: of these sums.
        num_samples: resamples.
        seed: of the resampling.
    """
    samples = [
        statistic(resamples(len(table_PC), num_samples, seed + place) @ table_PC)
        for place, table_PC in enumerate(tables_PC)
    ]
    return interval_of(np.mean(samples, axis=0)) if samples else None


def resamples(num_prompts: int, num_samples: int, draws: int | np.random.Generator) -> Floats:
    """How often each prompt occurs in each resample, [S, P].

    Args:
        num_prompts: P.
        num_samples: S.
        draws: a seed, or a generator, which goes on.
    """
    if num_prompts == 0:
        return np.zeros((num_samples, 0))
    shares_P = np.full(num_prompts, 1.0 / num_prompts)
    return np.random.default_rng(draws).multinomial(num_prompts, shares_P, size=num_samples).astype(np.float64)


def ratio(numerator_S: Floats, denominator_S: Floats) -> Floats:
    """One over the other, [S]; NaN where the other is 0."""
    return np.asarray(numerator_S / np.where(denominator_S == 0, np.nan, denominator_S))


def interval_of(samples_S: Floats) -> Interval | None:
    """The 95 % percentile interval; NaN samples are left out, and None is returned if no other is there."""
    samples_S = samples_S[~np.isnan(samples_S)]
    return percentiles(samples_S) if len(samples_S) else None


def percentiles(samples_S: Floats) -> Interval:
    """The same of samples of which each has a value; at least one."""
    low, high = np.percentile(samples_S, (2.5, 97.5))
    return float(low), float(high)


def student_interval(values: Sequence[float]) -> Interval | None:
    """Interval of the mean of few repeats; None for one."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half
