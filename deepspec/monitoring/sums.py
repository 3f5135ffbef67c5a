"""What answers add up to: enough for τ, its interval, and the spread of answers about any reference.

Kept in place of the answers themselves, so that a month of windows is a small document, and windows can be merged.
`intervals.estimate` (a jackknife) needs every answer; with the hundreds that stand here the two agree, and the
degrees of freedom are those of the answers.
"""

import math
from collections.abc import Iterable, Mapping

from deepspec.evaluation.intervals import Estimate
from deepspec.evaluation.results import FEWEST_PROMPTS
from deepspec.store.records import JsonRecord


class Sums(JsonRecord):
    """Sums over answers.

    Attributes:
        answers: how many; of counters, stretches between two readings.
        tokens: that came from rounds.
        rounds: of speculative decoding.
        squared_tokens, cross, squared_rounds: of tokens², tokens · rounds, rounds².
    """

    answers: int = 0
    tokens: int = 0
    rounds: int = 0
    squared_tokens: int = 0
    cross: int = 0
    squared_rounds: int = 0

    @classmethod
    def of(cls, answers: Iterable[tuple[int, int]]) -> "Sums":
        """Of (tokens, rounds) of each answer."""
        found = list(answers)
        return cls(
            answers=len(found),
            tokens=sum(tokens for tokens, _ in found),
            rounds=sum(rounds for _, rounds in found),
            squared_tokens=sum(tokens * tokens for tokens, _ in found),
            cross=sum(tokens * rounds for tokens, rounds in found),
            squared_rounds=sum(rounds * rounds for _, rounds in found),
        )

    @classmethod
    def together(cls, parts: Iterable["Sums"]) -> "Sums":
        """Of all answers of several."""
        found = list(parts)
        return cls(**{name: sum(getattr(part, name) for part in found) for name in cls.model_fields})

    @property
    def tau(self) -> float | None:
        """Tokens per round; None without rounds."""
        return self.tokens / self.rounds if self.rounds else None

    def squared_losses(self, reference: float) -> float:
        """The sum over answers of (reference · rounds - tokens)²."""
        return self.squared_tokens - 2.0 * reference * self.cross + reference * reference * self.squared_rounds

    def estimate(self) -> Estimate | None:
        """τ with its error over answers; None where there are too few."""
        tau = self.tau
        if tau is None or self.answers < FEWEST_PROMPTS:
            return None
        raised = self.answers / (self.answers - 1)
        error = math.sqrt(max(raised * self.squared_losses(tau), 0.0)) / self.rounds
        return Estimate(tau, error, self.answers - 1.0)


Parts = dict[str, Sums]
"""Domain ("" where an answer has none) -> its sums."""


def merged(windows: Iterable[Mapping[str, Sums]]) -> Parts:
    """Sums by domain of several windows."""
    found: dict[str, list[Sums]] = {}
    for window in windows:
        for domain, sums in window.items():
            found.setdefault(domain, []).append(sums)
    return {domain: Sums.together(of_domain) for domain, of_domain in found.items()}


def mix_of(parts: Mapping[str, Sums]) -> dict[str, float]:
    """Each domain's share of the rounds."""
    total = sum(sums.rounds for sums in parts.values())
    return {domain: sums.rounds / total for domain, sums in parts.items()} if total else {}
