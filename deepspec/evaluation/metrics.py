"""The one place that owns acceptance length and acceptance rates, with their denominators.

Everything is computed from rounds, pooled: sums over rounds first, one division at the end (never a mean of means).
The prefill and its token are in no round. Prefix and conditional acceptance answer different questions and are never
mixed. Not here: decoding, timing, confidences (calibration/fit.py), how an interval comes of a table of prompts
(intervals.py).

Legend: N rounds, P prompts, K draft positions. Rates at k are at 1-based position k, list index k-1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from deepspec.evaluation.intervals import Estimate, Floats, Ints, mean_estimate, ratio
from deepspec.evaluation.results import Acceptance, Interval

Timed: TypeAlias = tuple[float, float, float, float]
"""Tokens and seconds of one prompt answered speculatively, then the same answered plainly."""


@dataclass(frozen=True)
class RoundTable:
    """Rounds of several prompts as columns.

    Attributes:
        prompt_N: which prompt each round belongs to, 0 … num_prompts-1.
        proposed_N: effective proposal length (cut at an accepted stop token).
        accepted_N: accepted draft tokens.
        committed_N: tokens appended, bonus included if there was one.
        num_prompts: prompts decoded, those without any round included.
    """

    prompt_N: Ints
    proposed_N: Ints
    accepted_N: Ints
    committed_N: Ints
    num_prompts: int

    @classmethod
    def of(cls, rounds: Sequence[Sequence[tuple[int, int, int]]]) -> "RoundTable":
        """From a list of (proposed, accepted, committed) per prompt."""
        columns = [(index, *counts) for index, of_prompt in enumerate(rounds) for counts in of_prompt]
        table = np.asarray(columns, dtype=np.int64).reshape(-1, 4)
        return cls(table[:, 0], table[:, 1], table[:, 2], table[:, 3], len(rounds))

    def per_prompt(self) -> Floats:
        """Committed tokens and rounds of each prompt, [P, 2]."""
        committed_P = np.bincount(self.prompt_N, weights=self.committed_N, minlength=self.num_prompts)
        rounds_P = np.bincount(self.prompt_N, minlength=self.num_prompts)
        return np.column_stack([committed_P, rounds_P]).astype(np.float64)


def acceptance_length(rounds: RoundTable) -> float | None:
    """τ: mean committed tokens per round, bonus included; None without any round."""
    return _ratio(int(rounds.committed_N.sum()), len(rounds.committed_N))


def verify_rate(rounds: RoundTable) -> float | None:
    """Share of the verified positions (effective proposal and the anchor) that became tokens; None without rounds."""
    return _ratio(int(rounds.committed_N.sum()), int((rounds.proposed_N + 1).sum()))


def prefix_acceptance(rounds: RoundTable, num_draft_tokens: int) -> tuple[list[float | None], list[int]]:
    """P(positions 1 … k all accepted), for k = 1 … K.

    Returns:
        The rates (None where nothing was proposed that far) and their denominators: rounds with effective proposal
        >= k.
    """
    trials, successes = [], []
    for k in range(1, num_draft_tokens + 1):
        trials.append(int((rounds.proposed_N >= k).sum()))
        successes.append(int((rounds.accepted_N >= k).sum()))
    return _ratios(successes, trials), trials


def conditional_acceptance(rounds: RoundTable, num_draft_tokens: int) -> tuple[list[float | None], list[int]]:
    """P(position k accepted, given that all before it were), for k = 1 … K.

    Returns:
        The rates (None where position k was never reached) and their denominators: rounds with effective proposal >= k
        and accepted >= k-1.
    """
    trials, successes = [], []
    for k in range(1, num_draft_tokens + 1):
        trials.append(int(((rounds.proposed_N >= k) & (rounds.accepted_N >= k - 1)).sum()))
        successes.append(int((rounds.accepted_N >= k).sum()))
    return _ratios(successes, trials), trials


def acceptance_length_interval(tables: Sequence[RoundTable]) -> Interval | None:
    """95 % interval of τ, or of the plain mean of several benchmarks' τ.

    Args:
        tables: of the benchmarks; those without a round are left out.

    Returns:
        None if no benchmark has a round, or one of them too few prompts for an interval.
    """
    return length_interval([table.per_prompt() for table in tables if len(table.committed_N)])


def length_interval(sums_P2: Sequence[Floats]) -> Interval | None:
    """The same from what each prompt of each benchmark came to: committed tokens and rounds."""
    found = _interval(mean_estimate(sums_P2, lambda sums_S2: ratio(*sums_S2.T)))
    return None if found is None else (max(found[0], 1.0), found[1])  # a round commits at least one token


def speedup_interval(benchmarks: Sequence[Sequence[Timed]]) -> Interval | None:
    """95 % interval of a speedup, or of the plain mean of several benchmarks' speedups.

    Args:
        benchmarks: of each, what every prompt took; those without a prompt are left out.

    Returns:
        None if no prompt was timed, or a benchmark has too few of them for an interval.
    """

    def speedup(sums_S4: Floats) -> Floats:
        tokens_S, seconds_S, plain_tokens_S, plain_seconds_S = sums_S4.T
        return ratio(ratio(tokens_S, seconds_S), ratio(plain_tokens_S, plain_seconds_S))

    tables = [np.asarray(prompts, dtype=np.float64) for prompts in benchmarks if prompts]
    return _interval(mean_estimate(tables, speedup))


def summary(rounds: RoundTable, num_draft_tokens: int) -> Acceptance:
    """All acceptance metrics of one set of rounds.

    Args:
        rounds: the rounds.
        num_draft_tokens: K.
    """
    prefix, prefix_trials = prefix_acceptance(rounds, num_draft_tokens)
    conditional, conditional_trials = conditional_acceptance(rounds, num_draft_tokens)
    return Acceptance(
        tau=acceptance_length(rounds),
        tau_ci95=acceptance_length_interval([rounds]),
        conditional_acceptance=tuple(conditional),
        conditional_trials=tuple(conditional_trials),
        prefix_acceptance=tuple(prefix),
        prefix_trials=tuple(prefix_trials),
        verify_rate=verify_rate(rounds),
        mean_proposed=_ratio(int(rounds.proposed_N.sum()), len(rounds.proposed_N)),
        rounds=len(rounds.committed_N),
        prompts=rounds.num_prompts,
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Plain mean over benchmarks of what could be measured; None if nothing could."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def _interval(found: Estimate | None) -> Interval | None:
    return None if found is None else found.interval()


def _ratios(numerators: Sequence[int], denominators: Sequence[int]) -> list[float | None]:
    return [_ratio(numerator, denominator) for numerator, denominator in zip(numerators, denominators, strict=True)]


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
