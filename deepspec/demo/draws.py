"""Random draws that depend on a key alone.

The demo's corpus has to be the same on every machine and with every library version, so its draws come from SHA-256 of
(key, counter) and not from a generator whose stream may change. Not for cryptography, and not for large arrays.
"""

from collections.abc import Sequence
from typing import TypeVar

from deepspec.keyed_random import integer

Option = TypeVar("Option")


class KeyedDraws:
    """A stream of draws, a pure function of the key it was made with.

    Args:
        key: what the draws are for, e.g. the seed, the file and the row.
    """

    def __init__(self, *key: str | int) -> None:
        self._key = "/".join(str(part) for part in key)
        self._count = 0

    def below(self, bound: int) -> int:
        """Draw an integer in [0, bound); the bias of the modulus is under bound / 2^64."""
        self._count += 1
        return integer(f"{self._key}#{self._count}") % bound

    def pick(self, options: Sequence[Option]) -> Option:
        """Draw one of `options` (not empty)."""
        return options[self.below(len(options))]

    def two(self, options: Sequence[Option]) -> tuple[Option, Option]:
        """Draw two different ones of `options` (at least two), in random order."""
        first = self.below(len(options))
        second = self.below(len(options) - 1)
        return options[first], options[second + (second >= first)]

    def permutation(self, count: int) -> list[int]:
        """Draw an order of the numbers 0 … count - 1."""
        order = list(range(count))
        for place in range(count - 1, 0, -1):
            other = self.below(place + 1)
            order[place], order[other] = order[other], order[place]
        return order
