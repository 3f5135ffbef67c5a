"""Random numbers that are a pure function of what they are for: the same on every machine, rank and batch.

They come from SHA-256 of a key, a text that says what is drawn, and not from a generator whose stream may change with a
library. Not for cryptography, and not for large arrays (`deepspec/decoding/random.py` has those).
"""

import hashlib


def integer(key: str, bits: int = 64) -> int:
    """An integer in [0, 2**bits), uniform over keys; bits: at most 64, a multiple of 8 (or 63)."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return number >> (64 - bits)


def fraction(key: str, bits: int = 64) -> float:
    """A number in [0, 1), uniform over keys, of that many random bits (a float keeps 53)."""
    return integer(key, bits) / (1 << bits)
