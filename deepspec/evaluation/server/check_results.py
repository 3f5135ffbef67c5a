"""What `deepspec serve-check` finds, as values. Not here: asking and comparing (check.py), causes (causes.py)."""

from typing import Literal

from deepspec.evaluation.results import Interval, Number
from deepspec.store.records import JsonRecord


class PartedAnswer(JsonRecord):
    """A greedy answer that is another than ours.

    Attributes:
        answer: benchmark, prompt and turn.
        token: where they part, from 0.
        gap: between the server's logits of the two tokens there; None: it does not say them.
        is_tie: whether rounding decides between the two.
    """

    answer: str
    token: int
    gap: Number | None
    is_tie: bool


class OtherRounds(JsonRecord):
    """An equal answer that took another number of rounds than ours.

    Attributes:
        answer: benchmark, prompt and turn.
        expected, served: rounds.
    """

    answer: str
    expected: int
    served: int


class Side(JsonRecord):
    """What one side did for the answers whose rounds are compared.

    Attributes:
        answers: how many.
        tokens: of them.
        rounds: None: not counted.
        tau_from_tokens: (tokens - answers) / rounds.
    """

    answers: int
    tokens: int
    rounds: int | None
    tau_from_tokens: Number | None


class ServedCheck(JsonRecord):
    """Whether a server serves a draft as it was measured.

    Attributes:
        endpoint: its address, without credentials.
        engine, engine_version: what it says it is.
        draft: what it is to serve.
        says: what it says that it serves; None: it does not.
        rule: "equal", greedy in fp32: answers, rounds and τ from tokens have to be ours; else "bounds".
        dtype: what the server computes in, as far as is known here.
        sampled: whether answers are drawn; they are not compared then.
        passed: whether the rule holds.
        sentence: whether it does, and why not.
        causes: what may be wrong, the likeliest first; empty if it passed.
        asked: how many answers.
        equal: how many of them are ours to the last token.
        parted: those that are not.
        failed: why there is no answer, for each prompt without one.
        counted_by: what said how many rounds there were: "round" and "answer", the replies; "server", its counters.
        expected, served: both sides of the answers that end by a stop, and are equal where answers are compared.
        other_rounds: those of them that took another number of rounds; empty by counters.
        difference_ci95: 95 % interval of the difference in τ from tokens, paired by prompt; None: equality is asked, or
            there are too few.
        notes: what has to be known of the numbers.
    """

    endpoint: str
    engine: str
    engine_version: str
    draft: str
    says: str | None
    rule: Literal["equal", "bounds"]
    dtype: str
    sampled: bool
    passed: bool
    sentence: str
    causes: tuple[str, ...]
    asked: int
    equal: int
    parted: tuple[PartedAnswer, ...]
    failed: tuple[str, ...]
    counted_by: Literal["round", "answer", "server"] | None
    expected: Side
    served: Side
    other_rounds: tuple[OtherRounds, ...]
    difference_ci95: Interval | None
    notes: tuple[str, ...]
