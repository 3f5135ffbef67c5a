"""Judges a draft: every prompt decoded plainly and speculatively, one after the other, in the same engine.

Batch 1, because that is what a user waits for; which of the two goes first alternates, and a few prompts are decoded
beforehand and not counted. Everything but the seconds is a function of recipe, target, draft and prompts.

Files: `evaluation.json` (what is returned), `rounds.parquet` (every round, so that any number can be recomputed) and
`answers.parquet` (what was said, to be read by people).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from deepspec.data.responses import GenerationRequest
from deepspec.data.tables import IDS, TableWriter, write_summary
from deepspec.decoding.completion import Completion
from deepspec.decoding.engine import Engine
from deepspec.decoding.random import derive_seed
from deepspec.drafts.algorithm import Drafter
from deepspec.errors import DataError, UnsupportedTarget
from deepspec.evaluation.benchmarks import Encoded, EncodedPrompt, encode, select, select_split
from deepspec.evaluation.config import GATE, Config
from deepspec.evaluation.metrics import RoundTable, mean, summary
from deepspec.progress import SILENT, Progress
from deepspec.targets.model import Target

if TYPE_CHECKING:
    from deepspec.data.chat import Renderer

logger = logging.getLogger(__name__)

ROUNDS_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("prompt", pa.string()),
        ("round", pa.int32()),
        ("position", pa.int32()),
        ("proposed", pa.int32()),
        ("accepted", pa.int32()),
        ("committed", pa.int32()),
        ("confidence", pa.list_(pa.float32())),
    ]
)
ANSWERS_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", IDS),
        ("output_ids", IDS),
        ("finish_reason", pa.string()),
        ("plain_output_ids", IDS),
        ("plain_finish_reason", pa.string()),
    ]
)

_ENTROPY_POSITIONS = 256  # logits of so many positions at once: 156 MB at V = 152k


@dataclass(frozen=True)
class _Answer:
    """One prompt, decoded both ways (or only speculatively)."""

    prompt: EncodedPrompt
    plain: Completion | None
    speculative: Completion


@dataclass(frozen=True)
class _Measured:
    """One benchmark or split, decoded."""

    answers: list[_Answer] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def evaluate(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    renderer: "Renderer",
    conversations: Path,
    out: Path,
    system_prompt: str | None = None,
    baseline: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Evaluate a draft on the recipe's benchmarks and on the gate split.

    Args:
        config: the recipe's section `evaluate`.
        target: captures the drafter's layers.
        drafter: the draft.
        renderer: the target's tokenizer and chat format.
        conversations: folder with `gate.parquet` of the conversations (or responses) stage.
        out: existing folder for the three files.
        system_prompt: `data.system_prompt`.
        baseline: decode plainly too; without it what needs plain decoding (speedup, the target's entropy) is None.
        progress: told prompts.

    Returns:
        `benchmarks` (name -> metrics), `macro` (plain means over benchmarks), and `gate` (metrics of the gate split and
        `per_prompt`: id -> [committed, rounds], for paired comparisons).

    Raises:
        DataError: a benchmark is unusable (see benchmarks.py), or too many prompts failed.
        IncompatibleDraft: the draft does not fit the target, or gives NaN.
    """
    context = target.spec.max_position_embeddings
    prompts = {}
    for name, benchmark in sorted(config.benchmarks.items()):
        selected = select(name, benchmark, seed=config.seed, system_prompt=system_prompt)
        prompts[name] = encode(name, selected, renderer, context=context, max_skipped=config.max_skipped)
    selected = select_split(
        conversations / f"{GATE}.parquet",
        num_prompts=config.num_gate_prompts,
        seed=config.seed,
        thinks=renderer.thinks,
    )
    prompts[GATE] = encode(GATE, selected, renderer, context=context, max_skipped=config.max_skipped)
    return evaluate_prompts(
        config, target=target, drafter=drafter, prompts=prompts, out=out, baseline=baseline, progress=progress
    )


