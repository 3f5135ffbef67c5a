"""Acceptance from what a server's replies say of their own rounds: others may use the server meanwhile.

An engine counts before it cuts an answer at its end. Where a reply lists its rounds one by one, the last one is put
right exactly, for an answer that ended by itself: its tokens say how many of that round they are. If these are no more
than the accepted ones, the answer's end was drafted, and the round is counted as in process: proposed up to there, no
bonus token. Sums without a list say too much for that: `tau_from_tokens` is exact of them as well, positions are not.
What was cut off at its limit is counted as the engine does, and so it is in process.

Not here: reading replies (deepspec.data.responses.reported_rounds), counters of a whole server (counters.py).

Legend: K draft positions, P prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepspec.data.responses.reported_rounds import ReportedRounds
from deepspec.data.responses.requests import GenerationResult
from deepspec.evaluation.from_tokens import FromTokens
from deepspec.evaluation.intervals import Floats
from deepspec.evaluation.metrics import RoundTable, length_interval, summary
from deepspec.evaluation.server import counters
from deepspec.evaluation.server.counters import Counted
from deepspec.evaluation.server.results import ServedAcceptance


@dataclass(frozen=True)
class AnswerRounds:
    """The rounds behind one answer.

    Attributes:
        tokens: of the answer.
        stopped: whether it ended by itself.
        rounds: in which something was drafted.
        proposed, accepted: as the engine counts them.
        histogram: rounds by accepted tokens, as the engine counts them.
        listed: (proposed, accepted, committed) of each round, as in process; None: only sums are known.
        undrafted: tokens that came neither with the prompt nor from a round.
        flaw: why all of this cannot be; "" if it can.
    """

    tokens: int
    stopped: bool
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    histogram: tuple[int, ...] = ()
    listed: tuple[tuple[int, int, int], ...] | None = ()
    undrafted: int = 0
    flaw: str = ""

    @property
    def from_rounds(self) -> int:
        """Tokens that came from rounds, of an answer that ended by itself."""
        return self.tokens - 1 - self.undrafted


@dataclass(frozen=True)
class Measured:
    """Acceptance of a benchmark, and what means over benchmarks need of it.

    Attributes:
        acceptance: of the benchmark.
        committed_P2: committed tokens and rounds of each prompt.
        from_tokens: of its answers that ended by themselves.
    """

    acceptance: ServedAcceptance
    committed_P2: Floats
    from_tokens: FromTokens


def answer_rounds(answer: GenerationResult) -> AnswerRounds | None:
    """The rounds behind an answer; None where the server does not say them, or says the answer only as text."""
    tokens, stopped, said = len(answer.output_ids), answer.finish_reason == "stop", answer.reported
    return None if said is not None and answer.ids_from == "text" else rounds_behind(tokens, said, stopped=stopped)


def rounds_behind(tokens: int, said: ReportedRounds | None, *, stopped: bool) -> AnswerRounds | None:
    """The same where only the number of tokens is known.

    Args:
        tokens: of the answer, by the engine.
        said: what the reply says of its rounds; None: nothing.
        stopped: whether it ended by itself.
    """
    if said is None:
        return AnswerRounds(tokens, stopped) if tokens == 1 else None  # it came with the prompt: SGLang says nothing
    sums = (tokens, stopped, said.rounds, said.proposed, said.accepted, said.histogram)
    needed, given = tokens - 1, said.rounds + said.accepted
    behind_the_end = given - needed
    last = said.steps[-1][1] if said.steps else _most_accepted(said.histogram, said.accepted)
    flaw = said.flaw
    if not flaw and behind_the_end > last:
        # At least the last round has a token in the answer.
        flaw = f"{said.rounds} rounds with {said.accepted} accepted tokens give more than its {tokens} tokens"
    undrafted = max(-behind_the_end, 0)
    if flaw or (said.steps is None and said.rounds):
        return AnswerRounds(*sums, None, undrafted, flaw)
    return AnswerRounds(*sums, _as_in_process(said.steps or (), max(behind_the_end, 0) if stopped else 0), undrafted)


def acceptance(prompts: Sequence[Sequence[AnswerRounds]]) -> Measured:
    """Acceptance over the answers to several prompts, none of which has a flaw.

    Args:
        prompts: of each prompt, what its answers came from.
    """
    answers = [answer for of_prompt in prompts for answer in of_prompt]
    exact = FromTokens.of(
        {
            str(index): [(answer.from_rounds, answer.rounds) for answer in of_prompt if answer.stopped]
            for index, of_prompt in enumerate(prompts)
        }
    )
    if all(answer.listed is not None for answer in answers):
        table = RoundTable.of([[one for answer in of_prompt for one in answer.listed or ()] for of_prompt in prompts])
        found, committed_P2 = _by_round(table, answers), table.per_prompt()
    else:
        sums = [[(one.rounds + one.accepted, one.rounds) for one in of_prompt] for of_prompt in prompts if of_prompt]
        committed_P2 = np.asarray([np.sum(of_prompt, axis=0) for of_prompt in sums], dtype=np.float64).reshape(-1, 2)
        found = _by_answer(answers)
    exactly = {
        "tau_from_tokens": exact.tau,
        "tau_from_tokens_ci95": exact.interval,
        "tau_from_tokens_answers": exact.answers,
        "tau_ci95": length_interval([committed_P2]) if committed_P2[:, 1].any() else None,
    }
    return Measured(found.model_copy(update=exactly), committed_P2, exact)


def _as_in_process(steps: tuple[tuple[int, int], ...], behind_the_end: int) -> tuple[tuple[int, int, int], ...]:
    rounds = [(proposed, accepted, accepted + 1) for proposed, accepted in steps]
    if rounds and behind_the_end:
        kept = rounds[-1][2] - behind_the_end
        rounds[-1] = (kept, kept, kept)
    return tuple(rounds)


def _by_round(table: RoundTable, answers: Sequence[AnswerRounds]) -> ServedAcceptance:
    most = max((proposed for answer in answers for proposed, _, _ in answer.listed or ()), default=0)
    found = summary(table, most)
    return counters.acceptance(
        Counted(
            rounds=found.rounds,
            proposed=sum(answer.proposed for answer in answers),
            accepted=sum(answer.accepted for answer in answers),
            accepted_at=(),
            tokens=None,
            answers=None,
        )
    ).model_copy(update={**found.model_dump(exclude={"prompts"}), "counted_by": "round" if found.rounds else None})


def _by_answer(answers: Sequence[AnswerRounds]) -> ServedAcceptance:
    most = max((len(answer.histogram) for answer in answers), default=0) - 1
    at_least = tuple(sum(sum(answer.histogram[k:]) for answer in answers) for k in range(1, most + 1))
    found = counters.acceptance(
        Counted(
            rounds=sum(answer.rounds for answer in answers),
            proposed=sum(answer.proposed for answer in answers),
            accepted=sum(answer.accepted for answer in answers),
            accepted_at=at_least,
            tokens=None,
            answers=None,
        )
    )
    return found.model_copy(update={"counted_by": "answer"})


def _most_accepted(histogram: Sequence[int], accepted: int) -> int:
    """The most tokens that one round accepted, where rounds are not listed."""
    return max((at for at, count in enumerate(histogram) if count), default=accepted)
