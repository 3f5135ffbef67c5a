"""Plays the recipe's benchmarks through a server: the same prompts, sampling and seeds as in process.

    document = measure(recipe.evaluate, Server(url, …), renderer=…, vocabulary=…, context=…)

Acceptance comes from the replies where each says the rounds behind its answer (replies.py): then others may use the
server, too. Else it comes from the server's own counters (counters.py), as differences around each benchmark, and no
other client may use it meanwhile: its tokens and answers are compared with those that were asked for. Engine and
version are recorded, because the same draft's acceptance changes with them. What was not counted is None, and
`not_measured` says why.

Greedy answers are the target's, here as there (to the rounding of its kernels); sampled ones are drawn by the engine's
own generator, so that of these only means can be compared.

Later turns stand behind the server's own answers.

Not here: what is asked of the server and what its replies mean (deepspec.data.responses.endpoint_pool), tables.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deepspec.data.responses.endpoint_pool import Endpoints
from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.data.responses.requests import GenerationRequest, GenerationResult
from deepspec.errors import DeepspecError, MeasurementError, RecipeError, TransientError
from deepspec.evaluation.answering import requests_for
from deepspec.evaluation.config import Config, domains_of
from deepspec.evaluation.prompts.selection import (
    EncodedPrompt,
    EncodedPrompts,
    Skipped,
    answer_message,
    encode,
    encode_turn,
    num_turns,
    select,
)
from deepspec.evaluation.results import LostTurn
from deepspec.evaluation.server import counters
from deepspec.evaluation.server.asked import Pace, Server, endpoints_of
from deepspec.evaluation.server.counters import Reading, ServerMetrics
from deepspec.evaluation.server.played import Played, by_replies, compared, mean_of, why_not_by_replies
from deepspec.evaluation.server.replies import Measured
from deepspec.evaluation.server.results import (
    ServedAcceptance,
    ServedBenchmark,
    ServedDomain,
    ServedEvaluation,
)
from deepspec.progress import SILENT, Progress

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer

logger = logging.getLogger(__name__)


def measure(
    config: Config,
    server: Server,
    *,
    renderer: "Renderer",
    vocabulary: Vocabulary,
    context: int,
    system_prompt: str | None = None,
    pace: Pace | None = None,
    progress: Progress = SILENT,
) -> ServedEvaluation:
    """Measure a server on the recipe's benchmarks.

    Args:
        config: the recipe's section `evaluate`.
        server: where the target is served.
        renderer: the target's tokenizer and chat format.
        vocabulary: the target's.
        context: positions that the target has.
        system_prompt: `data.system_prompt`.
        pace: of reading counters.
        progress: advances by prompts.

    Raises:
        RecipeError: the recipe has no benchmarks.
        DataError: a benchmark is unusable, the server serves another model, has too short a context, or refuses the
            key.
        MeasurementError: others use the server before anything is asked.
        TransientError: the server cannot be reached.
    """
    if not config.benchmarks:
        raise RecipeError(
            "The recipe has no benchmarks to measure on.",
            where="evaluate.benchmarks",
            remedy="Name some, e.g. --set 'evaluate.benchmarks=[gsm8k]'.",
        )
    pace = pace or Pace()
    prompts = {}
    for name, benchmark in sorted(config.benchmarks.items()):
        selected = select(name, benchmark, seed=config.seed, system_prompt=system_prompt)
        prompts[name] = encode(name, selected, renderer, context=context, max_skipped_share=config.max_skipped_share)
    progress.start(sum(len(encoded.prompts) for encoded in prompts.values()), "prompts")
    with (
        endpoints_of(server, vocabulary, config.sampling, _longest(config, prompts, context)) as endpoints,
        ServerMetrics(server.url, api_key=server.api_key) as metrics,
    ):
        player = _Player(config, endpoints, metrics, context, renderer, pace)
        player.warm_up([prompt for encoded in prompts.values() for prompt in encoded.prompts])
        benchmarks, measured, problems = {}, {}, []
        for name, encoded in prompts.items():
            benchmarks[name], measured[name], found = player.benchmark(name, encoded, progress)
            problems += found
        engine, version = endpoints.engine
    return ServedEvaluation(
        endpoint=urlsplit(server.url).netloc.rpartition("@")[2],
        engine=engine,
        engine_version=version,
        concurrency=server.concurrency,
        benchmarks=benchmarks,
        domains={
            domain: ServedDomain(benchmarks=tuple(names), **dict(mean_of(names, benchmarks, measured)))
            for domain, names in sorted(domains_of(config.benchmarks).items())
        },
        macro=mean_of(list(benchmarks), benchmarks, measured),
        problems=tuple(problems),
    )


@dataclass
class _Player:
    """Asks, and reads the counters around it."""

    config: Config
    endpoints: Endpoints
    metrics: ServerMetrics
    context: int
    renderer: "Renderer"
    pace: Pace
    gone: str | None = None

    def warm_up(self, prompts: Sequence[EncodedPrompt]) -> None:
        """Ask for a few answers that do not count, so that no benchmark pays for first calls.

        Where these do not say their rounds, the server has to be idle.
        """
        played = Played()
        self._play(prompts[: self.config.num_warmup_prompts], played, SILENT)
        if played.answers and not played.say_rounds():
            self._idle_reading()

    def benchmark(
        self, name: str, encoded: EncodedPrompts, progress: Progress
    ) -> tuple[ServedBenchmark, Measured | None, list[str]]:
        """What is said of one benchmark, what means need of it (None: by counters), and what is wrong with it."""
        played, measured = Played(), None
        notes: list[str] = []
        problems: list[str] = []
        try:
            if self.gone is not None:
                raise TransientError(self.gone, remedy="Check that the server runs.")
            lost, before = self.endpoints.num_lost, self.metrics.read_or_why_not()
            self._play(encoded.prompts, played, progress)
            why_not = why_not_by_replies(played)
            if why_not is None:
                measured, notes = by_replies(played)
                found = measured.acceptance
            else:
                notes = [why_not] if why_not else []
                found = self._by_counters(before, played, self.endpoints.num_lost - lost, notes)
        except (MeasurementError, TransientError) as error:
            found = counters.not_measured(error.what)
            problems.append(f"benchmark {name}: {error}")
            if isinstance(error, TransientError):
                self.gone = error.what
        total = len(encoded.prompts)
        if played.failed and (len(played.failed) > self.config.max_skipped_share * total or not played.answered):
            problems.append(
                f"benchmark {name}: {len(played.failed)} of {total} prompts failed; the first,"
                f" {played.failed[0].place}: {played.failed[0].reason}"
            )
        benchmark = ServedBenchmark(
            domain=self.config.benchmarks[name].domain_of(name),
            prompts=len(played.answered),
            requests=played.num_requests,
            tokens=played.num_tokens,
            stopped=sum(answer.finish_reason == "stop" for answer in played.answers),
            seconds=played.seconds,
            tokens_per_second=played.num_tokens / played.seconds if played.seconds else None,
            skipped=(*encoded.skipped, *played.skipped),
            failed=tuple(played.failed),
            notes=tuple(notes),
            **dict(found),
        )
        return benchmark, measured, problems

    def _by_counters(
        self, before: Reading | DeepspecError, played: Played, num_lost: int, notes: list[str]
    ) -> ServedAcceptance:
        """Acceptance by the server's counters; what has to be known of it is put to the notes."""
        if isinstance(before, DeepspecError):
            raise before
        after = self._idle_reading()
        counted = counters.difference(before, after)
        notes += compared(counted, played, num_lost, self.config.max_new_tokens)
        return counters.not_measured(after.reason) if after.reason else counters.acceptance(counted)

    def _idle_reading(self) -> Reading:
        return counters.idle_reading(
            self.metrics.read, idle_seconds=self.pace.idle_seconds, limit_seconds=self.pace.limit_seconds
        )

    def _play(self, prompts: Sequence[EncodedPrompt], played: Played, progress: Progress) -> None:
        """Ask all turns of all prompts, noting what comes; one that fails does not lose the others."""
        waiting: deque[tuple[EncodedPrompt, EncodedPrompt, list[GenerationResult]]] = deque(
            (prompt, prompt, []) for prompt in prompts
        )
        asked: dict[str, tuple[EncodedPrompt, list[GenerationResult]]] = {}

        def next_request() -> GenerationRequest | None:
            if not waiting:
                return None
            prompt, turn, answers = waiting.popleft()
            request = self._request(turn)
            asked[request.id] = (prompt, answers)
            played.num_requests += 1
            return request

        started = time.perf_counter()
        for result in self.endpoints.generate(next_request):
            prompt, answers = asked.pop(result.id)
            following = None
            if isinstance(result, GenerationResult):
                answers.append(result)
                played.answers.append(result)
                played.by_prompt[prompt.id] = answers
                played.places[prompt.id] = prompt.place
                following = self._next_turn(prompt, answers, played)
                if following is not None:
                    waiting.append((prompt, following, answers))
                else:
                    played.answered.add(prompt.id)
            else:
                logger.warning("%s: %s (%s)", prompt.place, result.reason, result.words)
                reason = f"{result.reason}: {result.words}"
                played.failed.append(LostTurn(prompt=prompt.id, place=prompt.place, reason=reason))
            if following is None:
                progress.advance()
            played.seconds = time.perf_counter() - started

    def _next_turn(
        self, prompt: EncodedPrompt, answers: Sequence[GenerationResult], played: Played
    ) -> EncodedPrompt | None:
        """What is asked behind the server's own answers; None after the last turn, and where the next is too long."""
        asked = prompt.asked
        if asked is None or len(answers) == num_turns(asked):
            return None
        history = [answer_message(asked, answer.output_ids, self.renderer) for answer in answers]
        turn = encode_turn(prompt.place, asked, history, self.renderer, context=self.context)
        if isinstance(turn, Skipped):
            played.skipped.append(turn.lost())
            return None
        return turn

    def _request(self, turn: EncodedPrompt) -> GenerationRequest:
        [request] = requests_for(self.config, [turn])
        # A server refuses what would not fit; in process the answer ends there as well.
        room = self.context - len(request.prompt_ids)
        return GenerationRequest(request.id, request.prompt_ids, min(request.max_new_tokens, room), request.seed)


def _longest(config: Config, prompts: Mapping[str, EncodedPrompts], context: int) -> int:
    """Positions that the longest prompt and its answer take."""
    lengths = [len(prompt.prompt_ids) for encoded in prompts.values() for prompt in encoded.prompts]
    return min(max(lengths, default=0) + config.max_new_tokens, context)
