"""What engines read about a draft besides its weights: temperatures, costs of steps, draft lengths, acceptance rates.

Each comes from what was measured of the draft, or is left out with the reason: no file holds a null or a guess.

Draft lengths by batch size: of R rows that each verify k drafted tokens, a step commits R·τ(k) tokens, with
τ(k) = 1 + a_1 + … + a_k and a_i the mean over benchmarks of P(the first i tokens are all accepted). It takes the
measured cost(R, k), which is that of a plain step for k = 0. The k with the most tokens per second is taken; of equal
ones the smallest. Measured costs draft all K tokens whatever k is: right for drafts that propose a block at once, too
dear for small k where tokens are proposed one by one.

Legend: K draft positions, R rows. Source: the readers in SGLang 0.5.23 (speculative/dspark_components/dspark_sts.py,
dspark_sps.py) and vLLM 0.32.0 (config/speculative.py, v1/spec_decode/dynamic/utils.py); spec page "Engines".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from deepspec.decoding.step_costs import StepCosts
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.results import BenchmarkResult, Evaluation
from deepspec.export.side_files import calibration_flaws

TEMPERATURES = "sglang-temperatures.json"
STEP_RATES = "sglang-step-rates.json"
DRAFT_LENGTHS = "vllm-draft-lengths.json"
ACCEPTANCE = "vllm-acceptance.json"
SCHEDULE_FIELD = "num_speculative_tokens_per_batch_size"
_NOT_EVALUATED = "the draft was not evaluated"
_NO_COSTS = "no costs of steps were measured: evaluate.load.concurrency is empty in the recipe"
_NO_CONFIDENCES = "the draft has no confidences, by which SGLang chooses what is verified: it would not start with them"
_NEVER_PAYS = "where costs were measured, drafting pays at no batch size: measure where it is served"
_FEWEST_LOADS = 2
"""SGLang takes a table with one load for none."""


@dataclass(frozen=True)
class EngineFiles:
    """The files that could be made, and why the others were not.

    Attributes:
        contents: file name -> what it holds, as JSON.
        left_out: file name -> reason.
    """

    contents: Mapping[str, Any]
    left_out: Mapping[str, str]


def engine_files(
    calibration: CalibrationResult | None,
    evaluation: Evaluation | None,
    num_draft_tokens: int,
    *,
    has_confidences: bool,
) -> EngineFiles:
    """Everything that can be said to engines of a draft.

    Args:
        calibration, evaluation: of the draft; None: there is none.
        num_draft_tokens: K.
        has_confidences: whether it has a confidence head.
    """
    made = {
        TEMPERATURES: _temperatures(calibration, num_draft_tokens),
        STEP_RATES: _step_rates(evaluation) if has_confidences else _NO_CONFIDENCES,
        DRAFT_LENGTHS: _draft_lengths(evaluation, num_draft_tokens),
        ACCEPTANCE: _acceptance_by_domain(evaluation, num_draft_tokens),
    }
    return EngineFiles(
        contents={name: content for name, content in made.items() if not isinstance(content, str)},
        left_out={name: reason for name, reason in made.items() if isinstance(reason, str)},
    )


def _temperatures(calibration: CalibrationResult | None, num_draft_tokens: int) -> dict[str, Any] | str:
    """What `--speculative-dspark-confidence-sts-path` reads; or why there is nothing to read."""
    if calibration is None:
        return "the draft was not calibrated"
    if not calibration.applicable:
        return (calibration.reason or "the draft has no confidences").rstrip(".")
    known = calibration.without_nulls()
    content = {
        "temperatures": list(known.temperatures),
        "ece_before": list(known.ece_before),
        "ece_after": list(known.ece_after),
        "num_samples": known.rounds.fitted if known.rounds is not None else 0,
    }
    flaws = calibration_flaws(content, num_draft_tokens)
    return f"SGLang would refuse it: {flaws[0].rstrip('.')}" if flaws else content


def step_costs(evaluation: Evaluation | None) -> StepCosts | None:
    """The measured costs of steps with a draft; None: there are none."""
    measured = evaluation.load.costs if evaluation is not None and evaluation.load is not None else None
    if measured is None or not measured.drafting_seconds:
        return None
    return StepCosts.from_json(measured.model_dump())


def _step_rates(evaluation: Evaluation | None) -> dict[str, Any] | str:
    """What `--speculative-dspark-sps-table-path` reads; or why there is nothing to read."""
    if evaluation is None:
        return _NOT_EVALUATED
    costs = step_costs(evaluation)
    if costs is None:
        return _NO_COSTS
    table = {int(load): rate for load, rate in ((float(load), rate) for load, rate in costs.table().items())}
    if len(table) < _FEWEST_LOADS:
        return f"costs of steps were measured at {len(table)} load only"
    loads = sorted(table)
    return {
        "sample_batch_tokens": loads,
        "sample_steps_per_sec": [table[load] for load in loads],
        "max_batch_tokens": loads[-1],
    }


def _draft_lengths(evaluation: Evaluation | None, num_draft_tokens: int) -> list[list[int]] | str:
    """vLLM's `num_speculative_tokens_per_batch_size`; or why there is none."""
    if evaluation is None:
        return _NOT_EVALUATED
    costs = step_costs(evaluation)
    if costs is None:
        return _NO_COSTS
    prefix = mean_prefix_acceptance(list(evaluation.benchmarks.values()), num_draft_tokens)
    if prefix is None:
        return "acceptance at some position is not known"
    ranges = draft_lengths(costs, prefix)
    return ranges if any(length for _, _, length in ranges) else _NEVER_PAYS


