"""Counter-based uniform numbers: what is drawn depends on (request seed, position, purpose) and on nothing else.

No generator has a state that the order of rows, the batch or a refill could shift, so a request's tokens are the same
wherever it is decoded and with whatever others. `position` counts from a request's first generated token (0).

A number may be used again in a later round: a position that is drafted, not reached, and drafted again uses its DRAFT
number twice, but the first use decided no committed token. A position's ACCEPT and BONUS numbers are used at most once,
in the round that commits it. So the numbers behind the committed tokens are independent.

Legend: P positions, U purposes. Source: Philox4x64-10, Salmon et al. 2011, as numpy ships it (its raw
stream is fixed): position i is the block with counter i + 1.
"""

from enum import IntEnum
from typing import Any

import numpy as np

from deepspec.keyed_random import integer

_SHIFT = np.uint64(12)
_STEP = 2.0**-52  # 52 bits: u * total stays strictly below total in fp64, so a draw never falls off the end


class Purpose(IntEnum):
    """What a uniform number decides about."""

    DRAFT = 0
    """which token the draft proposes"""
    ACCEPT = 1
    """whether the proposed token is accepted"""
    BONUS = 2
    """which token the target adds itself: after a rejection, after a full acceptance, and in plain decoding"""


def uniforms(seed: int, num_positions: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """All uniform numbers of one request.

    Args:
        seed: the request's seed, in [0, 2**64).
        num_positions: how many generated positions to cover.

    Returns:
        fp64 [P, U] in [0, 1), column `Purpose.X` for purpose X; a longer table starts with the shorter one.
    """
    blocks = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64)).random_raw(4 * num_positions)
    table: np.ndarray[Any, np.dtype[np.float64]] = (blocks >> _SHIFT).astype(np.float64) * _STEP
    return table.reshape(num_positions, 4)[:, : len(Purpose)]


def derive_seed(*parts: int | str) -> int:
    """A seed that is a pure function of what it is for.

    Args:
        parts: e.g. the sampling seed and a prompt's id; order and types matter.

    Returns:
        An integer in [0, 2**63), which also fits a signed 64-bit column.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return integer(text, bits=63)
