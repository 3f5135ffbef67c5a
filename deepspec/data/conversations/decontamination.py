"""Keeps benchmarks out of the conversations: their prompts, and every conversation that repeats a piece of one.

Overlap is counted in runs of words (13, as in published evaluations of language models: T. Brown et al., 2020,
appendix C). Two kinds of shared runs are no evidence and must not cost training data:

* Benchmarks put the same instruction around every prompt ("Please reason step by step, …"). Words in runs of 8 that
  at least 3 prompts of a benchmark, and 0.5 % of them, have in common are a template, in every benchmark: collections
  of programming problems introduce their test cases in the same words.
* Numbers and repetitions ("1 2 3 4 …").

So a run counts if more than half of it are different words with letters in them that are not of a template.

A prompt can also be too short for such a run, or stand in other words. So every turn of the user is compared with every
turn of a benchmark, whatever stands before it (case, spacing and punctuation aside): it is the same, it has a short one
of at least 4 words inside it, or the sets of their word triples have a Jaccard similarity of 0.8 or more. A benchmark's
later turns of fewer than 4 words ("Go on.") say nothing.

Memory grows with the benchmarks, about 100 bytes a word, and not with the conversations. Not here: which prompts are
held out (deepspec/evaluation/prompts/selection.py).
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepspec.data.conversations.words import words_of
from deepspec.data.sources.parsing import prompt_hashes
from deepspec.data.sources.rows import Message

_TEMPLATE_WORDS = 8
_TEMPLATE_PROMPTS = 3
_TEMPLATE_SHARE = 0.005
SIMILAR = 0.8
"""Least Jaccard similarity of two turns' word triples that makes them one prompt in other words."""
_FEW_WORDS = 4
"""A turn of fewer words is too short to be meant by what merely contains it, but for two words more."""
_TABLE_BITS = 22
_TABLE_SHIFT = np.uint64(64 - _TABLE_BITS)
Ids = npt.NDArray[np.uint64]
_NONE: Ids = np.zeros(0, dtype=np.uint64)
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, bits well mixed: a rolling hash modulo 2^64, and every find is compared


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt that must not be trained on.

    Attributes:
        benchmark: its name.
        row: where it stands there, from 1.
        hashes: under which it is recognised as it is (`prompt_hashes`).
        texts: its user turns.
    """

    benchmark: str
    row: int
    hashes: frozenset[str] = frozenset()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contamination:
    """A conversation's match with a benchmark.

    Attributes:
        benchmark, benchmark_row: the prompt.
        shared: the run of words, or the turn that is much like it; "" if the conversation asks the prompt itself.
    """

    benchmark: str
    benchmark_row: int
    shared: str = ""


class Benchmarks:
    """The prompts that are held out; finds those that a conversation repeats.

    Args:
        prompts: of all benchmarks, each one's in order.
        num_words: length of a run that counts as overlap; None: only whole prompts are recognised.
    """

    def __init__(self, prompts: Iterable[BenchmarkPrompt] = (), *, num_words: int | None = None) -> None:
        self._prompts = tuple(prompts)
        self._num_words = num_words or 0
        self._whole: dict[str, int] = {}
        for index, prompt in enumerate(self._prompts):
            for name in prompt.hashes:
                self._whole.setdefault(name, index)
        self._turns = _Turns(self._prompts, num_words)
        self._vocabulary: dict[str, int] = {}
        self._hashes = _NONE
        if num_words is not None:
            self._index(num_words)

    def find(self, messages: Sequence[Message]) -> Contamination | None:
        """The first match of a conversation with a benchmark: a whole prompt, a run of words in any message, or a turn
        of the user that is much like one of the benchmark's.
        """
        if not self._prompts:
            return None
        asked = [words_of(message["content"]) for message in messages if message["role"] == "user"]
        known = {self._whole[name] for name in prompt_hashes(messages) if name in self._whole}
        known |= {index for words in asked if (index := self._turns.same(words)) is not None}
        if known:
            return self._contamination(min(known))
        if len(self._hashes):
            for message in messages:
                found = self._overlap(message["content"])
                if found is not None:
                    return found
        for words in asked:
            index = self._turns.contained(words)
            if index is None:
                index = self._turns.similar(words)
            if index is not None:
                return self._contamination(index, " ".join(words))
        return None

    def _contamination(self, index: int, shared: str = "") -> Contamination:
        return Contamination(self._prompts[index].benchmark, self._prompts[index].row, shared)

    def _index(self, num_words: int) -> None:
        """Collect the hashes of all runs that count, sorted, and of each the first prompt that has it."""
        texts = [[words_of(text) for text in prompt.texts] for prompt in self._prompts]
        for word in (word for prompt_texts in texts for words in prompt_texts for word in words):
            self._vocabulary.setdefault(word, len(self._vocabulary) + 1)  # 0: a word of no benchmark
        ids = [[self._ids(words) for words in prompt_texts] for prompt_texts in texts]
        template = _template_of([prompt.benchmark for prompt in self._prompts], ids)
        hashes, owners = [_NONE], [np.zeros(0, dtype=np.int32)]
        for index in range(len(self._prompts)):
            for words, word_ids in zip(texts[index], ids[index], strict=True):
                counting = _counting_runs(words, word_ids, template, num_words)
                if counting.any():
                    hashes.append(_run_hashes(word_ids, num_words)[counting])
                    owners.append(np.full(len(hashes[-1]), index, dtype=np.int32))
        self._hashes, first = np.unique(np.concatenate(hashes), return_index=True)
        self._owners = np.concatenate(owners)[first]
        self._taken = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        self._taken[self._hashes >> _TABLE_SHIFT] = True

    def _overlap(self, text: str) -> Contamination | None:
        words = words_of(text)
        if len(words) < self._num_words:
            return None
        ids = self._ids(words)
        runs = _run_hashes(ids, self._num_words)
        # Most runs fall where no benchmark has one: only the others are searched for, which costs ten times as much.
        starts = np.flatnonzero(self._taken[runs >> _TABLE_SHIFT])
        indices = np.minimum(np.searchsorted(self._hashes, runs[starts]), len(self._hashes) - 1)
        same = self._hashes[indices] == runs[starts]
        for start, index in zip(starts[same], indices[same], strict=True):
            run = words[start : start + self._num_words]
            prompt = self._prompts[self._owners[index]]
            if any(_contains(words_of(text), run) for text in prompt.texts):
                return Contamination(prompt.benchmark, prompt.row, " ".join(run))
        return None

    def _ids(self, words: Sequence[str]) -> Ids:
        known = self._vocabulary
        return np.fromiter(map(known.get, words, itertools.repeat(0)), dtype=np.uint64, count=len(words))


Words = Sequence[str]
Triple = tuple[str, ...]


class _Turns:
    """The user turns of benchmarks, to be compared with those of conversations as whole turns.

    Args:
        prompts: of all benchmarks.
        num_words: longer turns have runs, by which they are found inside others; None: only equal turns are found.
    """

    def __init__(self, prompts: Sequence[BenchmarkPrompt], num_words: int | None) -> None:
        self._same: dict[Triple, int] = {}
        # What is shorter than a run, by its first two words.
        self._short: dict[Triple, list[tuple[Triple, int]]] = {}
        # Which turns have a triple of words, and how many different triples each has.
        self._by_triple: dict[Triple, list[int]] = {}
        self._sizes: list[int] = []
        self._owners: list[int] = []
        for index, prompt in enumerate(prompts):
            for place, text in enumerate(prompt.texts):
                words = tuple(words_of(text))
                if words and (place == 0 or len(words) >= _FEW_WORDS) and words not in self._same:
                    self._same[words] = index
                    if num_words is not None:
                        self._add(words, index, num_words)

    def _add(self, words: Triple, index: int, num_words: int) -> None:
        if 2 <= len(words) < num_words:
            self._short.setdefault(words[:2], []).append((words, index))
        triples = _triples(words)
        for triple in triples:
            self._by_triple.setdefault(triple, []).append(len(self._sizes))
        self._sizes.append(len(triples))
        self._owners.append(index)

    def same(self, words: Words) -> int | None:
        """The prompt that has this turn, if one has."""
        return self._same.get(tuple(words))

    def contained(self, words: Words) -> int | None:
        """The first prompt that is shorter than a run and stands in this turn as it is."""
        if not self._short:
            return None
        found = None
        for start, pair in enumerate(itertools.pairwise(words)):
            for short, index in self._short.get(pair, ()):
                whole = len(short) >= _FEW_WORDS or len(words) <= len(short) + 2
                if whole and tuple(words[start : start + len(short)]) == short:
                    found = index if found is None else min(found, index)
        return found

    def similar(self, words: Words) -> int | None:
        """The first prompt with a turn that is as similar to this one as `SIMILAR`."""
        if not self._by_triple or len(words) < 3:
            return None
        triples = _triples(words)
        shared: Counter[int] = Counter()
        for triple in triples:
            shared.update(self._by_triple.get(triple, ()))
        return min(
            (
                self._owners[turn]
                for turn, count in shared.items()
                if count >= SIMILAR * (len(triples) + self._sizes[turn] - count)
            ),
            default=None,
        )


def _triples(words: Words) -> set[Triple]:
    """The different triples of words in a row; a shorter turn is one by itself."""
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}


NO_BENCHMARKS = Benchmarks()


def _contains(words: Sequence[str], run: Sequence[str]) -> bool:
    return any(words[start : start + len(run)] == run for start in range(len(words) - len(run) + 1))


def _template_of(benchmarks: Sequence[str], texts: Sequence[Sequence[Ids]]) -> Ids:
    """Hashes of the runs of words that many prompts of a benchmark share, sorted; of all benchmarks together."""
    runs: dict[str, list[Ids]] = {}
    for benchmark, prompt_texts in zip(benchmarks, texts, strict=True):
        hashes = [_run_hashes(ids, _TEMPLATE_WORDS) for ids in prompt_texts if len(ids) >= _TEMPLATE_WORDS]
        runs.setdefault(benchmark, []).append(np.unique(np.concatenate([*hashes, _NONE])))
    shared = [_NONE]
    for prompts in runs.values():
        different, counts = np.unique(np.concatenate(prompts), return_counts=True)
        shared.append(different[counts >= max(_TEMPLATE_PROMPTS, _TEMPLATE_SHARE * len(prompts))])
    return np.unique(np.concatenate(shared))


def _counting_runs(words: Sequence[str], ids: Ids, template: Ids, num_words: int) -> npt.NDArray[np.bool_]:
    """Which runs of a prompt are evidence, by where they start."""
    own = [any(map(str.isalpha, word)) for word in words]
    if len(words) >= _TEMPLATE_WORDS:
        for start in np.flatnonzero(np.isin(_run_hashes(ids, _TEMPLATE_WORDS), template)):
            own[start : start + _TEMPLATE_WORDS] = [False] * _TEMPLATE_WORDS
    starts = range(max(0, len(words) - num_words + 1))
    counts = (len({words[n] for n in range(start, start + num_words) if own[n]}) for start in starts)
    return np.fromiter((2 * count > num_words for count in counts), dtype=np.bool_, count=len(starts))


def _run_hashes(ids: Ids, length: int) -> Ids:
    """A hash for each run of `length` words; there must be at least one run."""
    factors = np.array([pow(_MULTIPLIER, power, 1 << 64) for power in range(1, length + 1)], dtype=np.uint64)
    hashes: Ids = np.lib.stride_tricks.sliding_window_view(ids, length) @ factors
    return hashes