def draft_lengths(costs: StepCosts, prefix_acceptance: Sequence[float]) -> list[list[int]]:
    """[first batch size, last, drafted tokens] for every batch size up to the largest that was measured.

    vLLM keeps the last length for larger batches.

    Args:
        costs: measured, with a draft and without.
        prefix_acceptance: P(the first i tokens are all accepted), i = 1 … K.
    """
    taus = [1.0]
    for rate in prefix_acceptance:
        taus.append(taus[-1] + rate)
    ranges: list[list[int]] = []
    for rows in range(1, max(costs.drafting) + 1):
        drafted = costs.steps_per_second(rows, [rows * (1 + length) for length in range(1, len(taus))])
        rates = [1.0 / float(costs.plain(rows)), *(float(rate) for rate in drafted)]
        speeds = [tau * rate for tau, rate in zip(taus, rates, strict=True)]
        best = speeds.index(max(speeds))
        if ranges and ranges[-1][2] == best:
            ranges[-1][1] = rows
        else:
            ranges.append([rows, rows, best])
    return ranges


def _acceptance_by_domain(evaluation: Evaluation | None, num_draft_tokens: int) -> dict[str, list[float]] | str:
    """Domain -> vLLM's `synthetic_acceptance_rates`: P(the first i tokens are all accepted); or why there are none.

    A benchmark without a domain is its own.
    """
    if evaluation is None or not evaluation.benchmarks:
        return _NOT_EVALUATED
    by_domain: dict[str, list[BenchmarkResult]] = {}
    for name, part in evaluation.benchmarks.items():
        by_domain.setdefault(part.domain or name, []).append(part)
    rates = {name: mean_prefix_acceptance(parts, num_draft_tokens) for name, parts in by_domain.items()}
    known = {name: found for name, found in rates.items() if found is not None}
    return known or "acceptance at some position is not known on any domain"


def mean_prefix_acceptance(parts: Sequence[BenchmarkResult], num_draft_tokens: int) -> list[float] | None:
    """The mean over benchmarks of P(the first i tokens are all accepted), never increasing; None: not known everywhere.

    Measured rates may increase by a little, since later positions have fewer rounds behind them.
    """
    means: list[float] = []
    for place in range(num_draft_tokens):
        rates = [part.prefix_acceptance[place] if place < len(part.prefix_acceptance) else None for part in parts]
        known = [rate for rate in rates if rate is not None]
        if not parts or len(known) != len(parts):
            return None
        means.append(min(fmean(known), means[-1] if means else 1.0))
    return means
