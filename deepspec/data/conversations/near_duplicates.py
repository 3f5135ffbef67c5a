"""Prompts that are nearly the same: of each group of them one is kept.

The user's turns are compared as sets of three words in a row; system messages are shared by many prompts, and the
target writes new answers. Two prompts are near-duplicates if the Jaccard similarity of their sets reaches the
threshold. MinHash signatures (datasketch) find candidates, and the sets decide: no less similar prompt is left out, and
at most 1 % of the prompts at the threshold are missed.

Prompts are visited in the order of their hashes, and one is left out if an earlier one that stays is like it. The
result is therefore a function of the set of prompts, and no prompt is left out because of another that is left out.

Memory: about 24 bytes a prompt, and what two prompts or more have in common; a file of 512 bytes and 8 a different
triple of words for each prompt lies in the temporary folder. (datasketch's own index is a table of Python objects in
memory: 3.5 kB a prompt, measured.) This module keeps no text: the caller drops the prompts that it names.

`KnownTurns` compares any number of turns with a few that it holds in memory; it misses none.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deepspec.data.conversations.words import words_of
from deepspec.data.sources.rows import Message

SHINGLE_WORDS = 3
_NUM_PERMUTATIONS = 128
_FOUND = 0.99
"""Least probability that two prompts as similar as the threshold become candidates."""
_MARGIN = 0.15
"""A signature's estimate is off by 0.044 at most, one standard deviation: this is more than three."""
_FAMILY = 256
_SEED = 1


@dataclass(frozen=True)
class NearDuplicate:
    """A prompt that is left out.

    Attributes:
        kept: index of the prompt that stays instead.
        similarity: Jaccard similarity of the two.
    """

    kept: int
    similarity: float


class NearDuplicates:
    """Finds near-duplicates among prompts that are added in the order of their hashes.

    Args:
        folder: for temporary files.
        threshold: least Jaccard similarity of near-duplicates, in (0, 1].
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        from datasketch import MinHash

        self._threshold = threshold
        # "affine32" is named because another scheme gives other signatures; the shingles are hashed already.
        self._hash = MinHash(num_perm=_NUM_PERMUTATIONS, seed=_SEED, hashfunc=int, scheme="affine32")
        self._signatures = (folder / "signatures").open("w+b")
        self._shingles = (folder / "shingles").open("w+b")
        self._ends = array("Q", [0])

    def add(self, messages: Sequence[Message]) -> None:
        """The next prompt; its index is how many came before it."""
        shingles = shingles_of(messages)
        self._hash.clear()
        self._hash.update_batch((shingles & np.uint64(0xFFFFFFFF)).tolist())
        self._signatures.write(np.asarray(self._hash.hashvalues, dtype=np.uint32).tobytes())
        self._shingles.write(shingles.tobytes())
        self._ends.append(self._ends[-1] + len(shingles))

    def found(self) -> dict[int, NearDuplicate]:
        """Index of every prompt that is left out, in ascending order -> the one that stays."""
        duplicates: dict[int, NearDuplicate] = {}
        kept: dict[int, list[int]] = {}  # bucket -> prompts in it that stay
        for index, buckets in self._in_buckets():
            like = next(self._like(index, buckets, kept), None)
            if like is not None:
                duplicates[index] = like
                continue
            for bucket in buckets:
                kept.setdefault(bucket, []).append(index)
        return duplicates

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Pairs that are near-duplicates: enough of them to connect all that are, however long the chain.

        Of a family of many hundreds that are all alike, a later one is compared with the first `_FAMILY`.
        """
        parents: dict[int, int] = {}

        def root(index: int) -> int:
            while (parent := parents.get(index, index)) != index:
                parents[index] = parents.get(parent, parent)
                index = parent
            return index

        seen: dict[int, list[int]] = {}  # bucket -> prompts in it
        for index, buckets in self._in_buckets():
            alike = False
            connected = partial(lambda one, other: root(one) == root(other), index)
            for like in self._like(index, buckets, seen, skipped=connected):
                parents[root(index)] = root(like.kept)
                alike = True
                yield like.kept, index
            for bucket in buckets:
                members = seen.setdefault(bucket, [])
                if not alike or len(members) < _FAMILY:
                    members.append(index)

    def _in_buckets(self) -> Iterator[tuple[int, list[int]]]:
        """Every prompt that shares a bucket with another, in order."""
        return _buckets(self._table, rows_of_a_band(self._threshold)) if len(self._ends) > 2 else iter(())

    def _like(
        self,
        index: int,
        buckets: Sequence[int],
        members: Mapping[int, Sequence[int]],
        skipped: Callable[[int], bool] = lambda _other: False,
    ) -> Iterator[NearDuplicate]:
        """The members of these buckets that a prompt is a near-duplicate of, in order."""
        candidates = sorted({other for bucket in buckets for other in members.get(bucket, ())})
        if not candidates:
            return
        signatures = self._table
        estimates = (signatures[candidates] == signatures[index]).mean(axis=1)
        for number in np.flatnonzero(estimates >= self._threshold - _MARGIN):
            other = candidates[number]
            if not skipped(other):
                similarity = self._similarity(index, other)
                if similarity >= self._threshold:
                    yield NearDuplicate(other, similarity)

    @cached_property
    def _table(self) -> npt.NDArray[np.uint32]:
        """All signatures, once all prompts have been added."""
        self._signatures.flush()
        shape = (len(self._ends) - 1, _NUM_PERMUTATIONS)
        return np.memmap(self._signatures, dtype=np.uint32, mode="r", shape=shape)

    @cached_property
    def _triples(self) -> npt.NDArray[np.uint64]:
        """All shingles, once all prompts have been added."""
        self._shingles.flush()
        return np.memmap(self._shingles, dtype=np.uint64, mode="r")

    def _similarity(self, one: int, other: int) -> float:
        """Jaccard, of two prompts' shingles."""
        first, second = (self._triples[self._ends[index] : self._ends[index + 1]] for index in (one, other))
        shared = len(np.intersect1d(first, second, assume_unique=True))
        return shared / (len(first) + len(second) - shared)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signatures.close()
        self._shingles.close()