def evaluate_prompts(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    prompts: Mapping[str, Encoded],
    out: Path,
    baseline: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """`evaluate` for prompts that are at hand already, by benchmark; those of the gate split are called "gate"."""
    sets = sorted(prompts.items())
    longest = max((len(prompt.prompt_ids) for _, encoded in sets for prompt in encoded.prompts), default=0)
    context = target.spec.max_position_embeddings
    capacity = min(longest + config.max_new_tokens, context) + drafter.num_draft_tokens
    plain = Engine(target, None, sampling=config.sampling, capacity=capacity, exact_times=True) if baseline else None
    speculative = Engine(target, drafter, sampling=config.sampling, capacity=capacity, exact_times=True)
    progress.start(sum(len(encoded.prompts) for _, encoded in sets), "prompts")
    _warm_up(config, plain, speculative, [prompt for _, encoded in sets for prompt in encoded.prompts])
    results: dict[str, dict[str, Any]] = {}
    with (
        TableWriter(out / "rounds.parquet", ROUNDS_SCHEMA) as rounds_file,
        TableWriter(out / "answers.parquet", ANSWERS_SCHEMA) as answers_file,
    ):
        for name, encoded in sets:
            measured = _decode(config, name, encoded.prompts, plain, speculative, progress)
            for answer in measured.answers:
                _write(name, answer, rounds_file, answers_file)
            results[name] = {
                **_metrics(config, measured, drafter.num_draft_tokens),
                "target_entropy_nats": _mean_entropy(target, measured.answers),
                "skipped": [dict(entry) for entry in encoded.skipped],
                "failed": measured.failed,
            }
            if name == GATE:
                results[name]["per_prompt"] = _per_prompt(measured.answers)
    gate = results.pop(GATE, None)
    macro = {key: mean([result[key] for result in results.values()]) for key in ("tau", "speedup")}
    evaluation = {"benchmarks": results, "macro": macro, "gate": gate}
    write_summary(out / "evaluation.json", evaluation)
    return evaluation


def requests_for(config: Config, prompts: Sequence[EncodedPrompt]) -> list[GenerationRequest]:
    """What is asked of an engine; an answer's randomness depends on the sampling seed and the prompt alone."""
    return [
        GenerationRequest(
            id=prompt.id,
            prompt_ids=prompt.prompt_ids,
            max_new_tokens=config.max_new_tokens,
            seed=derive_seed(config.sampling.seed, prompt.id),
        )
        for prompt in prompts
    ]


def _warm_up(config: Config, plain: Engine | None, speculative: Engine, prompts: Sequence[EncodedPrompt]) -> None:
    """Decode a few prompts both ways, so that first calls are paid by neither."""
    for request in requests_for(config, prompts[: config.num_warmup_prompts]):
        try:
            _both_ways(request, plain, speculative, plain_first=True)
        except UnsupportedTarget:  # reported where the prompt is counted
            logger.debug("warm-up prompt %s failed", request.id)


def _both_ways(
    request: GenerationRequest, plain: Engine | None, speculative: Engine, *, plain_first: bool
) -> tuple[Completion | None, Completion]:
    """One request decoded plainly (if there is an engine for it) and speculatively."""
    if plain is None:
        [drafted] = speculative.run([request])
        return None, drafted
    if plain_first:
        [undrafted], [drafted] = plain.run([request]), speculative.run([request])
    else:
        [drafted], [undrafted] = speculative.run([request]), plain.run([request])
    return undrafted, drafted


def _decode(
    config: Config,
    name: str,
    prompts: Sequence[EncodedPrompt],
    plain: Engine | None,
    speculative: Engine,
    progress: Progress,
) -> _Measured:
    """Decode every prompt both ways; a prompt that fails does not lose the others."""
    measured = _Measured()
    for index, (prompt, request) in enumerate(zip(prompts, requests_for(config, prompts), strict=True)):
        try:
            undrafted, drafted = _both_ways(request, plain, speculative, plain_first=index % 2 == 0)
        except UnsupportedTarget as error:
            logger.warning("benchmark %s, %s: %s", name, prompt.place, error)
            measured.failed.append({"prompt": prompt.id, "place": prompt.place, "reason": str(error)})
        else:
            measured.answers.append(_Answer(prompt, undrafted, drafted))
        progress.advance()
    if len(measured.failed) > config.max_skipped * len(prompts) or (prompts and not measured.answers):
        raise DataError(
            f"{len(measured.failed)} of {len(prompts)} prompts failed; the first: {measured.failed[0]['reason']}",
            where=f"benchmark {name}, {measured.failed[0]['place']}",
        )
    return measured


def _metrics(config: Config, measured: _Measured, num_draft_tokens: int) -> dict[str, Any]:
    table = RoundTable.of(
        [
            [(one.proposed, one.accepted, one.committed) for one in answer.speculative.rounds]
            for answer in measured.answers
        ]
    )
    speculative = _speed([answer.speculative for answer in measured.answers])
    plain = _speed([answer.plain for answer in measured.answers if answer.plain is not None])
    rates = (speculative["tokens_per_second"], plain["tokens_per_second"])
    return {
        **summary(table, num_draft_tokens, config.num_bootstrap_samples, config.seed),
        "speedup": rates[0] / rates[1] if rates[0] and rates[1] else None,
        **speculative,
        **{f"plain_{key}": value for key, value in plain.items()},
    }


def _speed(completions: Sequence[Completion]) -> dict[str, Any]:
    """Tokens, seconds and tokens per second, prefill included: what a user waits for."""
    tokens = sum(len(completion.output_ids) for completion in completions)
    seconds = {
        f"{part}_seconds": sum(getattr(completion.seconds, part) for completion in completions)
        for part in ("prefill", "draft", "verify", "other")
    }
    total = sum(seconds.values())
    return {
        "tokens_per_second": tokens / total if total else None,
        "tokens": tokens,
        "stopped": sum(completion.finish_reason == "stop" for completion in completions),
        **seconds,
    }


def _per_prompt(answers: Sequence[_Answer]) -> dict[str, list[int]]:
    return {
        answer.prompt.id: [sum(one.committed for one in answer.speculative.rounds), len(answer.speculative.rounds)]
        for answer in answers
    }


def _write(name: str, answer: _Answer, rounds_file: TableWriter, answers_file: TableWriter) -> None:
    for index, one in enumerate(answer.speculative.rounds):
        rounds_file.write(
            {
                "benchmark": name,
                "prompt": answer.prompt.id,
                "round": index,
                "position": one.position,
                "proposed": one.proposed,
                "accepted": one.accepted,
                "committed": one.committed,
                "confidence": one.confidence,
            }
        )
    answers_file.write(
        {
            "benchmark": name,
            "prompt": answer.prompt.id,
            "prompt_ids": answer.prompt.prompt_ids,
            "output_ids": answer.speculative.output_ids,
            "finish_reason": answer.speculative.finish_reason,
            "plain_output_ids": answer.plain.output_ids if answer.plain else None,
            "plain_finish_reason": answer.plain.finish_reason if answer.plain else None,
        }
    )


@torch.inference_mode()
def _mean_entropy(target: Target, answers: Sequence[_Answer]) -> float | None:
    """Mean entropy, in nats, of the target's next-token distribution at temperature 1 along its plain answers.

    Printed beside τ: a target that is never in doubt is easy to draft for.
    """
    total, count = 0.0, 0
    for answer in answers:
        if answer.plain is None:
            continue
        prompt, output = answer.prompt.prompt_ids, answer.plain.output_ids
        ids_1T = torch.tensor([(*prompt, *output[:-1])], device=target.device)
        final_ND = target.forward(ids_1T).final_BQD[0, len(prompt) - 1 :]
        for part_ND in torch.split(final_ND, _ENTROPY_POSITIONS):
            log_p_NV = torch.log_softmax(target.logits(part_ND).float(), dim=-1)
            total -= float((log_p_NV.exp() * log_p_NV).sum())
        count += len(output)
    return total / count if count else None
