"""The rule by which a server serves a draft as it was measured, and whether it holds. Pure, but for variants.

* Greedy, in fp32 on both sides: answers, rounds and τ from tokens are **equal**. A shift of the layers by one costs a
  few per cent of acceptance, and no percentage tells that from luck.
* Otherwise **bounds**: greedy answers part only at ties, and the 95 % interval of the difference in τ from tokens,
  paired by prompt, reaches into ± `MOST_SHARE` of ours. Drawn answers are not compared.

Of answers that were cut off by their length only the tokens are compared: an engine drafts behind the limit, too. What
parts at a tie, which rounding decides, counts neither as an answer nor with its rounds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from deepspec.data.responses.requests import GenerationResult
from deepspec.evaluation.compare.drafts import gain
from deepspec.evaluation.from_tokens import FromTokens
from deepspec.evaluation.kept_answers import KeptAnswer
from deepspec.evaluation.results import Interval
from deepspec.evaluation.server import causes
from deepspec.evaluation.server.check_results import OtherRounds, PartedAnswer, ServedCheck, Side
from deepspec.evaluation.server.expected import Expected, Variant

MOST_SHARE = 0.03
"""Of our τ: a difference that bf16 or luck may make."""
_MOST_TIES = 0.05
"""Of the answers: in fp32 the two best tokens hardly ever tie, and in bf16 often."""
_MOST_LISTED = 20
_TRIED = 12
"""Answers that a mistake is tried on."""

Decode = Callable[[Sequence[KeptAnswer], Variant], Sequence[KeptAnswer] | None]
"""(answers, a mistake) -> what the draft answers with it; None: that cannot be decoded."""


@dataclass(frozen=True)
class Subject:
    """What a server is asked about.

    Attributes:
        draft: the name of what it is to serve.
        digest: of its content; None: it has none.
        says: what the server says that it serves; None: it does not.
        dtype: what it computes in; None: what was expected.
        variants: mistakes to be tried where only rounds differ.
        decode: decodes with one.
    """

    draft: str
    digest: str | None = None
    says: str | None = None
    dtype: str | None = None
    variants: Iterable[Variant] = ()
    decode: Decode = lambda _answers, _variant: None

    @property
    def other(self) -> str | None:
        """What the server says that it serves, if that is another draft: such names end with a digest's beginning."""
        if self.digest is None or self.says is None or " " not in self.says:
            return None
        return None if self.says.endswith(self.digest[:12]) else self.says


@dataclass
class Outcome:
    """What a server did with what it was asked. Answers are known by their place among those expected.

    Attributes:
        endpoint, engine, engine_version: what was asked.
        served: its answers.
        failed: why there is no answer.
        parted: greedy answers that are not ours.
        rounds: behind each answer, where replies say it.
        total: behind all answers whose rounds are compared, where only counters say it.
        counted_by: which of the two.
        silent: why no rounds are known.
        drafts: False: it decodes without a draft.
        drafted: tokens per round.
        notes: what has to be known of the numbers.
    """

    endpoint: str = ""
    engine: str = ""
    engine_version: str = ""
    served: dict[int, GenerationResult] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    parted: dict[int, PartedAnswer] = field(default_factory=dict)
    rounds: dict[int, int] = field(default_factory=dict)
    total: int | None = None
    counted_by: Literal["round", "answer", "server"] | None = None
    silent: str | None = None
    drafts: bool = True
    drafted: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sides:
    """Both sides of the answers whose rounds are compared: (tokens that came from rounds, rounds) by place.

    Attributes:
        ours, theirs: what is counted by answer.
        total: their rounds together, by the server's counters.
        missing: answers that end by a stop, and are in neither: they part, or there is none.
    """

    ours: dict[int, tuple[int, int]]
    theirs: dict[int, tuple[int, int]]
    total: int | None
    missing: int = 0

    def side(self, counts: dict[int, tuple[int, int]], rounds: int | None) -> Side:
        tokens = sum(of_answer for of_answer, _ in counts.values())
        tau = tokens / rounds if rounds else None
        return Side(answers=len(counts), tokens=tokens + len(counts), rounds=rounds, tau_from_tokens=tau)

    @property
    def expected(self) -> Side:
        return self.side(self.ours, sum(rounds for _, rounds in self.ours.values()))

    @property
    def served(self) -> Side:
        known = sum(rounds for _, rounds in self.theirs.values()) if self.total is None else self.total
        return self.side(self.theirs, known or None)


