"""How much two drafts differ on the same prompts, from the rounds of their evaluations.

Differences are paired: a prompt counts for both drafts or for neither, so that how hard it is falls out of the
interval. Not here: acceptance of one draft (metrics.py), how an interval comes of prompts (intervals.py), and
whether a draft is promoted (gates).

Legend: P prompts, S sets of sums.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from deepspec.evaluation.compare.results import Differences, MeanDifference, PairedDifference
from deepspec.evaluation.config import GATE
from deepspec.evaluation.intervals import Estimate, Floats, estimate, mean_estimate, ratio

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


def paired_difference(challenger: Counts, champion: Counts) -> PairedDifference:
    """How much τ differs between two drafts on the same prompts.

    Args:
        challenger: prompt id -> (committed tokens, rounds).
        champion: the same; only prompts in both count.
    """
    pair_P4 = _shared(challenger, champion)
    found = estimate(pair_P4, _difference)
    return PairedDifference(
        difference=_difference(pair_P4.sum(0, keepdims=True)).item() if len(pair_P4) else None,
        ci95=None if found is None else found.interval(),
        prompts=len(pair_P4),
    )


def gain(challenger: Counts, champion: Counts) -> Estimate | None:
    """The same difference with its error; None where there are too few prompts to know that."""
    return estimate(_shared(challenger, champion), _difference)


def differences(
    challenger: Mapping[str, Counts],
    reference: Mapping[str, Counts],
    domains: Mapping[str, Sequence[str]],
) -> Differences:
    """The challenger's τ minus the reference's, wherever both were measured.

    Args:
        challenger, reference: benchmark (or "gate") -> counts.
        domains: domain -> its benchmarks.
    """
    paired = {
        name: paired_difference(challenger[name], reference[name])
        for name in sorted(challenger.keys() & reference.keys())
    }
    gate = paired.pop(GATE, None)

    def over(names: Sequence[str]) -> MeanDifference:
        return _mean_difference(challenger, reference, [name for name in names if name in paired])

    return Differences(
        benchmarks=paired,
        domains={domain: over(names) for domain, names in sorted(domains.items())},
        macro=over(list(paired)),
        gate=gate,
    )


def _mean_difference(
    challenger: Mapping[str, Counts], reference: Mapping[str, Counts], names: Sequence[str]
) -> MeanDifference:
    """The plain mean of several benchmarks' differences; those without a common prompt are left out."""
    pairs = {name: pair for name in names if len(pair := _shared(challenger[name], reference[name]))}
    found = [_difference(pair_P4.sum(0, keepdims=True)) for pair_P4 in pairs.values()]
    mean = mean_estimate(list(pairs.values()), _difference)
    return MeanDifference(
        difference=float(np.mean(found)) if found else None,
        ci95=None if mean is None else mean.interval(),
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
