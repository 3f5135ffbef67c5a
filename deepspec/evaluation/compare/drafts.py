"""How much two drafts differ on the same prompts, from the rounds of their evaluations.

Differences are paired: both drafts are resampled with the same prompts, so that how hard a prompt is falls out of the
interval. Over several benchmarks each one's prompts are resampled by themselves, because the benchmarks are given and
the prompts are a sample. Not here: acceptance of one draft (metrics.py), and whether a draft is promoted (gates).

Legend: N rounds, P prompts, S bootstrap samples.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from deepspec.evaluation.compare.results import Differences, MeanDifference, PairedDifference
from deepspec.evaluation.config import GATE
from deepspec.evaluation.metrics import Floats, Ints, interval_of, pooled, resamples

Counts: TypeAlias = Mapping[str, tuple[int, int]]
"""Prompt id -> (committed tokens, rounds)."""


def counts_by_prompt(rounds: pa.Table) -> dict[str, dict[str, tuple[int, int]]]:
    """What every prompt of every benchmark came to, all its turns together; a prompt without rounds is in none.

    Args:
        rounds: an evaluation's `rounds.parquet`, at least its columns `benchmark`, `prompt` and `committed`.
    """
    grouped = rounds.group_by(["benchmark", "prompt"]).aggregate([("committed", "sum"), ("committed", "count")])
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for row in grouped.to_pylist():
        found.setdefault(row["benchmark"], {})[row["prompt"]] = (row["committed_sum"], row["committed_count"])
    return found


def paired_difference(challenger: Counts, champion: Counts, num_samples: int, seed: int) -> PairedDifference:
    """How much τ differs between two drafts on the same prompts.

    Args:
        challenger: prompt id -> (committed tokens, rounds).
        champion: the same; only prompts in both count.
        num_samples: bootstrap resamples; both drafts are resampled with the same prompts.
        seed: of the resampling.
    """
    shared = sorted(name for name in challenger.keys() & champion.keys() if challenger[name][1] and champion[name][1])
    if not shared:
        return PairedDifference(difference=None, ci95=None, prompts=0)
    ours_P2 = np.asarray([challenger[name] for name in shared], dtype=np.int64)
    theirs_P2 = np.asarray([champion[name] for name in shared], dtype=np.int64)
    counts_SP = resamples(len(shared), num_samples, seed)
    samples_S = pooled(counts_SP, ours_P2[:, 0], ours_P2[:, 1]) - pooled(counts_SP, theirs_P2[:, 0], theirs_P2[:, 1])
    difference = ours_P2[:, 0].sum() / ours_P2[:, 1].sum() - theirs_P2[:, 0].sum() / theirs_P2[:, 1].sum()
    return PairedDifference(difference=float(difference), ci95=interval_of(samples_S), prompts=len(shared))


def differences(
    challenger: Mapping[str, Counts],
    reference: Mapping[str, Counts],
    domains: Mapping[str, Sequence[str]],
    *,
    num_samples: int,
    seed: int,
) -> Differences:
    """The challenger's τ minus the reference's, wherever both were measured.

    Args:
        challenger, reference: benchmark (or "gate") -> counts.
        domains: domain -> its benchmarks.
        num_samples: bootstrap resamples behind each interval.
        seed: of the resampling.
    """
    paired = {
        name: paired_difference(challenger[name], reference[name], num_samples, seed)
        for name in sorted(challenger.keys() & reference.keys())
    }
    gate = paired.pop(GATE, None)

    def over(names: Sequence[str]) -> MeanDifference:
        return _mean_difference(challenger, reference, [name for name in names if name in paired], num_samples, seed)

    return Differences(
        benchmarks=paired,
        domains={domain: over(names) for domain, names in sorted(domains.items())},
        macro=over(list(paired)),
        gate=gate,
    )


def _mean_difference(
    challenger: Mapping[str, Counts], reference: Mapping[str, Counts], names: Sequence[str], num_samples: int, seed: int
) -> MeanDifference:
    """The plain mean of several benchmarks' differences; those without a common prompt are left out."""
    pairs = {name: pair for name in names if len(pair := _shared(challenger[name], reference[name]))}
    if not pairs:
        return MeanDifference(difference=None, ci95=None, benchmarks=())
    samples = [_resampled(pair, num_samples, seed + place) for place, pair in enumerate(pairs.values())]
    found = [_difference(pair, np.ones((1, len(pair)), dtype=np.int64))[0] for pair in pairs.values()]
    low, high = np.percentile(np.mean(samples, axis=0), (2.5, 97.5))
    return MeanDifference(difference=float(np.mean(found)), ci95=(float(low), float(high)), benchmarks=tuple(pairs))


def _shared(challenger: Counts, reference: Counts) -> Floats:
    """Committed tokens and rounds of both, [P, 4], of the prompts that have rounds in both."""
    names = sorted(name for name in challenger.keys() & reference.keys() if challenger[name][1] and reference[name][1])
    pairs = [(*challenger[name], *reference[name]) for name in names]
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 4)


def _resampled(pair_P4: Floats, num_samples: int, seed: int) -> Floats:
    """The difference in each resample, [S]."""
    count = len(pair_P4)
    draws_SP = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=num_samples)
    return _difference(pair_P4, draws_SP)


def _difference(pair_P4: Floats, draws_SP: Ints) -> Floats:
    """τ of the first minus τ of the second, each prompt counted as often as it was drawn; pooled over prompts."""
    sums_S4 = draws_SP @ pair_P4
    return np.asarray(sums_S4[:, 0] / sums_S4[:, 1] - sums_S4[:, 2] / sums_S4[:, 3])
