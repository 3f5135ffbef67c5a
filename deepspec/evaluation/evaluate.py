"""Judges a draft: its acceptance and speed on every benchmark, its confidence, and what both are worth under load.

Acceptance is measured many requests at once, over all turns of all prompts: tokens don't depend on the rest of their
batch. Speed is measured one request at a time on a choice of the prompts (speed.py): that is what a user waits for.
Then static thresholds are swept (threshold_sweep.py), and ways of decoding compared under load (load_test.py).
Everything but seconds is a function of recipe, target, draft and prompts.

Files: `evaluation.json` (what is returned), `rounds.parquet` (every round, so that any number can be recomputed),
`answers.parquet` (what was said) and `samples.json` (a few answers, round by round, to be read by people).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data.tables import write_summary
from deepspec.decoding.engine import Engine
from deepspec.drafts.algorithm import Drafter
from deepspec.evaluation.answering import Answers, answer
from deepspec.evaluation.config import GATE, Config
from deepspec.evaluation.load_test import Calibrated, load_experiment
from deepspec.evaluation.lossless import lossless_probe
from deepspec.evaluation.metrics import acceptance_length_interval, mean, speedup_interval, summary
from deepspec.evaluation.prompts.selection import EncodedPrompts, encode, select, select_split
from deepspec.evaluation.results import Answered, BenchmarkResult, DomainResult, Evaluation, GateResult, MeanResult
from deepspec.evaluation.rounds import table_of, write_answers
from deepspec.evaluation.samples import samples
from deepspec.evaluation.speed import BothWays, decode_twice, mean_entropy, speed, timed, warm_up
from deepspec.evaluation.threshold_sweep import threshold_sweep
from deepspec.progress import SILENT, Progress
from deepspec.targets.model import Target

if TYPE_CHECKING:
    from deepspec.data.chat.renderer import Renderer

ROWS = 16
"""Prompts decoded at once, unless the caller knows better."""


def evaluate(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    renderer: "Renderer",
    conversations: Path,
    out: Path,
    system_prompt: str | None = None,
    calibrated: Calibrated | None = None,
    rows: int = ROWS,
    progress: Progress = SILENT,
) -> Evaluation:
    """Evaluate a draft on the recipe's benchmarks and on the gate split.

    Args:
        config: the recipe's section `evaluate`.
        target: captures the drafter's layers.
        drafter: the draft.
        renderer: the target's tokenizer and chat format.
        conversations: folder with `gate.parquet` of the conversations (or responses) stage.
        out: existing folder for the files.
        system_prompt: `data.system_prompt`.
        calibrated: the draft's calibration, for scheduled decoding under load; None leaves that out.
        rows: prompts decoded at once where acceptance is measured.
        progress: advances by prompts, then by runs under load.

    Raises:
        DataError: a benchmark is unusable (see prompts/selection.py), or too many prompts failed.
        IncompatibleDraft: the draft does not fit the target, or gives NaN.
    """
    context = target.spec.max_position_embeddings
    prompts = _benchmark_prompts(config, renderer, context, system_prompt)
    gate = _gate_prompts(config, renderer, conversations, context)
    engines = _Engines(config, target, drafter, rows, [*prompts.values(), gate])
    chosen = {name: encoded.prompts[: config.num_speed_prompts] for name, encoded in prompts.items()}
    swept = [prompt for encoded in prompts.values() for prompt in encoded.prompts[: config.num_sweep_prompts]]
    first_turns = [prompt for encoded in prompts.values() for prompt in encoded.prompts]
    probed = [prompt for encoded in prompts.values() for prompt in encoded.prompts[: config.num_lossless_prompts]]
    timed_prompts = sum(map(len, chosen.values()))
    progress.start(
        len(first_turns) + len(gate.prompts) + timed_prompts + len(probed) + len(swept) * len(config.thresholds),
        "prompts",
    )
    warm_up(config, engines.plain_alone, engines.alone, first_turns)
    answered = {name: engines.answer(name, encoded, renderer, progress) for name, encoded in prompts.items()}
    both_ways = {
        name: decode_twice(config, engines.plain_alone, engines.alone, chosen[name], progress) for name in prompts
    }
    judged_on = engines.answer(GATE, gate, None, progress)
    benchmarks = {
        name: BenchmarkResult(
            domain=config.benchmarks[name].domain_of(name),
            target_entropy_nats=mean_entropy(target, both_ways[name]),
            **dict(_answered(answered[name], drafter.num_draft_tokens)),
            **dict(speed(both_ways[name])),
        )
        for name in prompts
    }
    evaluation = Evaluation(
        benchmarks=benchmarks,
        domains=_domains(benchmarks, answered, both_ways),
        macro=_mean(benchmarks, answered, both_ways),
        gate=_gate(judged_on, drafter.num_draft_tokens),
        lossless=lossless_probe(config, target=target, drafter=drafter, prompts=probed, rows=rows, progress=progress),
        threshold_sweep=threshold_sweep(
            config, target=target, drafter=drafter, prompts=swept, rows=rows, progress=progress
        ),
        load=load_experiment(
            config, target=target, drafter=drafter, prompts=swept, calibrated=calibrated, progress=progress
        ),
    )
    undrafted = {(name, pair.prompt.id): pair.plain for name, pairs in both_ways.items() for pair in pairs}
    write_answers(out, {name: one.answers for name, one in {**answered, GATE: judged_on}.items()}, undrafted)
    shown = [one.to_json() for one in samples({name: one.answers for name, one in answered.items()}, renderer)]
    (out / "samples.json").write_text(json.dumps(shown, ensure_ascii=False, indent=1), encoding="utf-8")
    write_summary(out / "evaluation.json", evaluation.to_json())
    return evaluation


def evaluate_acceptance(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    renderer: "Renderer",
    conversations: Path,
    out: Path,
    system_prompt: str | None = None,
    rows: int = ROWS,
    progress: Progress = SILENT,
) -> GateResult:
    """Acceptance alone, on the gate split and on the benchmarks: what a champion is measured by.

    Arguments as of `evaluate`. Files: `rounds.parquet` and `answers.parquet` as there; `evaluation.json` has the gate
    split alone, which is returned.
    """
    context = target.spec.max_position_embeddings
    prompts = _benchmark_prompts(config, renderer, context, system_prompt)
    gate = _gate_prompts(config, renderer, conversations, context)
    engines = _Engines(config, target, drafter, rows, [*prompts.values(), gate])
    progress.start(sum(len(encoded.prompts) for encoded in [*prompts.values(), gate]), "prompts")
    answered = {name: engines.answer(name, encoded, renderer, progress) for name, encoded in prompts.items()}
    judged_on = engines.answer(GATE, gate, None, progress)
    measured = _gate(judged_on, drafter.num_draft_tokens)
    write_answers(out, {name: one.answers for name, one in {**answered, GATE: judged_on}.items()}, {})
    write_summary(out / "evaluation.json", Evaluation(benchmarks={}, gate=measured).to_json())
    return measured


class _Engines:
    """The engines that an evaluation decodes with: for many requests at once, and for one.

    Args:
        config: sampling and limits.
        target, drafter: what decodes.
        rows: requests at once.
        prompts: what will be asked; engines for one request reserve the longest at once, so that none waits for that.
    """

    def __init__(
        self, config: Config, target: Target, drafter: Drafter, rows: int, prompts: Sequence[EncodedPrompts]
    ) -> None:
        self._config = config
        longest = max((len(prompt.prompt_ids) for encoded in prompts for prompt in encoded.prompts), default=0)
        capacity = min(longest + config.max_new_tokens, target.spec.max_position_embeddings) + drafter.num_draft_tokens
        self._context = target.spec.max_position_embeddings
        sampling = config.sampling
        self.plain_alone = Engine(target, sampling=sampling, capacity=capacity, exact_times=True)
        self.alone = Engine(target, drafter, sampling=sampling, capacity=capacity, exact_times=True)
        self._plain = Engine(target, sampling=sampling, rows=rows)
        self._speculative = Engine(target, drafter, sampling=sampling, rows=rows)

    def answer(self, name: str, prompts: EncodedPrompts, renderer: "Renderer | None", progress: Progress) -> Answers:
        """See `answering.answer`."""
        return answer(
            name,
            prompts,
            self._config,
            speculative=self._speculative,
            plain=self._plain,
            renderer=renderer,
            context=self._context,
            progress=progress,
        )


def _benchmark_prompts(
    config: Config, renderer: "Renderer", context: int, system_prompt: str | None
) -> dict[str, EncodedPrompts]:
    prompts = {}
    for name, benchmark in sorted(config.benchmarks.items()):
        selected = select(name, benchmark, seed=config.seed, system_prompt=system_prompt)
        prompts[name] = encode(name, selected, renderer, context=context, max_skipped_share=config.max_skipped_share)
    return prompts


def _gate_prompts(config: Config, renderer: "Renderer", conversations: Path, context: int) -> EncodedPrompts:
    file = conversations / f"{GATE}.parquet"
    selected = select_split(file, num_prompts=config.num_gate_prompts, seed=config.seed, thinks=renderer.thinks)
    return encode(GATE, selected, renderer, context=context, max_skipped_share=config.max_skipped_share)


def _answered(answered: Answers, num_draft_tokens: int) -> Answered:
    measured = summary(table_of(answered.answers), num_draft_tokens)
    return Answered(
        turns=len(answered.answers),
        tokens=sum(len(answer.completion.output_ids) for answer in answered.answers),
        stopped=sum(answer.completion.finish_reason == "stop" for answer in answered.answers),
        skipped=tuple(answered.skipped),
        failed=tuple(answered.failed),
        **dict(measured),
    )


def _gate(answered: Answers, num_draft_tokens: int) -> GateResult:
    per_prompt = {
        answer.prompt_id: (sum(one.committed for one in answer.completion.rounds), len(answer.completion.rounds))
        for answer in answered.answers
    }
    return GateResult(per_prompt=per_prompt, **dict(_answered(answered, num_draft_tokens)))


def _domains(
    benchmarks: Mapping[str, BenchmarkResult],
    answered: Mapping[str, Answers],
    both_ways: Mapping[str, Sequence[BothWays]],
) -> dict[str, DomainResult]:
    names: dict[str, list[str]] = {}
    for name, part in benchmarks.items():
        if part.domain is not None:
            names.setdefault(part.domain, []).append(name)
    found = {}
    for domain, own in sorted(names.items()):
        mean_of = _mean({name: benchmarks[name] for name in own}, answered, both_ways)
        found[domain] = DomainResult(benchmarks=tuple(own), **dict(mean_of))
    return found


def _mean(
    benchmarks: Mapping[str, BenchmarkResult],
    answered: Mapping[str, Answers],
    both_ways: Mapping[str, Sequence[BothWays]],
) -> MeanResult:
    """The plain mean over benchmarks."""
    return MeanResult(
        tau=mean([part.tau for part in benchmarks.values()]),
        tau_ci95=acceptance_length_interval([table_of(answered[name].answers) for name in benchmarks]),
        speedup=mean([part.speedup for part in benchmarks.values()]),
        speedup_ci95=speedup_interval([timed(both_ways[name]) for name in benchmarks]),
    )
