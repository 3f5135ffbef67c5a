"""Algorithms side by side over several training seeds: the shape of the paper's Table 1, with paired intervals.

One training says little about an algorithm: another seed gives another draft. Here τ is the mean over seeds, and an
interval covers both what the prompts and what the seeds could have been. A prompt counts for all algorithms or for
none, and seeds are compared with their like, so that differences are paired in both.

Legend: T seeds, P prompts, S sets of sums. Source: the DSpark paper (arXiv 2607.05147), Table 1.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np

from deepspec.evaluation.compare.drafts import Counts
from deepspec.evaluation.compare.results import AlgorithmDifference, SeedDifference, SeedTau, SideBySide
from deepspec.evaluation.config import GATE
from deepspec.evaluation.intervals import Floats, Statistic, mean_estimate, ratio, widened
from deepspec.evaluation.results import Interval

MACRO = "macro"

Tables: TypeAlias = dict[str, Floats]
"""Benchmark -> committed tokens and rounds with each seed, [P, 2T]: two columns a seed."""


def side_by_side(measured: Mapping[str, Sequence[Mapping[str, Counts]]]) -> SideBySide:
    """Mean τ of algorithms over seeds, and how they differ.

    Args:
        measured: algorithm -> of each seed, in the same order: benchmark -> counts.

    Raises:
        ValueError: algorithms were measured with different numbers of seeds.
    """
    num_seeds = {len(of_seeds) for of_seeds in measured.values()}
    if len(num_seeds) != 1:
        raise ValueError(f"different numbers of seeds: {sorted(num_seeds)}")
    parts = [part for of_seeds in measured.values() for part in of_seeds]
    shared = {
        name: sorted(
            set.intersection(*({prompt for prompt, (_, rounds) in part[name].items() if rounds} for part in parts))
        )
        for name in sorted(set.intersection(*(set(part) for part in parts)) - {GATE})
    }
    shared = {name: prompts for name, prompts in shared.items() if prompts}
    tables = {
        algorithm: {name: _table(of_seeds, name, prompts) for name, prompts in shared.items()}
        for algorithm, of_seeds in measured.items()
    }
    return SideBySide(
        tau={algorithm: _taus(of_benchmarks) for algorithm, of_benchmarks in tables.items()},
        differences=tuple(
            AlgorithmDifference(of=one, against=other, benchmarks=_differences(tables[one], tables[other]))
            for other, one in combinations(measured, 2)
        ),
        prompts={name: len(prompts) for name, prompts in shared.items()},
    )


def _table(of_seeds: Sequence[Mapping[str, Counts]], name: str, prompts: Sequence[str]) -> Floats:
    columns = [[part[name][prompt] for prompt in prompts] for part in of_seeds]
    return np.concatenate(np.asarray(columns, dtype=np.float64), axis=1)


def _by_seed(sums_SC: Floats) -> Floats:
    """τ with each seed, [S, T], pooled over prompts."""
    return ratio(sums_SC[:, ::2], sums_SC[:, 1::2])


def _mean_tau(sums_SC: Floats) -> Floats:
    return np.asarray(_by_seed(sums_SC).mean(axis=1))


def _mean_gain(sums_SC: Floats) -> Floats:
    """The mean over seeds of the first half's columns less that of the others, [S]."""
    ours_SC, theirs_SC = np.split(sums_SC, 2, axis=1)
    return _mean_tau(ours_SC) - _mean_tau(theirs_SC)


def _taus(tables: Tables) -> dict[str, SeedTau]:
    by_seed = {name: _by_seed(table.sum(0, keepdims=True))[0] for name, table in tables.items()}
    return {
        name: SeedTau(
            tau=float(taus.mean()),
            ci95=_interval([tables[part] for part in names], _mean_tau, taus),
            by_seed=tuple(float(tau) for tau in taus),
        )
        for name, (names, taus) in _with_mean(by_seed).items()
    }


def _differences(ours: Tables, theirs: Tables) -> dict[str, SeedDifference]:
    both = {name: np.concatenate([ours[name], theirs[name]], axis=1) for name in ours}
    gains = {name: np.subtract(*np.split(_by_seed(table.sum(0, keepdims=True))[0], 2)) for name, table in both.items()}
    return {
        name: SeedDifference(
            difference=float(of_seeds.mean()),
            ci95=_interval([both[part] for part in names], _mean_gain, of_seeds),
        )
        for name, (names, of_seeds) in _with_mean(gains).items()
    }


def _with_mean(by_seed: Mapping[str, Floats]) -> dict[str, tuple[list[str], Floats]]:
    """Benchmark -> its own name and its values of the seeds; and the plain mean over benchmarks, if there is any."""
    found = {name: ([name], values) for name, values in by_seed.items()}
    if by_seed:
        found[MACRO] = (list(by_seed), np.mean(list(by_seed.values()), axis=0))
    return found


def _interval(tables: Sequence[Floats], statistic: Statistic, by_seed: Floats) -> Interval | None:
    found = mean_estimate(tables, statistic)
    return None if found is None else widened(found, by_seed.tolist()).interval()
