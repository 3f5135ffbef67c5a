"""Algorithms side by side over several training seeds: the shape of the paper's Table 1, with paired intervals.

One training says little about an algorithm: another seed gives another draft. Here τ is the mean over seeds, and an
interval covers both what the prompts and what the seeds could have been: prompts are resampled within each benchmark,
seeds among themselves, and all algorithms are resampled alike, so that differences are paired.

Legend: A algorithms, T seeds, P prompts, S bootstrap samples. Source: the DSpark paper (arXiv 2607.05147), Table 1.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from deepspec.evaluation.compare.drafts import Counts
from deepspec.evaluation.compare.results import AlgorithmDifference, SeedDifference, SeedTau, SideBySide
from deepspec.evaluation.config import GATE
from deepspec.evaluation.intervals import Floats, percentiles, ratio, resamples

MACRO = "macro"


def side_by_side(measured: Mapping[str, Sequence[Mapping[str, Counts]]], *, num_samples: int, seed: int) -> SideBySide:
    """Mean τ of algorithms over seeds, and how they differ.

    Args:
        measured: algorithm -> of each seed, in the same order: benchmark -> counts.
        num_samples: bootstrap resamples behind each interval.
        seed: of the resampling.

    Raises:
        ValueError: algorithms were measured with different numbers of seeds.
    """
    num_seeds = {len(of_seeds) for of_seeds in measured.values()}
    if len(num_seeds) != 1:
        raise ValueError(f"different numbers of seeds: {sorted(num_seeds)}")
    parts = [part for of_seeds in measured.values() for part in of_seeds]
    names = sorted(set.intersection(*(set(part) for part in parts)) - {GATE})
    draws = np.random.default_rng(seed)
    count = num_seeds.pop()
    weights_ST = resamples(count, num_samples, draws) / count
    found: dict[str, dict[str, tuple[Floats, Floats]]] = {algorithm: {} for algorithm in measured}
    prompts = {}
    for name in names:
        decoded = [{prompt for prompt, (_, rounds) in part[name].items() if rounds} for part in parts]
        shared = sorted(set.intersection(*decoded))
        if not shared:
            continue
        prompts[name] = len(shared)
        counts_SP = resamples(len(shared), num_samples, draws)
        for algorithm, of_seeds in measured.items():
            found[algorithm][name] = _tau(of_seeds, name, shared, counts_SP, weights_ST)
    for of_benchmarks in found.values():
        if of_benchmarks:
            by_seed, samples = zip(*of_benchmarks.values(), strict=True)
            of_benchmarks[MACRO] = (np.mean(by_seed, axis=0), np.mean(samples, axis=0))
    return SideBySide(
        tau={algorithm: {name: _tau_of(*pair) for name, pair in part.items()} for algorithm, part in found.items()},
        differences=tuple(
            AlgorithmDifference(
                of=one,
                against=other,
                benchmarks={name: _difference(found[one][name], found[other][name]) for name in found[one]},
            )
            for other, one in combinations(measured, 2)
        ),
        prompts=prompts,
    )


def _tau(
    of_seeds: Sequence[Mapping[str, Counts]], name: str, shared: Sequence[str], counts_SP: Floats, weights_ST: Floats
) -> tuple[Floats, Floats]:
    """τ of each seed [T], pooled over prompts, and its mean over the drawn seeds in each resample [S]."""
    by_seed, samples = [], []
    for part in of_seeds:
        counts_P2 = np.asarray([part[name][prompt] for prompt in shared], dtype=np.float64)
        by_seed.append(counts_P2[:, 0].sum() / counts_P2[:, 1].sum())
        samples.append(ratio(*(counts_SP @ counts_P2).T))
    return np.asarray(by_seed), np.asarray((np.stack(samples, axis=1) * weights_ST).sum(axis=1))


def _tau_of(by_seed: Floats, samples: Floats) -> SeedTau:
    return SeedTau(tau=float(by_seed.mean()), ci95=percentiles(samples), by_seed=tuple(float(tau) for tau in by_seed))


def _difference(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> SeedDifference:
    return SeedDifference(difference=float(one[0].mean() - other[0].mean()), ci95=percentiles(one[1] - other[1]))
