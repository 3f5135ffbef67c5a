"""The corpus: what is composed is right, varied, reproducible, and apart from the benchmarks."""

import itertools
import json
import re
from pathlib import Path

import pytest

from deepspec.data.config import Config as DataConfig
from deepspec.data.config import Splits
from deepspec.data.conversations.build import write_conversations
from deepspec.demo import arithmetic, chat, code
from deepspec.demo.config import Config, Corpus
from deepspec.demo.corpus import (
    CONVERSATIONS,
    KINDS,
    TARGET_TRAINING,
    benchmark,
    conversations,
    is_held_out,
    read_conversations,
    write_corpus,
)
from deepspec.demo.draws import KeyedDraws
from deepspec.errors import DataError, RecipeError
from deepspec.evaluation.prompts.selection import read_benchmark
from deepspec.recipe import read_yaml
from tests.fixtures.refused import refused

SMALL = Config(corpus=Corpus(num_conversations=30, num_target_conversations=30, num_benchmark_prompts=4))
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_same_seed_same_bytes_and_other_seed_others(tmp_path):
    counts = write_corpus(SMALL, tmp_path / "a")
    write_corpus(SMALL, tmp_path / "b")
    write_corpus(SMALL.model_copy(update={"corpus": SMALL.corpus.model_copy(update={"seed": 1})}), tmp_path / "c")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert set(files(tmp_path / "a")) == {
        "conversations.jsonl",
        "target-training.jsonl",
        "held-out.jsonl",
        "benchmarks/arithmetic.jsonl",
        "benchmarks/code.jsonl",
        "benchmarks/chat.jsonl",
    }
    assert all(content != files(tmp_path / "c")[name] for name, content in files(tmp_path / "a").items())
    assert counts["conversations"] == 30
    assert counts["benchmark_prompts"] == 12


def test_draws_are_pinned():
    # The corpus must be the same on every machine and in every version: a changed stream is a changed corpus.
    draws = KeyedDraws(0, "x", 7)
    assert [draws.below(1000) for _ in range(4)] == [829, 19, 850, 828]
    assert sorted(KeyedDraws("order").permutation(50)) == list(range(50))


def test_two_draws_are_different_and_every_pair_comes():
    pairs = {KeyedDraws(index).two("abc") for index in range(200)}
    assert pairs == set(itertools.permutations("abc", 2))


def test_no_benchmark_prompt_and_no_held_out_combination_in_training():
    config = Corpus()
    asked = {row.prompt for kind in KINDS for row in benchmark(config, kind)}
    trained = {row.prompt for name in (CONVERSATIONS, TARGET_TRAINING) for row in conversations(config, name, 3000)}
    assert len(asked) == 3 * config.num_benchmark_prompts
    assert not asked & trained
    # Not by luck: phrasings of one combination stay together, and about the configured share is held out.
    for draw_problem in KINDS.values():
        problems = [draw_problem(KeyedDraws("share", index)) for index in range(600)]
        held_out = {problem.combination: is_held_out(problem, config) for problem in problems}
        assert 0.03 < sum(held_out.values()) / len(held_out) < 0.2


@pytest.mark.parametrize("name", ["demo-inputs", "tiny-inputs"])
def test_shipped_inputs_can_be_composed(name):
    config = Config.model_validate(read_yaml(name))
    for kind in KINDS:
        assert len(benchmark(config.corpus, kind)) == config.corpus.num_benchmark_prompts


def test_a_prompt_belongs_to_one_combination():
    # Otherwise a held-out prompt could also be written from another combination that is trained on.
    for kind, draw_problem in KINDS.items():
        owner: dict[str, str] = {}
        for index in range(1500):
            draws = KeyedDraws("owner", kind, index)
            problem = draw_problem(draws)
            assert owner.setdefault(problem.prompt(draws), problem.combination) == problem.combination


