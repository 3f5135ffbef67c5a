"""Answers with what came of the draft: every token by its round, and what the target itself had to add.

What is invisible is shown: line ends, tabs, runs of spaces, and characters that would turn the text around them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from deepspec.evaluation.results import AnswerPiece, Sample
from deepspec.reports.formatting import number

_INVISIBLE = re.compile(r"\r\n|\n|\t|  +|[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


@dataclass(frozen=True)
class Piece:
    """A stretch of text: `mark` shows one that is invisible, `text` is what stands there."""

    mark: str
    text: str


@dataclass(frozen=True)
class ShownToken:
    """A token of an answer."""

    kind: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class ShownRound:
    """The tokens of one round on a ground of their own."""

    title: str
    tone: str
    tokens: Sequence[ShownToken]


@dataclass(frozen=True)
class ShownSample:
    """A prompt, and its answer round by round."""

    benchmark: str
    prompt: Sequence[Piece]
    rounds: Sequence[ShownRound]
    tally: str


def samples(found: Sequence[Sample] | None) -> list[ShownSample] | None:
    """What a page shows of `samples.json`: prompts, and their answers as rounds of tokens."""
    return [_sample(sample) for sample in found] if found else None


def _sample(sample: Sample) -> ShownSample:
    rounds = groupby(sample.answer, key=lambda token: token.round)
    return ShownSample(
        benchmark=sample.benchmark,
        prompt=list(_visible(sample.prompt, spaces=False)),
        rounds=[_round(place, list(part)) for place, part in rounds],
        tally=_tally(sample.answer),
    )


def _tally(tokens: Sequence[AnswerPiece]) -> str:
    drafted = [token for token in tokens if token.round > 0]
    count = _counted(len(tokens), "token")
    if not drafted:
        return f"{count}, all of it from the prefill."
    rounds = len({token.round for token in drafted})
    return (
        f"{count}; {len(drafted)} of them in {_counted(rounds, 'round')}, {number(len(drafted) / rounds, 2)} per round."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _round(place: int, tokens: Sequence[AnswerPiece]) -> ShownRound:
    kinds = [token.kind for token in tokens]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("accepted", "bonus") if kind in kinds)
    return ShownRound(
        title=f"round {place}: {counted}" if place else "prefill: the answer's first token",
        tone="prefill" if not place else ("even", "odd")[place % 2],
        tokens=[ShownToken(token.kind, list(_visible(token.text))) for token in tokens],
    )


def _visible(text: str, *, spaces: bool = True) -> Iterator[Piece]:
    """Pieces of a text.

    Args:
        text: anything.
        spaces: whether runs of spaces are marked, too, and a text of nothing but spaces.
    """
    if spaces and text and not text.strip(" "):
        yield Piece("·" * len(text), "")
        return
    place = 0
    for match in _INVISIBLE.finditer(text):
        if match.start() > place:
            yield Piece("", text[place : match.start()])
        yield _marked(match[0], spaces=spaces)
        place = match.end()
    if place < len(text):
        yield Piece("", text[place:])


def _marked(found: str, *, spaces: bool) -> Piece:
    if found in ("\n", "\r\n"):
        return Piece("↵" if spaces else "", "\n")
    if found == "\t":
        return Piece("⇥" if spaces else "", "\t")
    if found.startswith(" "):
        return Piece("·" * len(found), "") if spaces else Piece("", found)
    return Piece(f"⟨U+{ord(found):04X}⟩", "")
