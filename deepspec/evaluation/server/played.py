"""What a server answered to a benchmark, and acceptance by it.

    by_replies     each answer says its rounds: others may use the server meanwhile
    compared       the server's counters, with what was asked of it: no other client may use it

Not here: asking (measure.py), reading replies and counters (replies.py, counters.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deepspec.data.responses.requests import GenerationResult
from deepspec.errors import MeasurementError
from deepspec.evaluation.metrics import length_interval, mean
from deepspec.evaluation.results import LostTurn
from deepspec.evaluation.server import replies
from deepspec.evaluation.server.counters import Counted
from deepspec.evaluation.server.replies import AnswerRounds, Measured
from deepspec.evaluation.server.results import ServedBenchmark, ServedMean


@dataclass
class Played:
    """One benchmark, answered.

    Attributes:
        answers: of all its turns.
        by_prompt: the same by the first turn's id; which place that has is in `places`.
        answered: prompts that were answered to the last turn.
    """

    answers: list[GenerationResult] = field(default_factory=list)
    by_prompt: dict[str, list[GenerationResult]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    failed: list[LostTurn] = field(default_factory=list)
    skipped: list[LostTurn] = field(default_factory=list)
    num_requests: int = 0
    seconds: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Of all answers."""
        return sum(len(answer.output_ids) for answer in self.answers)

    def say_rounds(self) -> bool:
        """Whether every answer says the rounds behind it."""
        return bool(self.answers) and all(replies.answer_rounds(answer) is not None for answer in self.answers)


def why_not_by_replies(played: Played) -> str | None:
    """Why rounds are not counted by the replies, in a sentence; "" where no reply says any, None if they are."""
    if not any(answer.reported is not None for answer in played.answers):
        return None if played.say_rounds() else ""
    silent = sum(replies.answer_rounds(answer) is None for answer in played.answers)
    if silent:
        return (
            f"{silent} of {len(played.answers)} replies do not say the rounds behind an answer as token ids: counted by"
            " the server"
        )
    flaws = [(prompt, found.flaw) for prompt, answers in _rounds(played).items() for found in answers if found.flaw]
    if not flaws:
        return None
    prompt, flaw = flaws[0]
    return (
        f"what {len(flaws)} of {len(played.answers)} replies say of their rounds cannot be (the first,"
        f" {played.places[prompt]}: {flaw}): counted by the server"
    )


def by_replies(played: Played) -> tuple[Measured, list[str]]:
    """Acceptance by the replies, all of which say their rounds without a flaw; and notes to show with it."""
    prompts = list(_rounds(played).values())
    undrafted = sum(answer.undrafted for answers in prompts for answer in answers)
    said = (
        f"{undrafted} of {played.num_tokens} tokens are from no round that the server lists: nothing was drafted there"
    )
    return replies.acceptance(prompts), [said] if undrafted else []


def mean_of(
    names: Sequence[str], benchmarks: Mapping[str, ServedBenchmark], measured: Mapping[str, Measured | None]
) -> ServedMean:
    """The plain mean over benchmarks; with intervals where each was measured by replies.

    Args:
        names: of these benchmarks.
        benchmarks: what is said of each.
        measured: what was measured by its replies; None: counted by the server, or not at all.
    """
    own = [found for name in names if (found := measured[name]) is not None]
    whole = len(own) == len(names)
    stopped = [one.from_tokens.sums_P2 for one in own if one.from_tokens.tau is not None]
    committed = [one.committed_P2 for one in own if one.committed_P2[:, 1].any()]
    return ServedMean(
        tau_from_tokens=mean([benchmarks[name].tau_from_tokens for name in names]),
        tau_from_tokens_ci95=length_interval(stopped) if whole else None,
        tau=mean([benchmarks[name].tau for name in names]),
        tau_ci95=length_interval(committed) if whole else None,
    )


def compared(counted: Counted, played: Played, num_lost: int, max_new_tokens: int) -> list[str]:
    """Whether the server did what it was asked for, and nothing else.

    Returns:
        Notes to show with the numbers.

    Raises:
        MeasurementError: others were answered as well.
    """
    spare = num_lost + len(played.failed)  # worked on, perhaps, without an answer that counts here
    notes = []
    if spare:
        notes.append(
            f"{spare} attempts brought no answer; what the server did for them may be in its counters, and their"
            " prompts in there twice"
        )
    if counted.answers is None and counted.tokens is None:
        return [*notes, "the server counts neither answers nor tokens: other clients' could not be excluded"]
    extra_answers = 0 if counted.answers is None else counted.answers - len(played.answers)
    if not 0 <= extra_answers <= spare:
        raise _used_by_others(f"finished {counted.answers} answers", f"{len(played.answers)} of them")
    if counted.tokens is None:
        return notes
    if any(answer.ids_from == "text" for answer in played.answers):
        return [*notes, "the server said its answers as text: its tokens could not be compared with ours"]
    extra_tokens = counted.tokens - played.num_tokens
    if not extra_tokens:
        return notes
    # Whether the token that ends an answer is counted is not the same everywhere.
    ends = sum(answer.finish_reason == "stop" for answer in played.answers)
    if not -ends <= extra_tokens <= ends + spare * max_new_tokens:
        raise _used_by_others(f"generated {counted.tokens} tokens", f"{played.num_tokens} of them")
    return [*notes, f"the server generated {counted.tokens} tokens, and our answers have {played.num_tokens}"]


def _rounds(played: Played) -> dict[str, list[AnswerRounds]]:
    return {
        prompt: [found for answer in answers if (found := replies.answer_rounds(answer)) is not None]
        for prompt, answers in played.by_prompt.items()
    }


def _used_by_others(did: str, ours: str) -> MeasurementError:
    return MeasurementError(
        f"The server {did}, and only {ours} were ours: others used it.",
        remedy="Measure while no one else uses the server, or let its replies say their rounds: start vLLM with"
        " --per-request-spec-decode-metrics detailed.",
    )
