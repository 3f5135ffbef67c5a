"""What a server says of a draft, as values. Not here: reading counters and replies, asking.

Legend: K draft positions. Rates at k are at 1-based position k, list index k-1.
"""

from typing import Literal

from pydantic import Field

from deepspec.evaluation.results import BenchmarkResult, DomainResult, Interval, LostTurn, MeanResult, Number, Rates
from deepspec.store.records import JsonRecord


class ServedAcceptance(JsonRecord):
    """Acceptance in the words of `results.Acceptance`, as far as a server counts it; None or empty where it does not.

    Attributes:
        tau_from_tokens: (tokens - answers) / rounds: the number that is the same in process and on any engine. By
            replies, over the answers that ended by themselves; by counters, over all of them.
        tau_from_tokens_ci95: its interval over prompts; None by counters.
        tau_from_tokens_answers: how many answers it is over.
        counted_by: what said how many rounds there were: "round", each reply listed its rounds, which are counted as in
            process; "answer", each reply said its sums; "server", its counters. None: nothing did.
        tau: tokens per round, bonus included, also of answers that were cut off. Counted by round as in process; else
            1 + accepted / rounds, or, where accepted tokens are not counted, `tau_from_tokens`: more than in process by
            what the engine accepted behind answers' ends. None without rounds; `not_measured` says why.
        tau_ci95: its interval over prompts; None by counters.
        conditional_acceptance: the numerator of `prefix_acceptance` / that of k-1 (all rounds for k = 1).
        conditional_trials: rounds behind each.
        prefix_acceptance: rounds in which positions 1 … k were accepted / all rounds. In process, and where rounds are
            listed, only those that proposed so far are in the denominator.
        prefix_trials: rounds behind each.
        verify_rate: share of the verified positions that became tokens.
        mean_proposed: drafted tokens per round.
        rounds, proposed, accepted: counts, the last two as the engine has them.
        not_measured: why there is no acceptance; None if there is.
    """

    tau_from_tokens: Number | None
    tau_from_tokens_ci95: Interval | None
    tau_from_tokens_answers: int | None
    counted_by: Literal["round", "answer", "server"] | None
    tau: Number | None
    tau_ci95: Interval | None
    conditional_acceptance: Rates
    conditional_trials: tuple[int, ...]
    prefix_acceptance: Rates
    prefix_trials: tuple[int, ...]
    verify_rate: Number | None
    mean_proposed: Number | None
    rounds: int | None
    proposed: int | None
    accepted: int | None
    not_measured: str | None


class ServedBenchmark(ServedAcceptance):
    """One benchmark, asked of a server.

    Attributes:
        domain: what it is counted to; None: to nothing.
        prompts: answered to the last turn.
        requests: sent.
        tokens: of the answers.
        stopped: answers that ended by themselves.
        seconds: wall clock, at the measurement's concurrency.
        tokens_per_second: of all requests together; None if no time passed.
        skipped: turns that were too long.
        failed: turns without an answer.
        notes: what has to be known of the numbers.
    """

    domain: str | None
    prompts: int
    requests: int
    tokens: int
    stopped: int
    seconds: Number
    tokens_per_second: Number | None
    skipped: tuple[LostTurn, ...]
    failed: tuple[LostTurn, ...]
    notes: tuple[str, ...]


class ServedMean(JsonRecord):
    """The plain mean over a server's benchmarks.

    Attributes:
        tau_from_tokens, tau: None where none was measured.
        tau_from_tokens_ci95, tau_ci95: intervals over prompts; None unless all benchmarks have them.
    """

    tau_from_tokens: Number | None
    tau_from_tokens_ci95: Interval | None
    tau: Number | None
    tau_ci95: Interval | None


class ServedDomain(ServedMean):
    """The mean over a domain's benchmarks.

    Attributes:
        benchmarks: their names.
    """

    benchmarks: tuple[str, ...]


class ServedEvaluation(JsonRecord):
    """A server, measured on a recipe's benchmarks.

    Attributes:
        endpoint: its address, without credentials.
        engine, engine_version: what it says it is.
        concurrency: requests in flight.
        benchmarks: by name.
        domains: means over the benchmarks of each domain.
        macro: their mean.
        problems: sentences, one for each benchmark that cannot be relied on.
    """

    endpoint: str
    engine: str
    engine_version: str
    concurrency: int
    benchmarks: dict[str, ServedBenchmark]
    domains: dict[str, ServedDomain]
    macro: ServedMean
    problems: tuple[str, ...]


class InProcess(JsonRecord):
    """The evaluation of an earlier run, to compare a served one with.

    Attributes:
        run_id: the run.
        tau_from_tokens: of its benchmarks, and of "macro", their mean; of the answers that ended by themselves, as of
            the server.
        tau_from_tokens_unknown: why that is not there; None if it is.
        benchmarks, domains, macro: as in its evaluation.
    """

    run_id: str
    tau_from_tokens: dict[str, Number | None] = Field({})
    tau_from_tokens_unknown: str | None = None
    benchmarks: dict[str, BenchmarkResult]
    domains: dict[str, DomainResult] = Field({})
    macro: MeanResult
