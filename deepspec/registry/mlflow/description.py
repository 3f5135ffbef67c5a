"""Texts on MLflow's pages, as far as it holds them.

A version's is its verdict, if it has one, and its card; a model's is its page, and below it what a person wrote there.
"""

import re

from deepspec.gates.verdict import Verdict
from deepspec.gates.verdict_text import verdict_lines
from deepspec.registry.card import CARD_FILE

_LONGEST = 5000
"""Characters that MLflow's databases hold."""
_LONGEST_VERDICT = 4000
_SHORTEST_PAGE = 500
_END = "\n---\n\n"
_PAGE_END = "\n\n---\n\n*deepspec writes what stands above; what stands below is kept.*\n\n"
_VERDICT = re.compile(r"## (?:Accepted|Refused)\n.*?" + re.escape(_END), re.DOTALL)


def verdict_part(verdict: Verdict) -> str:
    """The beginning of a description; of a verdict on very many benchmarks its first lines."""
    return _cut("\n".join(verdict_lines(verdict)), _LONGEST_VERDICT, "the rest is in `deepspec models show`") + _END


def parts_of(description: str | None) -> tuple[str, str]:
    """A description's verdict, empty where it has none, and its card."""
    text = description or ""
    found = _VERDICT.match(text)
    verdict = found[0] if found else ""
    return verdict, text.removeprefix(verdict)


def described(verdict: str, card: str) -> str:
    """A description of these two parts, in whole lines, with where the rest is."""
    return _cut(verdict + card, _LONGEST, f"the rest is in {CARD_FILE}")


def with_page(page: str, before: str | None) -> str:
    """The description of a model: its page, and what a person wrote.

    Args:
        page: as it is now.
        before: the whole description so far: with an earlier page, or a person's alone. One that leaves no room for a
            page stays as it is.
    """
    ours, end, below = (before or "").partition(_PAGE_END)
    kept = below if end else ours
    room = _LONGEST - len(_PAGE_END) - len(kept)
    if room < _SHORTEST_PAGE:
        return before or ""
    return _cut(page, room, "the rest is in the store") + _PAGE_END + kept


def shortened(text: str) -> str:
    """A text in whole lines, as far as MLflow holds it."""
    return _cut(text, _LONGEST, "the rest is in the store")


def _cut(text: str, most: int, rest: str) -> str:
    if len(text) <= most:
        return text
    end = f"\n… {rest}."
    head = text[: most - len(end)]
    return head[: head.rfind("\n")] + end