def judged(expected: Expected, outcome: Outcome, subject: Subject) -> ServedCheck:
    """What a server did, by the rule."""
    sampled = not expected.sampling.greedy
    dtype = subject.dtype or expected.dtype
    equality = not sampled and dtype == expected.dtype == "float32"
    sides = _sampled_sides(expected, outcome) if sampled else _sides(expected, outcome)
    others = [] if sampled or outcome.counted_by == "server" else _other_rounds(expected, sides)
    problems = _problems(outcome, sides, len(expected.answers))
    interval = None
    if not problems or not outcome.silent:
        if equality:
            problems += _unequal(outcome, sides)
        else:
            found, interval = _beyond(expected, outcome, sides)
            problems += found
    known = [] if not problems else _causes(expected, outcome, subject, sides, sampled=sampled, dtype=dtype)
    return ServedCheck(
        endpoint=outcome.endpoint,
        engine=outcome.engine,
        engine_version=outcome.engine_version,
        draft=subject.draft,
        says=subject.says,
        rule="equal" if equality else "bounds",
        dtype=dtype,
        sampled=sampled,
        passed=not problems,
        sentence=" ".join(["Not served as measured:", *problems]) if problems else _passed(sides, interval),
        causes=tuple(known),
        asked=len(expected.answers),
        equal=0 if sampled else len(outcome.served) - len(outcome.parted),
        parted=tuple(outcome.parted.values())[:_MOST_LISTED],
        failed=tuple(outcome.failed[:_MOST_LISTED]),
        counted_by=outcome.counted_by,
        expected=sides.expected,
        served=sides.served,
        other_rounds=tuple(others[:_MOST_LISTED]),
        difference_ci95=interval,
        notes=tuple(outcome.notes),
    )


def _sides(expected: Expected, outcome: Outcome) -> _Sides:
    both = {
        place: answer
        for place, answer in enumerate(expected.answers)
        if answer.finish_reason == "stop" and place in outcome.served and place not in outcome.parted
    }
    ours = {place: (len(answer.output_ids) - 1, len(answer.rounds)) for place, answer in both.items()}
    theirs = {place: (ours[place][0], outcome.rounds.get(place, 0)) for place in both}
    stopped = sum(answer.finish_reason == "stop" for answer in expected.answers)
    return _Sides(ours, theirs, outcome.total, stopped - len(both))


def _sampled_sides(expected: Expected, outcome: Outcome) -> _Sides:
    """Both of what ended by a stop; by counters all of theirs, for these cannot be told apart."""
    ours = {
        place: (len(answer.output_ids) - 1, len(answer.rounds))
        for place, answer in enumerate(expected.answers)
        if answer.finish_reason == "stop"
    }
    theirs = {
        place: (len(answer.output_ids) - 1, outcome.rounds.get(place, 0))
        for place, answer in outcome.served.items()
        if answer.finish_reason == "stop" or outcome.total is not None
    }
    return _Sides(ours, theirs, outcome.total)


def _problems(outcome: Outcome, sides: _Sides, asked: int) -> list[str]:
    """Why there is nothing to compare, or not everything."""
    found = []
    if outcome.failed:
        found.append(f"{len(outcome.failed)} of {asked} prompts have no answer; the first: {_ended(outcome.failed[0])}")
    if outcome.silent is not None:
        found.append(f"No rounds are known: {_ended(outcome.silent)}")
    elif not sides.theirs or not sides.ours:
        found.append("No answer that ends by a stop could be compared.")
    return found


def _unequal(outcome: Outcome, sides: _Sides) -> list[str]:
    found = []
    apart = [one for one in outcome.parted.values() if not one.is_tie]
    if apart:
        first = apart[0]
        found.append(
            f"{len(apart)} of {len(outcome.served)} answers are not ours; the first, {first.answer}, parts at token"
            f" {first.token + 1}."
        )
    ties = len(outcome.parted) - len(apart)
    if ties > max(1.0, _MOST_TIES * len(outcome.served)):
        found.append(f"{ties} of {len(outcome.served)} answers part at ties, more than rounding in fp32 makes.")
    ours, theirs = sides.expected, sides.served
    if outcome.total is not None and sides.missing:
        found.append("Rounds of equal answers alone are not known by counters.")
    elif ours.answers and ours.rounds != theirs.rounds:
        found.append(
            f"{ours.answers} equal answers took {theirs.rounds} rounds, and {ours.rounds} when it was measured."
        )
    elif ours.answers and sides.total is None and sides.ours != sides.theirs:
        found.append(f"{ours.answers} equal answers took as many rounds together, but not each.")
    return found