@pytest.mark.parametrize("kind", KINDS)
def test_one_prompt_has_several_good_answers(kind):
    for index in range(20):
        problem = KINDS[kind](KeyedDraws("several", kind, index))
        answers = {problem.answer(KeyedDraws("answer", way)) for way in range(60)}
        assert len(answers) >= 8
        # They branch at more than one place, not only in their first words.
        assert len({answer.split()[-1] for answer in answers} | {answer[len(answer) // 2 :] for answer in answers}) >= 6


def test_every_equation_and_result_is_right():
    for index in range(400):
        draws = KeyedDraws("sum", index)
        problem = arithmetic.draw_problem(draws)
        answer = problem.answer(draws)
        equations = EQUATION.findall(answer)
        assert len(equations) >= 2
        value = 0
        for left, operator, right, result in equations:
            numbers = int(left), int(right)
            value = {"+": sum(numbers), "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1]}.get(operator)
            if operator == "/":
                value, rest = divmod(*numbers)
                assert rest == 0
            assert value == int(result), answer
        assert value == problem.result
        assert str(problem.result) in answer.splitlines()[-1].split(".")[-2]


def test_every_derivation_of_a_scenario_agrees():
    for index in range(400):
        problem = arithmetic.draw_problem(KeyedDraws("ways", index))
        results = {problem._values(way)["q"] for way in problem.scenario.derivations}
        assert results == {problem.result}


def test_stories_name_everything_that_is_needed():
    for scenario in arithmetic.SCENARIOS:
        letters = "abc"[: len(scenario.numbers)]
        for story in scenario.stories:
            assert all(f"{{{letter}}}" in story for letter in letters), story


def run(source: str, name: str, argument):
    namespace: dict = {}
    exec(source, namespace)  # noqa: S102  # our own generated code is what is tested
    return namespace[name](argument)


@pytest.mark.parametrize("operation", code.OPERATIONS, ids=lambda operation: operation.name)
def test_generated_functions_compute_what_they_say(operation):
    bodies = set()
    numbers = (2, 7, 20) if operation.takes_number else (0,)
    for number, way in itertools.product(numbers, range(30)):
        problem = code.CodeProblem(operation, operation.functions[way % 3], operation.arguments[way % 4], number)
        source = re.search(r"```python\n(.*?)```", problem.answer(KeyedDraws("way", way)), re.DOTALL).group(1)
        bodies.add(source.partition("\n")[2])
        for example in operation.examples:
            given = list(example) if isinstance(example, list) else example
            assert run(source, problem.function, given) == operation.reference(example, number), source
            assert given == example, f"changes its argument: {source}"
    assert len(bodies) > len(operation.bodies)


def test_specifications_name_argument_and_number():
    for operation in code.OPERATIONS:
        assert all("{v}" in task for task in operation.tasks)
        assert len({"{n}" in task for task in operation.tasks}) == 1


def test_chat_answers_fit_their_question():
    for index in range(100):
        draws = KeyedDraws("fit", index)
        problem = chat.draw_problem(draws)
        prompt, answer = problem.prompt(draws), problem.answer(draws)
        assert problem.topic[0] in prompt
        assert problem.occasion[0] in prompt
        assert sum(tip in answer for tip in problem.topic[1]) == 2
        assert answer.endswith(problem.occasion[1])


def test_texts_are_distinct_ascii_sentences():
    for intent in chat.INTENTS:
        for topic, tips in intent.topics:
            assert len(set(tips)) == len(tips) == 3, topic
            assert all(tip.endswith(".") and tip.isascii() for tip in tips)


def test_the_data_stage_takes_the_corpus_as_it_is(tmp_path):
    write_corpus(SMALL, tmp_path / "corpus")
    source = str(tmp_path / "corpus" / CONVERSATIONS)
    (tmp_path / "out").mkdir()
    counts = write_conversations(
        DataConfig(source=source, splits=Splits(validation=0, gate=0, calibration=0)), [source], tmp_path / "out"
    )
    assert json.dumps(counts)
    assert counts["quarantined"] == 0
    for kind in KINDS:
        assert len(read_benchmark(kind, str(tmp_path / "corpus" / "benchmarks" / f"{kind}.jsonl"))) == 4


def test_what_cannot_be_composed_is_said():
    with refused(RecipeError, "100000", "chat", where="corpus.num_benchmark_prompts"):
        benchmark(Corpus(num_benchmark_prompts=100_000), "chat")
    with refused(RecipeError, "chat", where="corpus.held_out"):
        benchmark(Corpus(held_out=1e-9), "chat")


def test_a_damaged_corpus_is_a_data_error(tmp_path):
    with refused(DataError, where="conversations.jsonl"):
        read_conversations(tmp_path / CONVERSATIONS)
    (tmp_path / CONVERSATIONS).write_text('{"kind": "chat"}\n')
    with refused(DataError, where="conversations.jsonl"):
        read_conversations(tmp_path / CONVERSATIONS)
