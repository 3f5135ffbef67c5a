"""How much two drafts differ on the same prompts, from the rounds of their evaluations.

Differences are paired: both drafts are resampled with the same prompts, so that how hard a prompt is falls out of the
interval. Not here: acceptance of one draft (metrics.py), how prompts are resampled (intervals.py), and whether a draft
is promoted (gates).

Legend: P prompts, S bootstrap samples.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from deepspec.evaluation.compare.results import Differences, MeanDifference, PairedDifference
from deepspec.evaluation.config import GATE
from deepspec.evaluation.intervals import Floats, mean_interval, ratio

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
    pair_P4 = _shared(challenger, champion)
    return PairedDifference(
        difference=_difference(pair_P4.sum(0, keepdims=True)).item() if len(pair_P4) else None,
        ci95=mean_interval([pair_P4], _difference, num_samples, seed),
        prompts=len(pair_P4),
    )


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
    found = [_difference(pair_P4.sum(0, keepdims=True)) for pair_P4 in pairs.values()]
    return MeanDifference(
        difference=float(np.mean(found)) if found else None,
        ci95=mean_interval(list(pairs.values()), _difference, num_samples, seed),
        benchmarks=tuple(pairs),
    )


def _shared(challenger: Counts, reference: Counts) -> Floats:
    """Committed tokens and rounds of both, [P, 4], of the prompts that have rounds in both."""
    names = sorted(name for name in challenger.keys() & reference.keys() if challenger[name][1] and reference[name][1])
    pairs = [(*challenger[name], *reference[name]) for name in names]
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 4)


def _difference(sums_S4: Floats) -> Floats:
    """τ of the first minus τ of the second, each pooled over prompts, [S]."""
    committed_S, rounds_S, their_committed_S, their_rounds_S = sums_S4.T
    return ratio(committed_S, rounds_S) - ratio(their_committed_S, their_rounds_S)
