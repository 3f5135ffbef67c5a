"""Whether a server serves a draft as it was measured: the rule, and what is named as its cause where it does not.

The answers and rounds are those that vLLM 0.32.0 gave, and ours (tests/fixtures/engines/replies.json).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepspec.data.responses.requests import GenerationResult
from deepspec.decoding.config import Sampling
from deepspec.evaluation.kept_answers import KeptAnswer
from deepspec.evaluation.server.check_results import PartedAnswer, ServedCheck
from deepspec.evaluation.server.expected import GREEDY, Expected, Variant, chosen
from deepspec.evaluation.server.judged import Outcome, Subject, judged

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "engines" / "replies.json").read_text())
DIGEST = "5d1c0e3a9b7f" + "0" * 52


def kept(number: int) -> KeptAnswer:
    one = RECORDED[number]
    return KeptAnswer(
        benchmark="math",
        prompt=f"p{number}",
        turn=0,
        prompt_ids=tuple(one["prompt_ids"]),
        output_ids=tuple(one["reply"]["choices"][0]["token_ids"]),
        finish_reason="stop",
        rounds=tuple(tuple(counts) for counts in one["rounds"]),
    )


ANSWERS = tuple(kept(number) for number in range(len(RECORDED)))


def expected(**fields: Any) -> Expected:
    given = {"answers": ANSWERS, "sampling": GREEDY, "dtype": "float32", "max_new_tokens": 96, "num_draft_tokens": 5}
    return Expected(**{**given, **fields})


def outcome(**fields: Any) -> Outcome:
    """What vLLM did, as its replies say it."""
    served = {place: GenerationResult(str(place), answer.output_ids, "stop") for place, answer in enumerate(ANSWERS)}
    rounds = {
        place: one["reply"]["metrics"]["speculative_decoding"]["num_spec_steps"] for place, one in enumerate(RECORDED)
    }
    given = {"endpoint": "gpu1:8000", "engine": "vllm", "engine_version": "0.32.0", "drafted": 5}
    return Outcome(**{**given, "served": served, "rounds": rounds, "counted_by": "round", **fields})


def more_rounds(**more: int) -> Outcome:
    """One that takes more rounds for some answers."""
    found = outcome()
    for place, count in more.items():
        found.rounds[int(place.removeprefix("p"))] += count
    return found


def ask(found: Outcome, *, of: Expected | None = None, **subject: Any) -> ServedCheck:
    return judged(of or expected(), found, Subject("models:/mine@champion", **subject))


def test_what_vllm_did_passes() -> None:
    found = ask(outcome())
    assert (found.passed, found.rule, found.causes, found.equal) == (True, "equal", (), 6)
    assert found.served == found.expected
    rounds = sum(len(answer.rounds) for answer in ANSWERS)
    assert (found.served.rounds, found.served.answers) == (rounds, 6)
    assert found.served.tau_from_tokens == sum(len(answer.output_ids) - 1 for answer in ANSWERS) / rounds
    assert ServedCheck.from_json(json.loads(json.dumps(found.to_json())), where="x") == found


def test_one_round_more_fails_and_is_listed() -> None:
    found = ask(more_rounds(p2=1))
    assert not found.passed
    (other,) = found.other_rounds
    assert (other.answer, other.served - other.expected) == ("math/p2", 1)
    assert "layers" in found.causes[0]


def test_rounds_that_are_equal_only_together_fail() -> None:
    found = ask(more_rounds(p1=1, p2=-1))
    assert not found.passed
    assert found.served == found.expected
    assert len(found.other_rounds) == 2
    assert found.causes


@pytest.mark.parametrize(
    ("share", "word"), [(1.02, "one too high or low"), (1.1, "slots"), (1.6, "another draft"), (0.9, "fewer rounds")]
)
def test_the_cause_is_guessed_by_how_much_is_lost(share: float, word: str) -> None:
    found = outcome()
    found.rounds = {place: round(rounds * share) + (share > 1) for place, rounds in found.rounds.items()}
    assert word in ask(found).causes[0]


def test_nothing_accepted_is_a_draft_of_another_target() -> None:
    found = outcome(rounds={place: len(answer.output_ids) - 1 for place, answer in enumerate(ANSWERS)})
    assert "Almost nothing" in ask(found).causes[0]


def test_a_mistake_that_gives_the_servers_rounds_is_the_cause() -> None:
    """Each is tried by decoding with it; the first with exactly these rounds is named alone."""
    tried: list[str] = []

    def decode(answers: Sequence[KeptAnswer], variant: Variant) -> Sequence[KeptAnswer] | None:
        tried.append(variant.cause)
        extra = {"cannot be read so": None, "other": 2, "shifted": 1}[variant.cause]
        if extra is None:
            return None
        added = {"math/p2": extra}
        return [replace(one, rounds=one.rounds + ((5, 0, 1),) * added.get(one.place, 0)) for one in answers]

    variants = [Variant(cause) for cause in ("cannot be read so", "other", "shifted", "never tried")]
    found = ask(more_rounds(p2=1), variants=variants, decode=decode)
    assert found.causes == ("shifted",)
    assert tried == ["cannot be read so", "other", "shifted"]


def parted(gap: float | None, *, is_tie: bool) -> dict[int, PartedAnswer]:
    return {0: PartedAnswer(answer="math/p0", token=4, gap=gap, is_tie=is_tie)}


@pytest.mark.parametrize(
    ("gap", "word"), [(None, "another target"), (4.0, "another target"), (0.1, "computes otherwise than in float32")]
)
def test_another_answer_is_the_targets(gap: float | None, word: str) -> None:
    found = ask(outcome(parted=parted(gap, is_tie=False)))
    assert not found.passed
    assert "1 of 6 answers" in found.sentence
    assert word in found.causes[0]
    assert (found.equal, found.served.answers) == (5, 5)


def test_an_answer_that_parts_at_a_tie_does_not_count() -> None:
    found = outcome(parted=parted(0.0004, is_tie=True))
    found.rounds[0] += 3
    checked = ask(found)
    assert checked.passed
    assert (checked.served.answers, checked.served.rounds) == (5, sum(len(answer.rounds) for answer in ANSWERS[1:]))


def test_many_ties_are_none_in_fp32() -> None:
    tied = {place: PartedAnswer(answer=f"math/p{place}", token=4, gap=0.0, is_tie=True) for place in range(3)}
    checked = ask(outcome(parted=tied))
    assert not checked.passed
    assert "3 of 6 answers part at ties" in checked.sentence
    (cause,) = checked.causes
    assert "otherwise than in float32" in cause
    assert ask(outcome(parted=tied), dtype="bfloat16").passed


def test_an_answer_that_was_cut_off_counts_by_its_tokens() -> None:
    cut = (replace(ANSWERS[0], finish_reason="length"), *ANSWERS[1:])
    found = outcome()
    found.rounds[0] += 3
    checked = ask(found, of=expected(answers=cut))
    assert checked.passed
    assert (checked.equal, checked.served.answers) == (6, 5)
    assert not ask(outcome(parted=parted(None, is_tie=False)), of=expected(answers=cut)).passed


@pytest.mark.parametrize(
    ("reason", "drafts", "word"),
    [
        ("the replies have no round of speculative decoding", False, "without a draft"),
        ("The server finished 9 answers, and only 6 of them were ours: others used it", True, "detailed"),
    ],
)
def test_without_rounds_it_fails_and_says_why(reason: str, word: str, drafts: bool) -> None:
    found = ask(outcome(rounds={}, counted_by=None, drafted=None, silent=reason, drafts=drafts))
    assert not found.passed
    assert reason in found.sentence
    assert word in found.causes[0]
    assert found.served.rounds is None


def test_prompts_without_an_answer_fail() -> None:
    found = outcome(failed=["math/p0: the endpoint read another prompt than it was sent (7 tokens instead of 6)"])
    del found.served[0]
    checked = ask(found)
    assert not checked.passed
    assert "1 of 6 prompts" in checked.sentence
    assert "before the prompt" in checked.causes[0]


def test_another_draft_and_another_length_are_named() -> None:
    own, other = f"mine/3 {DIGEST[:12]}", "mine/2 0123456789ab"
    assert ask(more_rounds(p1=1), digest=DIGEST, says=other).causes[0].endswith("and not models:/mine@champion.")
    for says in (own, "default", None):
        assert "says that it serves" not in ask(more_rounds(p1=1), digest=DIGEST, says=says).causes[0]
    longer = more_rounds(p1=-4)
    longer.drafted = 7
    assert "7 tokens per round" in ask(longer).causes[0]


def test_counters_have_the_rounds_of_all_answers_together() -> None:
    whole = sum(len(answer.rounds) for answer in ANSWERS)
    by_counters = {"rounds": {}, "counted_by": "server", "drafted": None}
    assert ask(outcome(total=whole, **by_counters)).passed
    more = ask(outcome(total=whole + 1, **by_counters))
    assert not more.passed
    assert (more.served.rounds, more.other_rounds) == (whole + 1, ())
    apart = ask(outcome(total=whole, parted=parted(0.0001, is_tie=True), **by_counters))
    assert "counters" in apart.sentence


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_other_dtypes_there_are_bounds(dtype: str) -> None:
    few = ask(more_rounds(p1=1, p3=-1, p4=1), dtype=dtype)
    assert (few.passed, few.rule) == (True, "bounds")
    low, high = few.difference_ci95
    assert low < few.served.tau_from_tokens - few.expected.tau_from_tokens < high
    many = outcome()
    many.rounds = {place: round(1.3 * rounds) for place, rounds in many.rounds.items()}
    lost = ask(many, dtype=dtype)
    assert not lost.passed
    assert "beyond 3%" in lost.sentence
    assert lost.causes
    assert ask(outcome(parted=parted(0.1, is_tie=True)), dtype=dtype).passed
    assert not ask(outcome(parted=parted(2.0, is_tie=False)), dtype=dtype).passed
    unknown = ask(outcome(parted=parted(None, is_tie=False)), dtype=dtype)
    assert unknown.passed
    assert "no logits" in unknown.notes[0]


def test_drawn_answers_are_compared_by_their_means() -> None:
    drawn = expected(sampling=Sampling())
    found = outcome()
    found.served = {place: replace(answer, output_ids=answer.output_ids[1:]) for place, answer in found.served.items()}
    checked = ask(found, of=drawn)
    assert (checked.passed, checked.rule, checked.sampled, checked.equal) == (True, "bounds", True, 0)
    found.rounds = {place: 2 * rounds for place, rounds in found.rounds.items()}
    lost = ask(found, of=drawn)
    assert not lost.passed
    assert "probabilistic" in lost.causes[0]
    found.engine = "sglang"
    assert "probabilistic" not in ask(found, of=drawn).causes[0]


def test_too_few_answers_show_nothing() -> None:
    one = expected(answers=ANSWERS[:1], sampling=Sampling())
    found = outcome()
    found.served = {0: found.served[0]}
    assert "too few" in ask(found, of=one).sentence
    assert not ask(outcome(served={}, rounds={}), of=expected(answers=())).passed


def test_prompts_are_taken_of_each_benchmark_in_turns() -> None:
    answers = [
        replace(ANSWERS[0], benchmark=name, prompt=str(at))
        for name, count in (("a", 3), ("b", 1))
        for at in range(count)
    ]
    assert [one.place for one in chosen(answers, 3)] == ["a/0", "b/0", "a/1"]
    assert len(chosen(answers, 99)) == 4
