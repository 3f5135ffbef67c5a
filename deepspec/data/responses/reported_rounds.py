"""What a server's reply says of the rounds of speculative decoding behind its answer.

* vLLM says it in `metrics.speculative_decoding` if it was started with `--per-request-spec-decode-metrics`: `detailed`
  lists every round (`per_step_drafted`, `per_step_accepted`), `summary` has sums and a histogram.
* SGLang says it in `sglext.spec_tokens_details` if the request asks with `return_spec_tokens_details`, and in
  `meta_info` where a reply has that: sums and a histogram.

Engines count before an answer is cut at its end: what was accepted behind the token that ends it is in these numbers,
and so is a bonus token of that round. Only rounds in which something was drafted are in them.

Pure functions. Not here: what the numbers mean for acceptance (deepspec.evaluation.server.replies).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ASKED: Mapping[str, Any] = {"return_spec_tokens_details": True}
"""Fields of a request that ask for it; vLLM is asked when it is started."""

_MOST = 1 << 31


@dataclass(frozen=True, slots=True)
class ReportedRounds:
    """A server's own count of the rounds behind one answer.

    Attributes:
        rounds: in which something was drafted.
        proposed: drafted tokens.
        accepted: of these, those behind the answer's end included.
        histogram: rounds by the number of accepted tokens, from 0; empty: not said.
        steps: (proposed, accepted) of each round, in order; None: not said.
        flaw: why the numbers contradict one another; "" if they do not.
    """

    rounds: int
    proposed: int
    accepted: int
    histogram: tuple[int, ...] = ()
    steps: tuple[tuple[int, int], ...] | None = None
    flaw: str = ""


def reported_rounds(reply: Mapping[str, Any], choice: Mapping[str, Any]) -> ReportedRounds | None:
    """What a reply says; None if it says nothing of rounds.

    Args:
        reply: to a request for one answer.
        choice: the part of it that holds the answer.
    """
    said = _mapping(_mapping(reply.get("metrics")).get("speculative_decoding"))
    if said:
        return _of_vllm(said)
    details = _mapping(reply.get("sglext")).get("spec_tokens_details")
    if isinstance(details, list) and len(details) == 1:
        details = details[0]
    for one in (details, choice.get("meta_info"), reply.get("meta_info")):
        if "spec_verify_ct" in _mapping(one):
            return _of_sglang(_mapping(one))
    return None


def _of_vllm(said: Mapping[str, Any]) -> ReportedRounds:
    try:
        sums = [_count(said.get(name)) for name in ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens")]
        histogram = _counts(said.get("acceptance_histogram"))
        drafted, accepted = (_counts(said.get(f"per_step_{name}")) for name in ("drafted", "accepted"))
    except ValueError as error:
        return _unreadable(str(error))
    if len(accepted) != len(drafted):
        return _unreadable(f"{len(drafted)} rounds in per_step_drafted, {len(accepted)} in per_step_accepted")
    return _checked(sums, histogram, tuple(zip(drafted, accepted, strict=True)) or None)


def _of_sglang(said: Mapping[str, Any]) -> ReportedRounds:
    names = ("spec_verify_ct", "spec_num_proposed_drafts", "spec_num_correct_drafts")
    try:
        sums = [_count(said.get(name, 0)) for name in names]
        histogram = _counts(said.get("spec_correct_drafts_histogram"))
    except ValueError as error:
        return _unreadable(str(error))
    return _checked(sums, histogram, None)


def _checked(
    sums: Sequence[int], histogram: tuple[int, ...], steps: tuple[tuple[int, int], ...] | None
) -> ReportedRounds:
    rounds, proposed, accepted = sums
    listed = tuple(map(sum, zip(*((1, *step) for step in steps), strict=True))) if steps else tuple(sums)
    by_number = (sum(histogram), sum(at * count for at, count in enumerate(histogram)))
    flaw = ""
    if accepted > proposed or any(taken > drafted for drafted, taken in steps or ()):
        flaw = "more tokens were accepted than drafted"
    elif histogram and by_number != (rounds, accepted):
        flaw = (
            f"{rounds} rounds with {accepted} accepted tokens, by its histogram {by_number[0]} rounds with"
            f" {by_number[1]}"
        )
    elif listed != tuple(sums):
        flaw = f"{rounds} rounds with {accepted} accepted tokens, by its list {listed[0]} rounds with {listed[2]}"
    return ReportedRounds(rounds, proposed, accepted, histogram, steps, flaw)


def _unreadable(what: str) -> ReportedRounds:
    return ReportedRounds(0, 0, 0, flaw=f"its numbers cannot be read: {what}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{str(value)[:40]!r} for a count")
    return value


def _counts(value: Any) -> tuple[int, ...]:
    """A list of counts; empty where nothing is said."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r} for a list of counts")
    return tuple(map(_count, value or ()))
