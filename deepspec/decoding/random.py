"""Counter-based uniform numbers: what is drawn depends on the request's seed and on what it decides, on nothing else.

No generator has a state that the order of rows, the batch or a refill could shift, so a request's tokens are the same
wherever it is decoded and with whatever others. `position` counts from a request's first generated token (0).

No number is used twice. A position's ACCEPT and BONUS numbers are used in the round that commits it. What the draft
proposes is drawn with a number of its own in every round, known by the round's first position and the step of the
draft: rounds of a request begin at different positions. A proposal that was not reached has influenced what else was
verified (a scheduler looks at its confidence, and at other rows'), so the number that made it must decide nothing that
is committed later.

Legend: P positions, U purposes, K draft positions. Source: Philox4x64-10, Salmon et al. 2011, as numpy ships it (its
raw stream is fixed): position i is the block with counter i + 1; proposals have a key of their own.
"""

from enum import IntEnum
from typing import Any

import numpy as np

from deepspec.keyed_random import integer

Table = np.ndarray[Any, np.dtype[np.float64]]

_POSITIONS, _PROPOSALS = 0, 1
"""The second word of Philox' key."""
_SHIFT = np.uint64(12)
_STEP = 2.0**-52  # 52 bits: u * total stays strictly below total in fp64, so a draw never falls off the end


class Purpose(IntEnum):
    """What a position's uniform number decides about."""

    ACCEPT = 0
    """whether the proposed token is accepted"""
    BONUS = 1
    """which token the target adds itself: after a rejection, after a full acceptance, and in plain decoding"""


def uniforms(seed: int, num_positions: int) -> Table:
    """The uniform numbers of one request's positions.

    Args:
        seed: the request's seed, in [0, 2**64).
        num_positions: how many generated positions to cover.

    Returns:
        fp64 [P, U] in [0, 1), column `Purpose.X` for purpose X; a longer table starts with the shorter one.
    """
    return _table(seed, _POSITIONS, num_positions, 4)[:, 1 : 1 + len(Purpose)]


def proposal_uniforms(seed: int, num_positions: int, num_draft_tokens: int) -> Table:
    """The uniform numbers of what one request's draft proposes.

    Args:
        seed: the request's seed, in [0, 2**64).
        num_positions: how many generated positions to cover.
        num_draft_tokens: K.

    Returns:
        fp64 [P, K] in [0, 1): entry [i, k] draws the proposal at i + k in a round that begins at position i. A longer
        table starts with the shorter one.
    """
    width = -(-num_draft_tokens // 4) * 4  # whole blocks
    return _table(seed, _PROPOSALS, num_positions, width)[:, :num_draft_tokens]


def _table(seed: int, stream: int, rows: int, columns: int) -> Table:
    raw = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(rows * columns)
    table: Table = (raw >> _SHIFT).astype(np.float64) * _STEP
    return table.reshape(rows, columns)


def derive_seed(*parts: int | str) -> int:
    """A seed that is a pure function of what it is for.

    Args:
        parts: e.g. the sampling seed and a prompt's id; order and types matter.

    Returns:
        An integer in [0, 2**63), which also fits a signed 64-bit column.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return integer(text, bits=63)
