"""τ from tokens: (tokens − answers) / rounds over answers that ended by themselves, the number to compare engines by.

An answer's first token comes with its prompt, every other one from a round. So this is τ exactly, with any engine's
counts: tokens that an engine accepted after the answer's end are not counted. Answers that were cut off are left out,
because nobody says how many tokens were thrown away. `1 + accepted / rounds` is up to 4 % more for the same rounds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from deepspec.evaluation.intervals import Floats
from deepspec.evaluation.metrics import length_interval
from deepspec.evaluation.results import Interval


@dataclass(frozen=True)
class FromTokens:
    """τ from tokens of some answers.

    Attributes:
        sums_P2: tokens that came from rounds, and rounds, of each prompt.
        answers: how many ended by themselves.
    """

    sums_P2: Floats
    answers: int

    @classmethod
    def of(cls, answers: Mapping[str, Iterable[tuple[int, int]]]) -> "FromTokens":
        """From the answers to each prompt that ended by themselves: tokens that came from rounds, and rounds."""
        stopped = {prompt: list(found) for prompt, found in answers.items()}
        sums = [np.asarray(found, dtype=np.float64).sum(0) for found in stopped.values() if found]
        return cls(np.asarray(sums, dtype=np.float64).reshape(-1, 2), sum(map(len, stopped.values())))

    @property
    def tau(self) -> float | None:
        """The number; None without any round."""
        tokens, rounds = self.sums_P2.sum(0)
        return float(tokens / rounds) if rounds else None

    @property
    def interval(self) -> Interval | None:
        """Its 95 % interval over prompts; None where there are too few."""
        return length_interval([self.sums_P2]) if self.tau is not None else None
