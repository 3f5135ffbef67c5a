"""Why a stage's artifact has to be made."""

from dataclasses import dataclass
from typing import Literal

from deepspec.store import Ingredients, Store
from deepspec.store.keys import differences

_MOST_REASONS = 4
_MOST_COMPARED = 20
"""How many of a kind's newest artifacts are compared: each is a request to the store."""


@dataclass(frozen=True)
class Reason:
    """What becomes of a stage, and why.

    Attributes:
        status: "hit": it is reused; "ran": it is made; "rebuilt": it is made again, since it is damaged.
        why: for the reader.
    """

    status: Literal["hit", "ran", "rebuilt"]
    why: str


UNCHANGED = Reason("hit", "nothing changed")
MADE_MEANWHILE = Reason("hit", "another run has just made it")
DAMAGED = Reason("rebuilt", "damaged: its files no longer match the manifest")


def reason_to_make(store: Store, ingredients: Ingredients) -> Reason:
    """Which ingredient changed against the nearest earlier artifact of this kind."""
    new = ingredients.canonical()
    nearest: list[str] | None = None
    for earlier in store.latest(ingredients.stage, _MOST_COMPARED):
        phrases = differences(new, earlier.ingredients)
        if phrases and (nearest is None or len(phrases) < len(nearest)):
            nearest = phrases
    if not nearest:
        return Reason("ran", "never built before")
    more = [f"and {len(nearest) - _MOST_REASONS} more"] if len(nearest) > _MOST_REASONS else []
    return Reason("ran", ", ".join(nearest[:_MOST_REASONS] + more))