class KnownTurns:
    """Turns of the user that many others are compared with: which of them are nearly the same.

    Memory: about 200 bytes a word of the turns that are known; the others leave none.

    Args:
        texts: the turns that are known.
        threshold: least Jaccard similarity, in (0, 1], of the sets of three words in a row.
    """

    def __init__(self, texts: Iterable[str], threshold: float) -> None:
        self._threshold = threshold
        self._sizes: list[int] = []
        self._turns: dict[str, list[int]] = {}  # piece -> turns that have it
        for index, text in enumerate(texts):
            pieces = _pieces(text)
            self._sizes.append(len(pieces))
            for piece in pieces:
                self._turns.setdefault(piece, []).append(index)

    def like(self, text: str) -> list[int]:
        """Indices of the known turns that are nearly the same as this one, ascending."""
        pieces = _pieces(text)
        shared = Counter(index for piece in pieces for index in self._turns.get(piece, ()))
        sizes = {index: len(pieces) + self._sizes[index] - count for index, count in shared.items()}
        return sorted(index for index, count in shared.items() if count / sizes[index] >= self._threshold)


def shingles_of(messages: Sequence[Message]) -> npt.NDArray[np.uint64]:
    """Hashes of the different triples of words in the user's turns, ascending; never empty.

    A turn with fewer words is one shingle; a turn without words (an emoji) is its text.
    """
    pieces: set[str] = set()
    for message in messages:
        if message["role"] == "user":
            pieces |= _pieces(message["content"])
    hashes = (hashlib.blake2b(piece.encode(), digest_size=8).digest() for piece in pieces)
    return np.unique(np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64))


def _pieces(text: str) -> set[str]:
    words = words_of(text) or [text.strip()]
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last)}


def rows_of_a_band(threshold: float) -> int:
    """How many numbers a band of the signature has: as many as possible while at most 1 % of the pairs are missed.

    Prompts become candidates if all numbers of one band agree; at similarity s, with b bands of r, that happens with
    probability 1 - (1 - s^r)^b (J. Leskovec et al., Mining of Massive Datasets, section 3.4).
    """
    for rows in range(_NUM_PERMUTATIONS, 1, -1):
        bands = _NUM_PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _FOUND:
            return rows
    return 1


def _buckets(signatures: npt.NDArray[np.uint32], rows: int) -> Iterator[tuple[int, list[int]]]:
    """Every prompt that shares a band with another, in order, and the buckets it shares; one band at a time."""
    indices: list[npt.NDArray[np.int64]] = []
    buckets: list[npt.NDArray[np.int64]] = []
    num_buckets = 0
    for band in range(_NUM_PERMUTATIONS // rows):
        hashes = _band_hashes(signatures[:, band * rows : (band + 1) * rows])
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        edges = np.flatnonzero(np.diff(ordered)) + 1
        starts = np.concatenate(([0], edges))
        sizes = np.diff(np.concatenate((starts, [len(ordered)])))
        shared = np.repeat(sizes > 1, sizes)
        indices.append(order[shared])
        buckets.append(np.repeat(np.arange(num_buckets, num_buckets + len(sizes)), sizes)[shared])
        num_buckets += len(sizes)
    all_indices, all_buckets = np.concatenate(indices), np.concatenate(buckets)
    order = np.argsort(all_indices, kind="stable")
    all_indices, all_buckets = all_indices[order], all_buckets[order]
    edges = np.flatnonzero(np.diff(all_indices)) + 1
    starts = np.concatenate(([0], edges)) if len(all_indices) else edges
    ends = np.concatenate((edges, [len(all_indices)]))
    for start, end in zip(starts, ends, strict=False):
        yield int(all_indices[start]), all_buckets[start:end].tolist()


def _band_hashes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """64 bits a row; two different rows that share them only become candidates."""
    mixed = np.zeros(len(values), dtype=np.uint64)
    for column in range(values.shape[1]):
        mixed = (mixed ^ values[:, column].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
