"""Near-duplicate prompts: found as the exact similarity says, and the same ones whatever the order."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from deepspec.data.conversations.near_duplicates import NearDuplicates, rows_of_a_band, shingles_of
from deepspec.data.conversations.words import words_of
from deepspec.data.sources.rows import Message

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "en", "ira", "olu", "us", "ym", "ek", "ot")]


def asked(*turns: str, system: str | None = None) -> list[Message]:
    messages: list[Message] = [{"role": "user", "content": turn} for turn in turns]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def triples(text: str) -> set[tuple[str, ...]]:
    """The reference: plain sets of plain words."""
    words = text.split()
    return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}


def jaccard(one: str, other: str) -> float:
    first, second = triples(one), triples(other)
    return len(first & second) / len(first | second)


def changed(draws: random.Random, text: str, least: float) -> str:
    """`text` with words replaced, put in or left out, as many as leave it this similar."""
    words = text.split()
    for _ in range(draws.randint(1, 6)):
        place = draws.randrange(len(words))
        edited = [
            *words[:place],
            *draws.choice(([], [draws.choice(WORDS)], [words[place], "new"])),
            *words[place + 1 :],
        ]
        if jaccard(text, " ".join(edited)) >= least:
            words = edited
    return " ".join(words)


def test_200_planted_pairs_are_found_and_nothing_else(tmp_path: Path) -> None:
    draws = random.Random(5)
    originals = [" ".join(draws.choices(WORDS, k=draws.randint(20, 120))) for _ in range(900)]
    copies = [changed(draws, text, 0.8) for text in originals[:200]]
    # As hard: pairs that are less similar than that, but not by much.
    near = [changed(draws, text, 0.5) for text in originals[200:400]]
    texts = [*originals, *copies, *near]
    planted = {
        (one, other)
        for one, other in itertools.chain(((n, 900 + n) for n in range(200)), ((200 + n, 1100 + n) for n in range(200)))
        if texts[one] != texts[other] and jaccard(texts[one], texts[other]) >= 0.8
    }
    assert len(planted) >= 200
    with NearDuplicates(tmp_path, 0.8) as near_duplicates:
        for text in texts:
            near_duplicates.add(asked(text))
        found = near_duplicates.found()
    pairs = {(duplicate.kept, number) for number, duplicate in found.items()}
    same = {(n, m) for n, m in pairs if texts[n] == texts[m]}
    assert len(pairs & planted) / len(planted) >= 0.95  # recall
    assert len((pairs - same) & planted) / len(pairs - same) >= 0.95  # precision
    assert all(d.similarity == pytest.approx(jaccard(texts[n], texts[d.kept])) for n, d in found.items())


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_miss_one_percent_at_most(threshold: float) -> None:
    rows = rows_of_a_band(threshold)
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.99
    assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99


def found(tmp_path: Path, *conversations: list[Message], threshold: float = 0.8) -> dict[int, int]:
    with NearDuplicates(tmp_path, threshold) as near_duplicates:
        for messages in conversations:
            near_duplicates.add(messages)
        return {number: duplicate.kept for number, duplicate in near_duplicates.found().items()}


LONG = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def test_what_counts_are_the_users_words(tmp_path: Path) -> None:
    assert found(tmp_path, asked("Hi, there!"), asked("hi THERE"), asked("hi here")) == {1: 0}
    assert found(tmp_path, asked(LONG), asked(LONG + "!", system="Be brief."), asked(LONG, LONG)) == {1: 0, 2: 0}
    assert found(tmp_path, asked("🙂"), asked("🙃"), asked("🙂 ")) == {2: 0}
    assert found(tmp_path, asked("3 + 4 = ?"), asked("3 + 5 = ?")) == {}
    assert len(shingles_of(asked("你好世界"))) == 2


def test_no_one_is_left_out_for_the_sake_of_one_that_is_left_out_itself(tmp_path: Path) -> None:
    first = LONG.split()
    second = [*first[1:], "one"]
    third = [*second[1:], "two"]
    chain = [asked(" ".join(words)) for words in (first, second, third)]
    assert found(tmp_path, *chain) == {1: 0}  # the third is like the second, not like the first
    assert found(tmp_path, *chain[::-1]) == {1: 0}
    assert found(tmp_path, chain[1], chain[0], chain[2]) == {1: 0, 2: 0}


def test_few_or_no_prompts(tmp_path: Path) -> None:
    assert found(tmp_path) == found(tmp_path, asked("a")) == found(tmp_path, asked("a"), asked("b")) == {}


def test_signatures_are_what_they_were(tmp_path: Path) -> None:
    """A library that draws other permutations would find others, under the same key."""
    with NearDuplicates(tmp_path, 0.8) as near_duplicates:
        near_duplicates.add(asked("What is the capital of France?"))
    signature = np.fromfile(tmp_path / "signatures", dtype=np.uint32)
    assert len(signature) == 128
    assert signature[:4].tolist() == [1411276249, 368375126, 2022912760, 222866841]


def test_words() -> None:
    assert words_of("Don't  PANIC: \\boxed{4}, x_1 ﬁn 東京 Grüße") == [
        *("don", "t", "panic", "boxed", "4", "x", "1", "fin", "東", "京", "grüsse"),
    ]
