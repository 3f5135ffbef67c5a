"""Requests for answers and their results, the same for the engine in process and for endpoints."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from deepspec import __version__
from deepspec.data.responses.reported_rounds import ReportedRounds


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer that is asked for.

    Attributes:
        id: unique among the requests of one call.
        prompt_ids: the rendered prompt, up to where the answer begins.
        max_new_tokens: the answer is cut off after this many.
        seed: all randomness of this answer, in 0 … 2^63 - 1.
    """

    id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One answer.

    Attributes:
        id: the request's.
        output_ids: end with the token that stopped it ("stop"), or were cut off ("length").
        finish_reason: which of the two.
        engine, engine_version: what generated it.
        ids_from: "engine" said the ids; it said them without the token that ends the answer, which was put behind them
            ("engine_without_end"); or it said only the text, which was encoded once ("text").
        reported: what it said of the rounds of speculative decoding behind it; None: nothing, or it was not asked.
    """

    id: str
    output_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    engine: str = "deepspec"
    engine_version: str = __version__
    ids_from: Literal["engine", "engine_without_end", "text"] = "engine"
    reported: ReportedRounds | None = None


@dataclass(frozen=True, slots=True)
class GenerationFailure:
    """An answer that failed.

    Attributes:
        id: the request's.
        reason: why, in words that many can share.
        words: what the engine said of it; no secrets.
    """

    id: str
    reason: str
    words: str


NextRequest = Callable[[], GenerationRequest | None]
"""The next request; None: there is none now, but a pending answer may bring one."""

Generate = Callable[[NextRequest], Iterator[GenerationResult | GenerationFailure]]
"""Answers requests, in any order of completion. Asks for the next whenever it has room for one, and again after each
answer that it has handed over; ends when there is none and all are answered. May be called again."""
