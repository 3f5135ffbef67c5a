"""What a draft from other data has met of the gate's prompts, in any turn, as they are or nearly so."""

import random
from pathlib import Path

import pytest

from deepspec.evaluation.prompts.selection import select_split
from deepspec.gates import unseen
from deepspec.gates.config import Config
from deepspec.gates.judge import judge
from deepspec.gates.unseen import seen_prompts
from tests.fixtures.verdicts import evidence
from tests.unit.test_data_conversations import chat, make
from tests.unit.test_data_near_duplicates import WORDS, jaccard

TRAINED = dict.fromkeys(("validation", "calibration", "gate"), 0)
"""Nothing is held out."""


def folder(tmp_path: Path, name: str) -> Path:
    found = tmp_path / name
    found.mkdir()
    return found


def test_all_that_was_trained_chosen_or_calibrated_on_is_seen(tmp_path: Path) -> None:
    shares = {"validation": 0, "calibration": 0, "gate": 0.5}
    ours = make(folder(tmp_path, "ours"), [chat(f"question {n}?") for n in range(40)], splits=shares)
    asked = select_split(ours / "gate.parquet", num_prompts=4, seed=0)
    first, second, *_ = (prompt.messages[-1]["content"] for prompt in asked)
    rows = [chat("Hello", "x", first.upper()), chat(f" {second}!"), chat("Something else"), chat("And more")]
    theirs = make(folder(tmp_path, "theirs"), rows, splits=TRAINED)
    ids = [prompt.id for prompt in asked]
    assert seen_prompts(ours / "gate.parquet", ids, [theirs]) == set(ids[:2])
    assert seen_prompts(ours / "gate.parquet", ids, []) == frozenset()


def with_other_words(text: str, num_words: int) -> str:
    """`text` with its last words replaced: of T triples that many are others, so Jaccard is (T - n) / (T + n)."""
    return " ".join([*text.split()[:-num_words], *(f"other{n}" for n in range(num_words))])


def test_nearly_the_same_words_are_seen_and_others_stay(tmp_path: Path) -> None:
    draws = random.Random(11)
    questions = [" ".join(draws.choices(WORDS, k=38)) for _ in range(30)]  # 36 triples of words each
    # The target is asked the first turn; what follows it is in no other conversation.
    rows = [chat(text, "answer", f"and what of {n}?") for n, text in enumerate(questions)]
    shares = {"validation": 0, "calibration": 0, "gate": 0.5}
    ours = make(folder(tmp_path, "ours"), rows, splits=shares)
    asked = {prompt.id: prompt for prompt in select_split(ours / "gate.parquet", num_prompts=9, seed=0)}
    texts = {name: prompt.messages[-1]["content"] for name, prompt in asked.items()}
    alone, later, not_quite, then, *others = asked
    assert [jaccard(texts[alone], with_other_words(texts[alone], n)) for n in (4, 5)] == [32 / 40, 31 / 41]
    trained_on = [
        chat(with_other_words(texts[alone], 4), "x"),
        chat("Hello", "x", f"{with_other_words(texts[later], 4).upper()}!"),
        chat(with_other_words(texts[not_quite], 5), "x"),
        chat(asked[then].turns[1], "x"),  # its second turn, which is not asked
    ]
    theirs = make(folder(tmp_path, "theirs"), trained_on, splits=TRAINED)
    seen = seen_prompts(ours / "gate.parquet", asked, [theirs])
    assert seen == {alone, later}
    assert len(others) == 5

    known = evidence(2.0, 2.0, tuple(asked))
    verdict = judge(known, Config(), champion_digest="a", challenger_digest="b", seen=seen)
    counted = next(reason for reason in verdict.reasons if reason.gate == "unseen_prompts")
    assert (counted.passed, counted.measured) == (True, 7)
    assert counted.sentence.startswith("2 of 9 gate prompts are left out")


@pytest.mark.parametrize(
    ("imported", "words"),
    [
        (["challenger"], ["challenger", "its gain over a champion, may be too high"]),
        (["champion"], ["champion", "the challenger's gain too low"]),
        (["challenger", "champion"], ["both drafts", "may be too high"]),
    ],
)
def test_what_an_imported_draft_was_trained_on_is_not_known_and_says_so(
    imported: list[unseen.Side], words: list[str]
) -> None:
    """It refuses nobody, and is never taken for clean: not measured, in whose favour, and beside what is known."""
    known = evidence(9.0, 2.0, ("a", "b", "c", "d", "e", "f"))
    for seen in ((), ("a",)):
        verdict = judge(known, Config(), champion_digest="c", challenger_digest="d", seen=seen, imported=imported)
        (reason,) = (reason for reason in verdict.reasons if reason.gate == unseen.GATE)
        assert reason.passed
        assert reason.measured == (5 if seen else None)
        assert all(word in reason.sentence for word in ["not known", *words])
        assert ("1 of 6 gate prompts are left out" in reason.sentence) == bool(seen)
    every = judge(known, Config(), champion_digest="c", seen=tuple("abcdef"), imported=imported)
    assert not every.accepted
    assert unseen.reason(6, 0) is None
