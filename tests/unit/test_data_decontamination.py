"""What conversations have of benchmarks: whole prompts, runs of words that are evidence, and nothing else."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from deepspec.data.conversations.decontamination import BenchmarkPrompt, Benchmarks, Contamination
from deepspec.data.conversations.words import words_of
from deepspec.data.sources.parsing import prompt_hashes
from deepspec.data.sources.rows import Message
from deepspec.evaluation.config import Config
from deepspec.evaluation.prompts.selection import held_out_prompts

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"

STEPS = "\nPlease reason step by step, and put your final answer within \\boxed{}."
PROBLEMS = [
    "A ferry carries nine lorries on each of its trips across the fjord. After how many trips have all left the pier?",
    "Olga plants tulips in rows behind her shed, always two more than in the row before. How many bulbs does she need?",
    "An old clock on the town hall loses four seconds every hour and is set right at noon each Monday.",
    "The baker sells rye loaves until ten and gives what remains to the shelter. How much flour was it in a week?",
]


def asked(*turns: str) -> list[Message]:
    return [{"role": "user", "content": turn} for turn in turns]


def benchmarks(*texts: str | Sequence[str], num_words: int | None = 13, name: str = "b") -> Benchmarks:
    prompts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    return Benchmarks(
        [BenchmarkPrompt(name, row, prompt_hashes(asked(*turns)), turns) for row, turns in enumerate(prompts, start=1)],
        num_words=num_words,
    )


def test_a_whole_prompt_is_named_without_a_run() -> None:
    held = benchmarks("short one", PROBLEMS[0])
    assert held.find(asked("short one")) == Contamination("b", 1)
    assert held.find([*asked("short one"), {"role": "assistant", "content": "…"}]) == Contamination("b", 1)
    assert held.find(asked("Hello", " Short  one!")) == Contamination("b", 1)
    assert held.find(asked("Short ones")) is None
    assert held.find(asked(PROBLEMS[0])) == Contamination("b", 2)


@pytest.mark.parametrize("start", [0, 3, 6])
def test_thirteen_words_in_a_row_are_overlap_and_twelve_are_not(start: int) -> None:
    words = words_of(PROBLEMS[0])
    run = " ".join(words[start : start + 13])
    held = benchmarks(PROBLEMS[0])
    for text in (run, f"Solve: {run}!", run.upper().replace(" ", ",  ")):
        assert held.find(asked(text)) == Contamination("b", 1, run)
    assert held.find(asked(" ".join(words[start : start + 12]))) is None
    assert held.find(asked(run.replace(words[start + 6], "instead"))) is None


def test_any_message_counts_and_none_runs_into_the_next() -> None:
    run = words_of(PROBLEMS[0])[:13]
    held = benchmarks(["An opening that is short", PROBLEMS[0]])
    answer: list[Message] = [*asked("Hello"), {"role": "assistant", "content": " ".join(run)}]
    assert held.find(answer) == Contamination("b", 1, " ".join(run))
    assert held.find(asked(" ".join(run[:7]), " ".join(run[7:]))) is None


@pytest.mark.parametrize(
    "turns",
    [
        ["What is the tallest mountain of Wales? "],
        ["Hi there", "WHAT IS THE TALLEST MOUNTAIN OF WALES"],
        ["Please: What is the tallest mountain of Wales?"],
        ["Hi", "One more thing before I go to bed: what is the tallest mountain of Wales, and can I climb it?"],
        ["what is the tallest\nmountain of Wales…"],
    ],
)
def test_a_short_prompt_is_found_in_every_turn_and_in_other_clothes(turns: list[str]) -> None:
    held = benchmarks(PROBLEMS[0], "What is the tallest mountain of Wales?")
    found = held.find(asked(*turns))
    assert found is not None
    assert found.benchmark_row == 2


def test_few_words_are_found_as_a_turn_and_not_in_passing() -> None:
    held = benchmarks("Define entropy.", ["Tell me about the history of tea.", "Go on."])
    for text in ("define entropy", "Please: define entropy", "Define entropy, please!"):
        assert held.find(asked("Hello", text)) is not None, text
    for text in ("How do textbooks of the last century define entropy?", "Entropy", "define"):
        assert held.find(asked(text)) is None, text
    # What a benchmark asks at the end is as common as this.
    assert held.find(asked("A poem about rain", "Go on.")) is None


def test_a_prompt_in_nearly_the_same_words_is_found() -> None:
    held = benchmarks(*PROBLEMS)
    for row, problem in enumerate(PROBLEMS, start=1):
        words = words_of(problem)
        end = " ".join([*words[:-1], "then"])
        found = held.find(asked("Hello", end))
        assert found is not None
        assert (found.benchmark_row, found.shared) in ((row, end), (row, " ".join(words[:13])))
        assert held.find(asked(" ".join(words[::2]))) is None


def test_what_many_prompts_share_is_no_evidence() -> None:
    held = benchmarks(*(problem + STEPS for problem in PROBLEMS))
    assert held.find(asked("Do they need two sacks of it in a week?" + STEPS)) is None
    # The last words of a problem and then the template: one word of it would be enough otherwise.
    assert held.find(asked("So how many bulbs does she need?" + STEPS)) is None
    for row, problem in enumerate(PROBLEMS, start=1):
        found = held.find(asked("Once more. " + problem))
        assert found is not None
        assert found.benchmark_row == row
    # Two prompts are too few to tell a template from a text that stands twice.
    assert (
        benchmarks(*(problem + STEPS for problem in PROBLEMS[:2])).find(asked("trips have all left the pier?" + STEPS))
        is not None
    )


def test_numbers_and_repetitions_are_no_evidence() -> None:
    held = benchmarks("Continue: " + " ".join(map(str, range(30))) + " and " + "la " * 30)
    assert held.find(asked(" ".join(map(str, range(5, 25))))) is None
    assert held.find(asked("la " * 20)) is None


def test_of_equal_runs_the_first_prompt_is_named() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert benchmarks("Here: " + words, "There: " + words).find(asked("Again: " + words)) == Contamination(
        "b", 1, words
    )


def test_without_a_length_only_whole_prompts_count() -> None:
    held = benchmarks(*PROBLEMS, num_words=None)
    assert held.find(asked("Once more. " + PROBLEMS[0])) is None
    assert held.find(asked(PROBLEMS[0])) is not None
    assert Benchmarks(num_words=13).find(asked(PROBLEMS[0])) is None


def test_found_as_by_comparing_every_run() -> None:
    """Against the plain way on texts of few words, in which nearly everything is nearly shared."""
    draws = random.Random(3)
    vocabulary = [f"w{letter}" for letter in "abcdefghijk"]
    prompts = [" ".join(draws.choices(vocabulary, k=draws.randint(4, 30))) for _ in range(30)]
    held = benchmarks(*prompts, num_words=4)
    runs: dict[tuple[str, ...], int] = {}
    for row, prompt in enumerate(prompts, start=1):
        words = prompt.split()
        for start in range(len(words) - 3):
            if len(set(words[start : start + 4])) > 2:
                runs.setdefault(tuple(words[start : start + 4]), row)
    for _ in range(300):
        words = draws.choices(vocabulary, k=draws.randint(3, 12))
        hits = [run for run in zip(*(words[n:] for n in range(4)), strict=False) if run in runs]
        expected = Contamination("b", runs[hits[0]], " ".join(hits[0])) if hits else None
        # As an answer: turns of the user are compared as a whole, too.
        assert held.find([*asked("hello"), {"role": "assistant", "content": " ".join(words)}]) == expected


@pytest.mark.full
@pytest.mark.skipif(not EVAL.is_dir(), reason="the public benchmarks' prompts are not here")
def test_public_benchmarks_are_recognised_in_other_words_and_their_templates_are_not() -> None:
    files = {file.stem: str(file) for file in sorted(EVAL.glob("*.jsonl"))}
    prompts = held_out_prompts(Config.model_validate({"benchmarks": files}))
    held = Benchmarks(prompts, num_words=13)
    long = [prompt for prompt in prompts if len(words_of(prompt.texts[0])) >= 40]
    missed = [p for p in long if held.find(asked(f"Can you help me?\n{p.texts[0]}\nThanks!")) is None]
    assert len(long) > 2000
    assert len(missed) <= 0.01 * len(long)
    template = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n"
    assert held.find(asked(template + "def area(radius: float) -> float: ...\n```")) is None
    assert held.find(asked("How many apples does Zoe have now?" + STEPS)) is None
