"""What an evaluation comes to: `evaluation.json` and `samples.json` as values, from the stage to reports and registry.

Fields without a default stand in the files of every version. Torch-free and NumPy-free: reports and the registry read
these files without importing either. Not here: how they are measured (evaluate.py and what it calls).

Legend: K draft positions. Rates at k are at 1-based position k, list index k-1.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Strict

from deepspec.store.records import JsonRecord

Number: TypeAlias = Annotated[float, Strict()]
"""A number as JSON has it: neither text nor a truth value is taken for one."""
Interval: TypeAlias = tuple[Number, Number]
"""Ends of a 95 % interval."""
FEWEST_PROMPTS = 2
"""With fewer there is no interval."""
Rates: TypeAlias = tuple[Number | None, ...]
"""A rate per draft position; None where nothing was tried."""
DecodingMode: TypeAlias = Literal["plain", "fixed", "scheduled"]
"""Without a draft; every drafted token verified; as many verified as the scheduler chooses."""


class LostTurn(JsonRecord):
    """A turn that was not asked or not answered.

    Attributes:
        prompt: the prompt's id.
        place: file and row, or split.
        reason: why.
        turn: which, from 0, in digits; None: the first.
    """

    prompt: str
    place: str
    reason: str
    turn: str | None = None


class Acceptance(JsonRecord):
    """What came of drafts in one set of rounds.

    Attributes:
        tau: acceptance length, tokens per round, bonus included; None without rounds.
        tau_ci95: its interval over prompts.
        conditional_acceptance: P(position k accepted, given that all before it were).
        conditional_trials: rounds behind each.
        prefix_acceptance: P(positions 1 … k all accepted).
        prefix_trials: rounds behind each.
        verify_rate: share of the verified positions that became tokens.
        mean_proposed: drafted tokens per round.
        rounds, prompts: how many.
    """

    tau: Number | None
    tau_ci95: Interval | None
    conditional_acceptance: Rates
    conditional_trials: tuple[int, ...]
    prefix_acceptance: Rates
    prefix_trials: tuple[int, ...]
    verify_rate: Number | None
    mean_proposed: Number | None
    rounds: int
    prompts: int


class Answered(Acceptance):
    """Acceptance on prompts that were answered in full.

    Attributes:
        turns: answered; None: not counted.
        tokens: generated, of all turns.
        stopped: answers that ended by themselves.
        skipped: turns that were too long for the target.
        failed: turns on which the target failed.
    """

    turns: int | None = None
    tokens: int
    stopped: int
    skipped: tuple[LostTurn, ...]
    failed: tuple[LostTurn, ...]


class Speed(JsonRecord):
    """Speculative against plain decoding of the same prompts, one request at a time; seconds of all of them together.

    Attributes:
        speedup: ratio of tokens per second; None if nothing was timed.
        speedup_ci95: its interval over prompts.
        speed_prompts: how many were timed.
        tokens_per_second: of speculative decoding, prefill included.
        prefill_seconds, draft_seconds, verify_seconds, other_seconds: where its time went.
        plain_…: the same of plain decoding.
    """

    speedup: Number | None
    speedup_ci95: Interval | None = None
    speed_prompts: int | None = None
    tokens_per_second: Number | None
    prefill_seconds: Number
    draft_seconds: Number
    verify_seconds: Number
    other_seconds: Number
    plain_tokens_per_second: Number | None
    plain_prefill_seconds: Number
    plain_draft_seconds: Number
    plain_verify_seconds: Number
    plain_other_seconds: Number

    @property
    def plain_seconds(self) -> float:
        """All seconds of plain decoding."""
        return (
            self.plain_prefill_seconds + self.plain_draft_seconds + self.plain_verify_seconds + self.plain_other_seconds
        )


class BenchmarkResult(Speed, Answered):
    """One benchmark.

    Attributes:
        domain: what it is counted to; None: to nothing.
        target_entropy_nats: mean entropy of the target's next token along its plain answers.
    """

    domain: str | None = None
    target_entropy_nats: Number | None


class GateResult(Answered):
    """Acceptance on the gate split.

    Attributes:
        per_prompt: prompt id -> (committed tokens, rounds), for paired comparisons.
    """

    per_prompt: dict[str, tuple[int, int]]


class MeanResult(JsonRecord):
    """Plain means over benchmarks; None where no benchmark has the value.

    Attributes:
        tau: of acceptance lengths.
        tau_ci95: its interval; the prompts of each benchmark are a sample, the benchmarks are given.
        speedup: of speedups.
        speedup_ci95: its interval.
    """

    tau: Number | None
    tau_ci95: Interval | None = None
    speedup: Number | None
    speedup_ci95: Interval | None = None


class DomainResult(MeanResult):
    """Means over the benchmarks of one domain.

    Attributes:
        benchmarks: which.
    """

    benchmarks: tuple[str, ...]


class ThresholdPoint(JsonRecord):
    """One static confidence threshold.

    Attributes:
        threshold: drafts below it are not verified.
        tau, tau_ci95, mean_proposed, verify_rate, rounds: as in `Acceptance`.
        draft_acceptance: accepted / proposed; None where nothing was proposed.
    """

    threshold: Number
    tau: Number | None
    tau_ci95: Interval | None
    mean_proposed: Number | None
    verify_rate: Number | None
    rounds: int
    draft_acceptance: Number | None


class ThresholdSweep(JsonRecord):
    """The same prompts decoded at each threshold.

    Attributes:
        applicable: False, with a `reason`, for a draft without confidences.
        prompts: how many were decoded at each threshold.
        points: one per threshold, in increasing order.
    """

    applicable: bool
    reason: str | None = None
    prompts: int | None = None
    points: tuple[ThresholdPoint, ...] = ()


class LoadRun(JsonRecord):
    """One way of decoding at one concurrency: means over repeats, with Student's intervals.

    Attributes:
        tokens_per_second: of all requests together.
        ci95: its interval; None for a single repeat.
        request_tokens_per_second: that each request sees.
        request_ci95: its interval.
        tau, mean_proposed: per round; None without rounds.
    """

    tokens_per_second: Number
    ci95: Interval | None
    request_tokens_per_second: Number
    request_ci95: Interval | None
    tau: Number | None
    mean_proposed: Number | None


class LoadPoint(JsonRecord):
    """All ways of decoding at one concurrency; None: not measured.

    Attributes:
        concurrency: requests at once.
        plain, fixed, scheduled: the ways, see `DecodingMode`.
    """

    concurrency: int
    plain: LoadRun | None = None
    fixed: LoadRun | None = None
    scheduled: LoadRun | None = None

    def run(self, mode: DecodingMode) -> LoadRun | None:
        """What was measured of one way."""
        return {"plain": self.plain, "fixed": self.fixed, "scheduled": self.scheduled}[mode]


class StepSeconds(JsonRecord):
    """What a decoding step takes on the machine, as `StepCosts.to_json` writes it; numbers of rows and tokens as text.

    Attributes:
        drafting_seconds: rows -> verified tokens -> seconds of a step with a draft.
        plain_seconds: rows -> seconds of a plain step.
    """

    drafting_seconds: dict[str, dict[str, Number]]
    plain_seconds: dict[str, Number]


class LoadTest(JsonRecord):
    """Ways of decoding compared under load.

    Attributes:
        modes: the ways, in the order in which they took turns first.
        repeats: runs of each way at each concurrency.
        max_new_tokens: limit of one answer.
        threads, device: of the machine.
        by_rows: number of rows -> what the scheduler does at that load ("none", "all", "scheduled").
        most_rows: with more nothing is drafted; None: something is drafted at every load.
        points: one per concurrency.
        costs: of decoding steps.
    """

    modes: tuple[DecodingMode, ...]
    repeats: int
    max_new_tokens: int
    threads: int
    device: str
    by_rows: dict[str, str] = Field({})
    most_rows: int | None = None
    points: tuple[LoadPoint, ...]
    costs: StepSeconds | None = None


class DifferingAnswer(JsonRecord):
    """A greedy answer that was another with the draft.

    Attributes:
        prompt: the prompt's id.
        token: where the answers part, from 0.
        gap: between the logits of the two tokens there; None where one answer has none.
        is_tie: whether it is so small that rounding decides.
    """

    prompt: str
    token: int
    gap: Number | None
    is_tie: bool


class LosslessProbe(JsonRecord):
    """Greedy answers with and without the draft.

    Attributes:
        answers: compared.
        ties: that part where the target's two best tokens are a tie.
        differing: that part elsewhere.
    """

    answers: int
    ties: int
    differing: tuple[DifferingAnswer, ...]


class Evaluation(JsonRecord):
    """What a draft is worth: `evaluation.json`.

    Attributes:
        benchmarks: by name; empty where only the gate split was measured.
        domains: means over the benchmarks of each domain.
        macro: means over all benchmarks.
        gate: acceptance on the gate split.
        lossless: whether the same is said with and without the draft; None in files of earlier versions.
        threshold_sweep, load: None where the recipe leaves them out.
    """

    benchmarks: dict[str, BenchmarkResult]
    domains: dict[str, DomainResult] = Field({})
    macro: MeanResult | None = None
    gate: GateResult | None = None
    lossless: LosslessProbe | None = None
    threshold_sweep: ThresholdSweep | None = None
    load: LoadTest | None = None

    def parts(self) -> Iterator[tuple[str, BenchmarkResult | MeanResult | GateResult]]:
        """The benchmarks by name, then `macro` and `gate`, as far as they were measured."""
        yield from self.benchmarks.items()
        if self.macro is not None:
            yield "macro", self.macro
        if self.gate is not None:
            yield "gate", self.gate


class AnswerPiece(JsonRecord):
    """A token of an answer.

    Attributes:
        text: what it adds to the answer.
        round: which it came from; 0: the prefill.
        kind: where it came from: the draft ("accepted"), or the target itself.
    """

    text: str
    round: int
    kind: Literal["prefill", "accepted", "bonus"]


class Sample(JsonRecord):
    """One answer of `samples.json`, token by token.

    Attributes:
        benchmark: its name.
        prompt: what the target was given, as text.
        answer: its tokens in order.
    """

    benchmark: str
    prompt: str
    answer: tuple[AnswerPiece, ...]
