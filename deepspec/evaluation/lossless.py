"""Is the same said with and without the draft? Greedy answers, on the target that the draft will serve with.

Verification in one forward and one token at a time round differently, so where the target's two best tokens have almost
the same logit either may come: a tie, which is no fault of the draft. Where the answers part, both tokens' logits are
computed once more: a tie are logits that differ by at most `tie_gap`.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch

from deepspec.decoding.completion import Completion
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.drafts.algorithm import Drafter
from deepspec.evaluation.answering import decoded, requests_for
from deepspec.evaluation.config import Config
from deepspec.evaluation.prompts.selection import EncodedPrompt
from deepspec.evaluation.results import DifferingAnswer, LosslessProbe
from deepspec.progress import SILENT, Progress
from deepspec.targets.model import Target

GREEDY = Sampling(temperature=0.0)
_MOST_TOKENS = 256
"""Of an answer: a draft that changes answers does so early."""
_EXACT_GAP = 1e-3
_TIED_ROUNDINGS = 2
"""Roundings of the target's dtype, at the size of the logits, that two of them may differ by."""


def tie_gap(dtype: torch.dtype, largest: float) -> float:
    """By how much two logits may differ that are a tie.

    Args:
        dtype: the target's.
        largest: absolute value of the largest logit.

    Returns:
        0.001 in fp32; in bf16 and fp16 two roundings at the largest logit: 0.25 for bf16 at 16.
    """
    return max(_EXACT_GAP, _TIED_ROUNDINGS * torch.finfo(dtype).eps * largest)


def lossless_probe(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    prompts: Sequence[EncodedPrompt],
    rows: int,
    progress: Progress = SILENT,
) -> LosslessProbe | None:
    """Answer prompts greedily, plainly and with the draft, and compare.

    Args:
        config: limits; its sampling is not used.
        target, drafter: what decodes.
        prompts: of any benchmarks.
        rows: decoded at once.
        progress: advances by prompts.

    Returns:
        None where there is no prompt. Prompts on which the target fails are left out.
    """
    prompts = list({prompt.id: prompt for prompt in prompts}.values())
    if not prompts:
        return None
    greedy = config.model_copy(update={"sampling": GREEDY, "max_new_tokens": min(config.max_new_tokens, _MOST_TOKENS)})
    plain = Engine(target, sampling=GREEDY, rows=rows)
    speculative = Engine(target, drafter, sampling=GREEDY, rows=rows)
    requests = requests_for(greedy, prompts)
    without, _ = decoded(plain, requests)
    with_draft, _ = decoded(speculative, requests)
    progress.advance(len(prompts))
    both = [prompt for prompt in prompts if prompt.id in without and prompt.id in with_draft]
    found = [compared(target, prompt, without[prompt.id], with_draft[prompt.id]) for prompt in both]
    parted = [one for one in found if one is not None]
    return LosslessProbe(
        answers=len(both),
        ties=sum(one.is_tie for one in parted),
        differing=tuple(one for one in parted if not one.is_tie),
    )


def compared(target: Target, prompt: EncodedPrompt, plain: Completion, drafted: Completion) -> DifferingAnswer | None:
    """Where two answers part, and by how much; None if they do not."""
    pairs = enumerate(zip_longest(plain.output_ids, drafted.output_ids))
    place = next((place for place, (one, other) in pairs if one != other), None)
    if place is None:
        return None
    if place >= min(len(plain.output_ids), len(drafted.output_ids)):
        return DifferingAnswer(prompt=prompt.id, token=place, gap=None, is_tie=False)
    logits_V = _logits(target, [*prompt.prompt_ids, *plain.output_ids[:place]])
    gap = float((logits_V[plain.output_ids[place]] - logits_V[drafted.output_ids[place]]).abs())
    tie = gap <= tie_gap(target.dtype, float(logits_V.abs().max()))
    return DifferingAnswer(prompt=prompt.id, token=place, gap=gap, is_tie=tie)


@torch.inference_mode()
def _logits(target: Target, ids: Sequence[int]) -> torch.Tensor:
    """Of the token after `ids`, [V], in fp32."""
    ids_1T = torch.tensor([list(ids)], device=target.device)
    return target.logits(target.forward(ids_1T).final_BQD[0, -1:]).float()[0]
