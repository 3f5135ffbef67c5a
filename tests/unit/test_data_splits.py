"""Splits in which nothing is asked that was trained on: a planted corpus, and what the page of rules says."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deepspec.data.config import SPLITS, Config
from deepspec.data.conversations.splits import assign, split_of
from deepspec.data.conversations.words import words_of
from deepspec.data.sources.parsing import prompt_hash
from tests.unit.test_data_conversations import chat, holding_out, make, summary, table
from tests.unit.test_data_near_duplicates import WORDS

SHARES = {"validation": 0.02, "calibration": 0.02, "gate": 0.02}


def text_of(draws: random.Random, least: int = 8, most: int = 30) -> str:
    return " ".join(draws.choices(WORDS, k=draws.randint(least, most)))


def talk(draws: random.Random, *turns: str) -> dict[str, Any]:
    """A conversation of these questions, with answers of its own."""
    return chat(*(text for turn in turns for text in (turn, text_of(draws))))


def planted(draws: random.Random, benchmark: Sequence[str]) -> list[dict[str, Any]]:
    """2,000 conversations: shared openings, shared later turns, near duplicates, short prompts, a turn that stands in
    30 % of them, a templated family, and benchmark prompts in other clothes.
    """
    openings = [text_of(draws) for _ in range(200)]
    rows = [[opening, text_of(draws)] for opening in openings for _ in range(4)]
    later = [text_of(draws) for _ in range(100)]
    rows += [[text_of(draws), turn] for turn in later for _ in range(2)]
    originals = [text_of(draws, 25, 40) for _ in range(100)]
    rows += [[text] for text in originals]
    rows += [[text_of(draws), " ".join([*text.split()[:-1], "other"])] for text in originals]
    short = [" ".join(draws.choices(WORDS, k=3)) for _ in range(100)]
    rows += [[text_of(draws), text.upper() + "!"] for text in short] + [[text] for text in short]
    family = text_of(draws, 30, 30).split()
    rows += [[" ".join([*family, word])] for word in draws.sample(WORDS, 60)]
    rows += [["Hello", f"Please: {text} "] for text in benchmark[:20]]
    rows += [[text_of(draws)] for _ in range(2000 - len(rows))]
    for row in draws.sample(rows, 600):
        row.append("Continue, please.")
    return [talk(draws, *row) for row in rows]


def triples(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}


def test_nothing_is_asked_that_was_trained_on(tmp_path: Path) -> None:
    draws = random.Random(11)
    benchmark = [text_of(draws, 4, 25) for _ in range(40)]
    rows = planted(draws, benchmark)
    held = holding_out(*({"turns": [text]} for text in benchmark), num_words=13)
    out = make(tmp_path, rows, splits=SHARES, benchmarks=held)
    found = {split: table(out, split) for split in SPLITS}
    trained = {
        frozenset(triples(message["content"]))
        for row in found["train"]
        for message in row["messages"]
        if message["role"] == "user"
    }
    by_triple: dict[tuple[str, ...], list[frozenset[tuple[str, ...]]]] = {}
    for turn in trained:
        for triple in turn:
            by_triple.setdefault(triple, []).append(turn)
    asked = [row["messages"][0]["content"] for split in SPLITS[1:] for row in found[split]]
    for text in [*asked, *benchmark]:
        own = triples(text)
        near = {turn for triple in own for turn in by_triple.get(triple, ())}
        assert not [turn for turn in near if len(own & turn) / len(own | turn) >= 0.8], text
    kept = sum(map(len, found.values()))
    for split, share in SHARES.items():
        assert abs(len(found[split]) / kept - share) <= 0.01, split
    counts = summary(out)
    assert (counts["excluded"], counts["decontaminated"]) == (0, 20)
    # The family is one prompt in sixty ways, and each original stands twice; everything else is kept.
    assert kept >= 0.98 * (2000 - 20 - 59)


def prompts_of(*conversations: Sequence[str]) -> list[tuple[str, list[dict[str, str]]]]:
    found = []
    for turns in conversations:
        messages = [{"role": "user", "content": turn} for turn in turns]
        found.append((prompt_hash(messages), messages))
    return sorted(found)


def assigned(tmp_path: Path, prompts: list[tuple[str, Any]], **shares: float) -> dict[str, str]:
    config = Config.model_validate({"source": "x", "splits": {"validation": 0, "calibration": 0, "gate": 0, **shares}})
    found = assign(lambda: prompts, config, tmp_path)
    return {messages[0]["content"]: split for (_, messages), split in zip(prompts, found, strict=True)}


def test_a_prompt_that_is_connected_with_none_is_drawn_by_its_own_hash(tmp_path: Path) -> None:
    prompts = prompts_of(*([f"question {n}"] for n in range(500)))
    config = Config.model_validate({"source": "x", "splits": {"validation": 0.1, "calibration": 0.1, "gate": 0.1}})
    found = assign(lambda: prompts, config, tmp_path)
    assert found == [split_of(name, config) for name, _ in prompts]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a question"], ["another", "A question!"]),
        (["first", "a later turn"], ["second", "a later  turn"]),
        (["x " * 30 + "a b c d e f g h i j k l m n o"], ["y", "x " * 30 + "a b c d e f g h i j k l m n p"]),
        (["🙂"], ["why", "🙂 "]),
    ],
)
def test_prompts_that_share_a_turn_stay_together(tmp_path: Path, one: list[str], other: list[str]) -> None:
    """Whatever the others are."""
    for number in range(12):
        others = ([f"question {number} {n}"] for n in range(40))
        found = assigned(tmp_path, prompts_of([*one, f"tail {number}"], other, *others), gate=0.45)
        assert found[one[0]] == found[other[0]]


def test_a_common_turn_connects_nothing_and_is_not_asked(tmp_path: Path) -> None:
    begun = [["Go on", f"begun {n}"] for n in range(30)]
    followed = [[f"question {n}", "go on!"] for n in range(400)]
    prompts = prompts_of(*begun, *followed)
    config = Config.model_validate({"source": "x", "splits": {"validation": 0, "calibration": 0, "gate": 0.3}})
    found = assign(lambda: prompts, config, tmp_path)
    gate = [messages for (_, messages), split in zip(prompts, found, strict=True) if split == "gate"]
    assert abs(len(gate) - 0.3 * 430) < 0.1 * 430
    assert not [messages for messages in gate if messages[0]["content"] == "Go on"]


def test_what_is_too_large_for_a_split_is_trained_on(tmp_path: Path) -> None:
    family = [[f"member {n}", "what they share"] for n in range(40)]
    found = assigned(tmp_path, prompts_of(*family, *([f"question {n}"] for n in range(400))), gate=0.05)
    assert {found[f"member {n}"] for n in range(40)} == {"train"}
    assert abs(list(found.values()).count("gate") - 22) <= 15


def test_sizes_are_as_wanted_where_prompts_come_in_families(tmp_path: Path) -> None:
    families = [[f"question {family} {n}", f"what family {family} shares"] for family in range(250) for n in range(8)]
    found = list(assigned(tmp_path, prompts_of(*families), validation=0.02, gate=0.02).values())
    for split in ("validation", "gate"):
        assert abs(found.count(split) / len(found) - 0.02) <= 0.01
