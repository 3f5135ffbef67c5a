"""Asks a server for answers that are known, and says whether it serves the draft as it was measured.

    check(expected, server, …) ──► Outcome ──► judged     the rule, and whether it holds
                                                  └──► causes     what may be wrong

What ends by a stop is asked first, with its rounds: by each reply, and then others may use the server meanwhile, or by
the server's counters. What is cut off by its length is asked for its tokens alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from urllib.parse import urlsplit

from deepspec.data.responses.endpoint_pool import Endpoints
from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.data.responses.requests import GenerationRequest, GenerationResult
from deepspec.decoding.random import derive_seed
from deepspec.errors import DeepspecError, MeasurementError
from deepspec.evaluation.results import LostTurn
from deepspec.evaluation.server import counters, gaps, replies
from deepspec.evaluation.server.asked import Pace, Server, endpoints_of
from deepspec.evaluation.server.check_results import PartedAnswer, ServedCheck
from deepspec.evaluation.server.counters import Reading, ServerMetrics
from deepspec.evaluation.server.expected import Expected
from deepspec.evaluation.server.judged import Outcome, Subject, judged
from deepspec.evaluation.server.played import Played, compared, why_not_by_replies
from deepspec.progress import SILENT, Progress

_MOST_GAPS = 16
"""Answers that part whose logits are asked for: more are no matter of rounding."""


def check(
    expected: Expected,
    server: Server,
    vocabulary: Vocabulary,
    subject: Subject,
    *,
    pace: Pace | None = None,
    progress: Progress = SILENT,
) -> ServedCheck:
    """Ask a server for answers that are known, and compare.

    Args:
        expected: the answers, with their rounds.
        server: where the target is served with the draft.
        vocabulary: the target's.
        subject: the draft, and the mistakes to try when the server differs.
        pace: of reading counters, where replies say nothing of rounds.
        progress: advances by prompts.

    Raises:
        DataError: the server serves another model, has too short a context, or refuses the key.
        TransientError: the server cannot be reached, or ended in the middle.
    """
    longest = max((len(answer.prompt_ids) for answer in expected.answers), default=0) + expected.max_new_tokens
    progress.start(len(expected.answers), "prompts")
    with (
        endpoints_of(server, vocabulary, expected.sampling, longest) as endpoints,
        ServerMetrics(server.url, api_key=server.api_key) as metrics,
    ):
        outcome = _Asking(expected, endpoints, metrics, pace or Pace(), progress).outcome()
        outcome.endpoint = urlsplit(server.url).netloc.rpartition("@")[2]
        outcome.engine, outcome.engine_version = endpoints.engine
        (model,) = endpoints.served_names
    if expected.sampling.greedy:
        tie = gaps.TIES.get(subject.dtype or expected.dtype, 0.0)
        outcome.parted = _parted(expected, outcome, server, model, tie)
    return judged(expected, outcome, subject)


@dataclass
class _Asking:
    """Asks, and notes what comes."""

    expected: Expected
    endpoints: Endpoints
    metrics: ServerMetrics
    pace: Pace
    progress: Progress

    def outcome(self) -> Outcome:
        """Ask everything; of drawn answers it is not known which will end by a stop."""
        found, answers = Outcome(), list(enumerate(self.expected.answers))
        greedy = self.expected.sampling.greedy
        first = [one for one in answers if one[1].finish_reason == "stop" or not greedy]
        lost, before = self.endpoints.num_lost, self.metrics.read_or_why_not()
        played = self._play(first, found)
        why_not = why_not_by_replies(played)
        if played.answers and why_not is None:
            self._by_replies(found)
        elif played.answers:
            found.notes += [why_not] if why_not else []
            self._by_counters(before, played, found, self.endpoints.num_lost - lost)
        self._play([one for one in answers if one not in first], found)
        return found

    def _by_replies(self, found: Outcome) -> None:
        known = {
            place: one for place, answer in found.served.items() if (one := replies.answer_rounds(answer)) is not None
        }
        found.rounds = {place: one.rounds for place, one in known.items()}
        found.counted_by = "round" if all(one.listed is not None for one in known.values()) else "answer"
        drafted = [one.proposed / one.rounds for one in known.values() if one.rounds]
        if not drafted:
            found.silent, found.counted_by = "the replies have no round of speculative decoding", None
            found.drafts = False
        else:
            found.drafted = round(max(drafted))
        undrafted = sum(one.undrafted for one in known.values())
        if undrafted:
            found.notes.append(f"{undrafted} tokens are from no round that the server lists: nothing was drafted there")

    def _by_counters(self, before: Reading | DeepspecError, played: Played, found: Outcome, num_lost: int) -> None:
        try:
            if isinstance(before, DeepspecError):
                raise before
            after = counters.idle_reading(
                self.metrics.read, idle_seconds=self.pace.idle_seconds, limit_seconds=self.pace.limit_seconds
            )
            counted = counters.difference(before, after)
            found.notes += compared(counted, played, num_lost, self.expected.max_new_tokens)
        except MeasurementError as error:
            found.silent = error.what.rstrip(".")
            return
        found.silent = after.reason or (None if counted.rounds else counters.NO_ROUNDS)
        found.drafts = found.silent not in (counters.NO_ROUNDS, counters.NO_COUNTERS)
        if found.silent is None:
            found.total, found.counted_by = counted.rounds, "server"

    def _play(self, answers: Sequence[tuple[int, "object"]], found: Outcome) -> Played:
        played, waiting, places = Played(), [place for place, _ in reversed(answers)], {}

        def next_request() -> GenerationRequest | None:
            if not waiting:
                return None
            place = waiting.pop()
            answer = self.expected.answers[place]
            name = f"{answer.prompt}-{place}"
            places[name] = place
            played.num_requests += 1
            seed = derive_seed(self.expected.sampling.seed, answer.prompt)
            return GenerationRequest(name, answer.prompt_ids, self.expected.max_new_tokens, seed)

        for result in self.endpoints.generate(next_request):
            place = places[result.id]
            words = self.expected.answers[place].place
            if isinstance(result, GenerationResult):
                found.served[place] = result
                played.answers.append(result)
                played.by_prompt[result.id] = [result]
                played.places[result.id] = words
            else:
                found.failed.append(f"{words}: {result.reason} ({result.words})")
                played.failed.append(LostTurn(prompt=result.id, place=words, reason=result.reason))
            self.progress.advance()
        return played


def _parted(expected: Expected, outcome: Outcome, server: Server, model: str, tie: float) -> dict[int, PartedAnswer]:
    """The greedy answers that are not ours, and whether rounding decided."""
    found: dict[int, PartedAnswer] = {}
    for place, answer in enumerate(expected.answers):
        served = outcome.served.get(place)
        if served is None or served.output_ids == answer.output_ids:
            continue
        pairs = enumerate(zip_longest(answer.output_ids, served.output_ids))
        token, (ours, theirs) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
        gap = None
        if ours is not None and theirs is not None and len(found) < _MOST_GAPS:
            prefix = (*answer.prompt_ids, *answer.output_ids[:token])
            gap = gaps.gap(server.url, model, prefix, ours, theirs, server.api_key)
        is_tie = gap is not None and abs(gap) <= tie
        found[place] = PartedAnswer(answer=answer.place, token=token, gap=gap, is_tie=is_tie)
    return found
