"""The table of gates, and the verdict they give together."""

from collections.abc import Callable, Collection

from deepspec.errors import ArtifactError
from deepspec.evaluation.results import GateResult
from deepspec.gates import tau, unseen
from deepspec.gates.config import Config
from deepspec.gates.verdict import Reason, Verdict

Gate = Callable[[GateResult, GateResult | None, Config], Reason | None]
"""(challenger's measurement, champion's or None, thresholds) -> its answer, or None if it is not asked."""

GATES: tuple[Gate, ...] = (tau.gain, tau.floor)


def judge(
    challenger: GateResult,
    champion: GateResult | None,
    config: Config,
    *,
    challenger_digest: str | None = None,
    champion_digest: str | None = None,
    seen: Collection[str] = (),
    missing: str | None = None,
) -> Verdict:
    """Put every gate to a challenger.

    Args:
        challenger: the gate part of its evaluation.
        champion: the champion's, measured on the same prompts; None if there is no champion.
        config: the thresholds.
        challenger_digest: content digest of the judged draft.
        champion_digest: content digest of the champion; given exactly when `champion` is.
        seen: ids of the prompts that a draft was trained or chosen on; they do not count.
        missing: what would have to be there to know them.

    Returns:
        The verdict, bound to both digests.

    Raises:
        ArtifactError: a measurement is unusable, or the two were made on different prompts.
        ValueError: a champion without a digest or the other way round: the verdict could not be bound to it.
    """
    if (champion is None) != (champion_digest is None):
        raise ValueError("a champion's measurement and its digest are given together or not at all")
    if champion is not None:
        _check_same_prompts(challenger, champion)
    asked = len(challenger.per_prompt)
    fair = (
        unseen.reason(asked, len(challenger.per_prompt.keys() & set(seen)))
        if missing is None
        else unseen.unknown(missing)
    )
    found = [fair]
    if fair is None or fair.passed:
        ours = unseen.without(challenger, seen)
        theirs = None if champion is None else unseen.without(champion, seen)
        found = [*(gate(ours, theirs, config) for gate in GATES), fair]
    reasons = tuple(reason for reason in found if reason is not None)
    return Verdict(
        accepted=all(reason.passed for reason in reasons),
        reasons=reasons,
        challenger=challenger_digest,
        champion=champion_digest,
    )


def _check_same_prompts(challenger: GateResult, champion: GateResult) -> None:
    ours, theirs = challenger.per_prompt.keys(), champion.per_prompt.keys()
    if ours == theirs:
        return
    raise ArtifactError(
        f"Challenger and champion were measured on different prompts: {len(ours & theirs)} in common, "
        f"{len(ours - theirs)} only the challenger's, {len(theirs - ours)} only the champion's.",
        where="gate.per_prompt",
        remedy="Evaluate the champion on this run's gate split.",
    )
