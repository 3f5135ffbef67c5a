"""What an alarm means: the causes that what is known of the server and of the traffic speaks for.

A drop against the burn-in is taken apart exactly: what the mix of domains brings at the burn-in's own τ, and what is
within domains. What the log or the server says of itself explains a drop before what only looks like a cause does.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from deepspec.monitoring.streams import ALL_TRAFFIC, Finding
from deepspec.monitoring.sums import Sums, mix_of
from deepspec.store.records import JsonRecord

CauseName: TypeAlias = Literal["target", "engine", "draft", "traffic", "unexplained"]

BROKEN_TAU = 1.05
"""Below it a draft brings nothing; an engine that ignores it has 1."""
_NEAR_WINDOWS = 2
"""A change that was said at most this many windows before acceptance fell is its cause: where that was is estimated."""

ADVICE: Mapping[CauseName, str] = {
    "target": "Retrain the draft on the target that is served, or serve the one that it was trained for.",
    "engine": "Check the engine's flags for the draft with `deepspec serve-check`, or go back to the version before.",
    "draft": "Check that the server loads the draft, with `deepspec serve-check`; or roll back.",
    "traffic": "Retrain with the new mix: the draft is as good in each domain as it was.",
    "unexplained": "Retrain on the new window of traffic.",
}


class Change(JsonRecord):
    """Something that the server says otherwise than before.

    Attributes:
        what: target (its name or revision) or engine (its name or version).
        before, after: what it said.
        windows: stream -> its windows that had ended when it was first said.
    """

    what: Literal["target", "engine"]
    before: str
    after: str
    windows: dict[str, int]


class Cause(JsonRecord):
    """What may have lowered acceptance.

    Attributes:
        name: of the cause.
        sentence: why it is thought of.
    """

    name: CauseName
    sentence: str


def causes(finding: Finding, changes: Sequence[Change]) -> tuple[Cause, ...]:
    """What speaks for which cause, the likeliest first; never empty.

    Args:
        finding: what alarms.
        changes: what the server has said otherwise than before.
    """
    found = [
        Cause(name=one.what, sentence=f"The {_NAMES[one.what]} changed from {one.before} to {one.after}.")
        for one in sorted(changes, key=lambda change: change.what == "engine")
        if one.windows.get(finding.stream, 0) + 1 >= finding.since - _NEAR_WINDOWS
    ]
    if finding.tau < BROKEN_TAU:
        found.append(
            Cause(name="draft", sentence=f"τ is {finding.tau:.2f}: almost nothing that the draft proposes is accepted.")
        )
    moved = _moved(finding)
    if moved is not None:
        found.append(moved)
    return tuple(found) or (Cause(name="unexplained", sentence=_unexplained(finding)),)


_NAMES = {"target": "target", "engine": "engine or its version"}


def _unexplained(finding: Finding) -> str:
    if finding.stream == ALL_TRAFFIC:
        known = finding.reference_parts.keys() - {""}
        return (
            "The text within the domains changed; nothing else is known to have."
            if known
            else "The text of the traffic changed, or its mix: without labels these look alike."
        )
    return f"The text within the domain {finding.stream} changed; nothing else is known to have."


def _moved(finding: Finding) -> Cause | None:
    """That the mix of domains explains at least half of the drop, and what it is."""
    before, now = finding.reference_parts, finding.parts
    if finding.stream != ALL_TRAFFIC or not (before.keys() | now.keys()) - {""}:
        return None
    share = mix_share(before, now)
    if share is None or share < 0.5:
        return None
    old, new = mix_of(before), mix_of(now)
    most = max(new.keys() | old.keys(), key=lambda domain: abs(new.get(domain, 0.0) - old.get(domain, 0.0)))
    return Cause(
        name="traffic",
        sentence=(
            f"The traffic moved: {most or 'answers without a label'} had {old.get(most, 0.0):.0%} of the rounds and has"
            f" {new.get(most, 0.0):.0%}; {min(share, 1.0):.0%} of the drop come from the mix."
        ),
    )


def mix_share(before: Mapping[str, Sums], now: Mapping[str, Sums]) -> float | None:
    """The share of a drop in τ that the mix of domains brings, each at its τ of before; None where τ did not fall.

    A domain that is new has the τ of now, because there is none of before.
    """
    old, new = mix_of(before), mix_of(now)
    taus = {domain: sums.tau for parts in (now, before) for domain, sums in parts.items() if sums.rounds}

    def mean(mix: Mapping[str, float], at: Mapping[str, float | None]) -> float:
        return sum(share * (at[domain] or 0.0) for domain, share in mix.items() if share)

    drop = mean(old, taus) - mean(new, {domain: sums.tau for domain, sums in now.items()})
    return None if drop <= 0.0 else (mean(old, taus) - mean(new, taus)) / drop
