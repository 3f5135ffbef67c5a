"""Answers with what came of the draft: every token by its round, and what the target itself had to add.

What is invisible is shown: line ends, tabs, runs of spaces, and characters that would turn the text around them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from deepspec.reports.formatting import number

_KINDS = {"prefill": "prefill", "accepted": "accepted", "bonus": "bonus"}
_INVISIBLE = re.compile(r"\r\n|\n|\t|  +|[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def samples(found: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """What a page shows of `samples.json`: prompts, and their answers as rounds of tokens."""
    return [_sample(sample) for sample in found] if found else None


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    tokens = list(sample.get("answer") or ())
    rounds = [_round(place, list(part)) for place, part in groupby(tokens, key=lambda token: int(token["round"]))]
    return {
        "benchmark": str(sample.get("benchmark") or ""),
        "prompt": list(_visible(str(sample.get("prompt") or ""), spaces=False)),
        "rounds": rounds,
        "tally": _tally(tokens),
    }


def _tally(tokens: Sequence[Mapping[str, Any]]) -> str:
    drafted = [token for token in tokens if int(token["round"]) > 0]
    told = _counted(len(tokens), "token")
    if not drafted:
        return f"{told}, all of it from the prefill."
    rounds = len({int(token["round"]) for token in drafted})
    return (
        f"{told}; {len(drafted)} of them in {_counted(rounds, 'round')}, {number(len(drafted) / rounds, 2)} per round."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _round(place: int, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = [_KINDS.get(str(token.get("kind")), "accepted") for token in tokens]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("accepted", "bonus") if kind in kinds)
    return {
        "title": f"round {place}: {counted}" if place else "prefill: the answer's first token",
        "tone": "prefill" if not place else ("even", "odd")[place % 2],
        "tokens": [
            {"kind": kind, "pieces": list(_visible(str(token["text"])))}
            for kind, token in zip(kinds, tokens, strict=True)
        ],
    }


def _visible(text: str, *, spaces: bool = True) -> Iterator[dict[str, Any]]:
    """Pieces of a text: `mark` shows one that is invisible, `text` is what stands there.

    Args:
        text: anything.
        spaces: whether runs of spaces are marked, too, and a text of nothing but spaces.
    """
    if spaces and text and not text.strip(" "):
        yield {"mark": "·" * len(text), "text": ""}
        return
    place = 0
    for match in _INVISIBLE.finditer(text):
        if match.start() > place:
            yield {"mark": "", "text": text[place : match.start()]}
        yield _marked(match[0], spaces=spaces)
        place = match.end()
    if place < len(text):
        yield {"mark": "", "text": text[place:]}


def _marked(found: str, *, spaces: bool) -> dict[str, Any]:
    if found in ("\n", "\r\n"):
        return {"mark": "↵" if spaces else "", "text": "\n"}
    if found == "\t":
        return {"mark": "⇥" if spaces else "", "text": "\t"}
    if found.startswith(" "):
        return {"mark": "·" * len(found), "text": ""} if spaces else {"mark": "", "text": found}
    return {"mark": f"⟨U+{ord(found):04X}⟩", "text": ""}
