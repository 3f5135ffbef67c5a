"""Texts on MLflow's pages, as far as it holds them: a version's is its verdict, if it has one, and its card."""

import re

from deepspec.gates.verdict import Verdict
from deepspec.gates.verdict_text import verdict_lines
from deepspec.registry.card import CARD_FILE

_LONGEST = 5000
"""Characters that MLflow's databases hold."""
_LONGEST_VERDICT = 4000
_END = "\n---\n\n"
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


def shortened(text: str) -> str:
    """A text in whole lines, as far as MLflow holds it."""
    return _cut(text, _LONGEST, "the rest is in the store")


def _cut(text: str, most: int, rest: str) -> str:
    if len(text) <= most:
        return text
    end = f"\n… {rest}."
    head = text[: most - len(end)]
    return head[: head.rfind("\n")] + end
