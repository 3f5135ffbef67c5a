"""What a server's own counters say of a draft, as values. Not here: reading counters, asking.

Legend: K draft positions. Rates at k are at 1-based position k, list index k-1.
"""

from deepspec.evaluation.results import BenchmarkResult, Interval, LostTurn, MeanResult, Number, Rates
from deepspec.store.records import JsonRecord


class ServedAcceptance(JsonRecord):
    """Acceptance in the words of `results.Acceptance`, as far as a server counts it; None or empty where it does not.

    Attributes:
        tau: tokens per round, bonus included: 1 + accepted / rounds, or, where accepted tokens are not counted,
            `tau_from_tokens`. None without rounds; `not_measured` says why.
        tau_from_tokens: (tokens - answers) / rounds. Leaves out what the engine accepted behind an answer's end, and
            also what was cut off at `max_new_tokens`, which τ in process includes: that lies between the two.
        tau_ci95: None: sums have no spread.
        conditional_acceptance: the numerator of `prefix_acceptance` / that of k-1 (all rounds for k = 1).
        conditional_trials: rounds behind each.
        prefix_acceptance: rounds in which positions 1 … k were accepted / all rounds. In process only rounds that
            proposed so far are in the denominator; engines don't say how many those are.
        prefix_trials: rounds behind each.
        verify_rate: share of the verified positions that became tokens.
        mean_proposed: drafted tokens per round.
        rounds, proposed, accepted: counts.
        not_measured: why there is no acceptance; None if there is.
    """

    tau: Number | None
    tau_from_tokens: Number | None
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
        tau: None where none was measured.
    """

    tau: Number | None


class ServedEvaluation(JsonRecord):
    """A server, measured on a recipe's benchmarks.

    Attributes:
        endpoint: its address, without credentials.
        engine, engine_version: what it says it is.
        concurrency: requests in flight.
        benchmarks: by name.
        macro: their mean.
        problems: sentences, one for each benchmark that cannot be relied on.
    """

    endpoint: str
    engine: str
    engine_version: str
    concurrency: int
    benchmarks: dict[str, ServedBenchmark]
    macro: ServedMean
    problems: tuple[str, ...]


class InProcess(JsonRecord):
    """The evaluation of an earlier run, to compare a served one with.

    Attributes:
        run_id: the run.
        benchmarks, macro: as in its evaluation.
    """

    run_id: str
    benchmarks: dict[str, BenchmarkResult]
    macro: MeanResult
