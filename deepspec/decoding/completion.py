"""What goes into decoding and what comes out of it: requests, rounds, completions. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


class Request(Protocol):
    """One answer that is asked for; `deepspec.data.responses.requests.GenerationRequest` is one."""

    @property
    def id(self) -> str:
        """Unique among the requests of one call."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The rendered prompt."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of the answer: it is cut off there."""

    @property
    def seed(self) -> int:
        """All randomness of this answer, in [0, 2**63)."""


@dataclass(frozen=True, slots=True)
class Round:
    """One propose-verify-commit of one request.

    Attributes:
        position: of the anchor, counted from the prompt's first token.
        proposed: effective proposal length: cut at an accepted stop token.
        accepted: accepted draft tokens.
        committed: tokens appended. The last round is not shortened when it overruns `max_new_tokens`.
        confidence: the draft's raw confidence per effectively proposed token; empty without a confidence head.
    """

    position: int
    proposed: int
    accepted: int
    committed: int
    confidence: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time went; a request decoded together with R-1 others is charged an R-th of each shared step.

    Attributes:
        prefill: prompt through the target, and its states into the draft.
        draft: proposing, and taking in the states of committed tokens.
        verify: the target's forward, and accepting; all of a step in plain decoding.
        other: the rest of the rounds.
    """

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.prefill + self.draft + self.verify + self.other


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        id: the request's.
        output_ids: ends with the stop token if `finish_reason` is "stop"; at most `max_new_tokens` long.
        finish_reason: "stop", or "length": cut off at `max_new_tokens` or at the end of the target's context.
        rounds: in order; the prefill and its token are in none. One per step in plain decoding.
        seconds: of this request.
        elapsed_seconds: that passed from its prefill to its end; queueing is not in it.
    """

    id: str
    output_ids: tuple[int, ...]
    finish_reason: FinishReason
    rounds: tuple[Round, ...]
    seconds: Seconds
    elapsed_seconds: float = 0.0
