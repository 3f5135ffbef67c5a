"""What may be wrong with a server that does not serve a draft as it was measured: sentences, the likeliest first."""

from collections.abc import Sequence

from deepspec.evaluation.server.check_results import PartedAnswer, Side

OTHERWISE = (
    "It computes otherwise than in {}, or with other kernels: answers part where its two best tokens nearly tie."
)
_ROUNDING = 1.0
"""A gap of logits that a coarser dtype explains; another model's are wider."""
_SHIFTED, _SLOTS, _WORSE = 1.06, 1.3, 0.9
"""Rounds to ours: up to the first layers are shifted, up to the second slots are mistaken; the third is a share of
the tokens."""
_READ_OTHERWISE = "read another prompt"


def without_rounds(failed: Sequence[str], engine: str, *, drafts: bool, known: bool) -> list[str]:
    """Where prompts have no answer, or nothing is drafted, or rounds are not known."""
    found = []
    if any(_READ_OTHERWISE in reason for reason in failed):
        found.append("It puts tokens before the prompt that it is sent, or cuts it.")
    if not drafts:
        flag = "--speculative-draft-model-path" if engine == "sglang" else "--speculative-config"
        found.append(f"It decodes without a draft: it was started without {flag}, or a setting switches that off.")
    elif not known:
        found.append(
            "Others use it, or its counters cannot be read: start vLLM with --per-request-spec-decode-metrics detailed,"
            " so that each reply says its own rounds."
        )
    return found


def of_answers(apart: Sequence[PartedAnswer], answered: int, dtype: str) -> list[str]:
    """Where greedy answers are not ours: the draft has no part in that."""
    if not apart:
        return []
    gaps = [abs(one.gap) for one in apart if one.gap is not None]
    if gaps and max(gaps) <= _ROUNDING:
        return [OTHERWISE.format(dtype)]
    few = "" if 2 * len(apart) > answered else f", or it computes in another dtype than {dtype}, or quantised"
    return [f"It serves another target than the draft was measured with, or another version of it{few}."]


def of_drawing(engine: str) -> list[str]:
    """Where drawn answers take more rounds."""
    if engine != "vllm":
        return []
    said = "It proposes the draft's likeliest tokens, of which drawn answers take fewer: start vLLM with"
    return [f'{said} "draft_sample_method": "probabilistic" in its speculative config.']


def of_rounds(expected: Side, served: Side) -> list[str]:
    """Where acceptance is another: the target is the right one."""
    if not expected.rounds or not served.rounds or not served.answers or not expected.tau_from_tokens:
        return []
    share = expected.tau_from_tokens / (served.tau_from_tokens or 1.0)
    if share < 1.0:
        return ["It serves another draft, or another version of it: it takes fewer rounds."]
    if served.rounds > _WORSE * (served.tokens - served.answers):
        return [
            "Almost nothing of what it drafts is accepted: the draft is another target's, or its weights are not there."
        ]
    if share <= _SHIFTED:
        said = "It reads the target's layers one too high or low, or serves another version of the draft"
        return [f"{said}: a few per cent more rounds are of that kind."]
    if share <= _SLOTS:
        said = "It reads the draft's blocks with the other layout of slots, or other layers of the target"
        return [f"{said}, or serves another draft, or another version of it."]
    return ["It serves another draft, or an older version of it."]