def _beyond(expected: Expected, outcome: Outcome, sides: _Sides) -> tuple[list[str], Interval | None]:
    """Where the bounds are left; and the interval of the difference, if it is paired."""
    found = []
    apart = [one for one in outcome.parted.values() if not one.is_tie and one.gap is not None]
    if apart:
        found.append(
            f"{len(apart)} of {len(outcome.served)} greedy answers part where it is no tie; the first,"
            f" {apart[0].answer}, at token {apart[0].token + 1} by {apart[0].gap:.2f}."
        )
    if any(one.gap is None for one in outcome.parted.values()):
        outcome.notes.append("the server says no logits: whether answers part at ties is not known")
    ours, theirs = sides.expected.tau_from_tokens, sides.served.tau_from_tokens
    if ours is None or theirs is None:
        return found, None
    most = MOST_SHARE * ours
    if sides.total is None:
        pairs = [_by_prompt(expected, counts) for counts in (sides.theirs, sides.ours)]
        difference = gain(*pairs)
        interval = None if difference is None else difference.interval()
    else:
        whole = FromTokens.of({str(place): [counts] for place, counts in sides.ours.items()}).interval
        interval = None if whole is None else (theirs - whole[1], theirs - whole[0])
    if interval is None:
        return [*found, f"{len(sides.ours)} answers are too few to compare τ."], None
    if interval[0] > most or interval[1] < -most:
        found.append(
            f"τ from tokens is {theirs:.3f}, and {ours:.3f} when it was measured: the difference, {interval[0]:+.3f} to"
            f" {interval[1]:+.3f}, is beyond {MOST_SHARE:.0%}."
        )
    return found, interval


def _by_prompt(expected: Expected, counts: dict[int, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for place, (tokens, rounds) in counts.items():
        answer = expected.answers[place]
        name = f"{answer.benchmark}/{answer.prompt}"
        before = found.get(name, (0, 0))
        found[name] = (before[0] + tokens, before[1] + rounds)
    return found


def _other_rounds(expected: Expected, sides: _Sides) -> list[OtherRounds]:
    return [
        OtherRounds(answer=expected.answers[place].place, expected=ours, served=sides.theirs[place][1])
        for place, (_, ours) in sides.ours.items()
        if sides.theirs[place][1] != ours
    ]


def _causes(
    expected: Expected, outcome: Outcome, subject: Subject, sides: _Sides, *, sampled: bool, dtype: str
) -> list[str]:
    found = causes.without_rounds(outcome.failed, outcome.engine, drafts=outcome.drafts, known=outcome.silent is None)
    if subject.other is not None:
        found = [f"The server says that it serves {subject.other}, and not {subject.draft}.", *found]
    if not sampled:
        apart = [one for one in outcome.parted.values() if not one.is_tie]
        found += causes.of_answers(apart, len(outcome.served), dtype)
        if not apart and len(outcome.parted) > 1 and dtype == "float32":
            found.append(causes.OTHERWISE.format(dtype))
    if outcome.silent is not None or (outcome.parted and found):
        return found
    if outcome.drafted is not None and outcome.drafted != expected.num_draft_tokens:
        measured = expected.num_draft_tokens
        return [*found, f"It drafts {outcome.drafted} tokens per round, and the draft was measured with {measured}."]
    ours, theirs = sides.expected.rounds, sides.served.rounds
    if ours and theirs and (sampled or ours != theirs or (sides.total is None and sides.ours != sides.theirs)):
        exact = None if sampled else _tried(expected, subject, sides)
        found += causes.of_drawing(outcome.engine) if sampled and ours < theirs else []
        found += [exact] if exact is not None else causes.of_rounds(sides.expected, sides.served)
    return found


def _tried(expected: Expected, subject: Subject, sides: _Sides) -> str | None:
    """The mistake with which our own decoding takes exactly the server's rounds."""
    by_answer = sides.total is None
    places = [place for place in sides.ours if not by_answer or sides.ours[place] != sides.theirs[place]]
    places = (places + [place for place in sides.ours if place not in places])[: _TRIED if by_answer else None]
    answers = [expected.answers[place] for place in places]
    for variant in subject.variants:
        decoded = subject.decode(answers, variant)
        if decoded is None:
            continue
        rounds = [len(answer.rounds) for answer in decoded]
        theirs = [sides.theirs[place][1] for place in places]
        if rounds == theirs if by_answer else sum(rounds) == sides.total:
            return variant.cause
    return None


def _passed(sides: _Sides, interval: Interval | None) -> str:
    ours, theirs = sides.expected, sides.served
    if interval is None:
        equal = f"{ours.answers} answers, {ours.rounds} rounds and τ from tokens {ours.tau_from_tokens:.3f} are equal"
        return f"Served as measured: {equal}."
    return (
        f"Served within bounds: τ from tokens is {theirs.tau_from_tokens:.3f}, and {ours.tau_from_tokens:.3f} when it"
        f" was measured; the difference is {interval[0]:+.3f} to {interval[1]:+.3f}."
    )


def _ended(words: str) -> str:
    return f"{words.rstrip('.')}."
