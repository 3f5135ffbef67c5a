"""How fast one user is answered: plainly and speculatively, one request at a time, in turns, in the same engine.

Legend: P prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepspec.decoding.completion import Completion
from deepspec.decoding.engine import Engine
from deepspec.errors import UnsupportedTarget
from deepspec.evaluation.answering import requests_for
from deepspec.evaluation.config import Config
from deepspec.evaluation.metrics import Timed, speedup_interval
from deepspec.evaluation.prompts.selection import EncodedPrompt
from deepspec.evaluation.results import Speed
from deepspec.progress import Progress
from deepspec.targets.model import Target

_ENTROPY_POSITIONS = 256  # whose logits are made at once: 156 MB at V = 152k


@dataclass(frozen=True)
class BothWays:
    """One prompt, answered plainly and speculatively."""

    prompt: EncodedPrompt
    plain: Completion
    speculative: Completion


def warm_up(config: Config, plain: Engine, speculative: Engine, prompts: Sequence[EncodedPrompt]) -> None:
    """Decode a few prompts both ways, so that first calls are paid by neither."""
    for request in requests_for(config, prompts[: config.num_warmup_prompts]):
        for engine in (plain, speculative):
            try:
                list(engine.run([request]))
            except UnsupportedTarget:  # reported where the prompt is counted
                continue


def decode_twice(
    config: Config, plain: Engine, speculative: Engine, prompts: Sequence[EncodedPrompt], progress: Progress
) -> list[BothWays]:
    """Decode prompts both ways; which of the two goes first alternates. Prompts on which the target fails are left."""
    found = []
    for index, (prompt, request) in enumerate(zip(prompts, requests_for(config, prompts), strict=True)):
        engines = (plain, speculative) if index % 2 == 0 else (speculative, plain)
        try:
            answers = {engine: next(iter(list(engine.run([request])))) for engine in engines}
        except UnsupportedTarget:
            continue
        finally:
            progress.advance()
        found.append(BothWays(prompt, answers[plain], answers[speculative]))
    return found


def timed(pairs: Sequence[BothWays]) -> list[Timed]:
    """Tokens and seconds of each prompt both ways, prefill included."""
    sides = [(pair.speculative, pair.plain) for pair in pairs]
    return [
        (len(ours.output_ids), ours.seconds.total, len(plain.output_ids), plain.seconds.total) for ours, plain in sides
    ]


def speed(pairs: Sequence[BothWays]) -> Speed:
    """Tokens per second of both ways, prefill included: what a user waits for."""
    ours, theirs = [pair.speculative for pair in pairs], [pair.plain for pair in pairs]
    rate, plain_rate = _tokens_per_second(ours), _tokens_per_second(theirs)
    return Speed(
        speedup=rate / plain_rate if rate and plain_rate else None,
        speedup_ci95=speedup_interval([timed(pairs)]),
        speed_prompts=len(pairs),
        tokens_per_second=rate,
        prefill_seconds=sum(one.seconds.prefill for one in ours),
        draft_seconds=sum(one.seconds.draft for one in ours),
        verify_seconds=sum(one.seconds.verify for one in ours),
        other_seconds=sum(one.seconds.other for one in ours),
        plain_tokens_per_second=plain_rate,
        plain_prefill_seconds=sum(one.seconds.prefill for one in theirs),
        plain_draft_seconds=sum(one.seconds.draft for one in theirs),
        plain_verify_seconds=sum(one.seconds.verify for one in theirs),
        plain_other_seconds=sum(one.seconds.other for one in theirs),
    )


def _tokens_per_second(completions: Sequence[Completion]) -> float | None:
    seconds = sum(completion.seconds.total for completion in completions)
    return sum(len(completion.output_ids) for completion in completions) / seconds if seconds else None


@torch.inference_mode()
def mean_entropy(target: Target, pairs: Sequence[BothWays]) -> float | None:
    """Mean entropy, in nats, of the target's next-token distribution at temperature 1 along its plain answers.

    Printed next to τ: a target that is never in doubt is easy to draft for.
    """
    total, count = 0.0, 0
    for pair in pairs:
        prompt, output = pair.prompt.prompt_ids, pair.plain.output_ids
        ids_1T = torch.tensor([(*prompt, *output[:-1])], device=target.device)
        final_ND = target.forward(ids_1T).final_BQD[0, len(prompt) - 1 :]
        for part_ND in torch.split(final_ND, _ENTROPY_POSITIONS):
            log_p_NV = torch.log_softmax(target.logits(part_ND).float(), dim=-1)
            total -= float((log_p_NV.exp() * log_p_NV).sum())
        count += len(output)
    return total / count if count else None
