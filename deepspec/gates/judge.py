"""The table of gates, and the verdict they give together."""

from collections.abc import Collection
from typing import Protocol

from deepspec.evaluation.compare.drafts import Counts, gain
from deepspec.evaluation.compare.results import Difference
from deepspec.evaluation.config import GATE
from deepspec.gates import unseen
from deepspec.gates.config import Config
from deepspec.gates.detectable import detectable
from deepspec.gates.domains import Domains
from deepspec.gates.evidence import Evidence
from deepspec.gates.floors import BenchmarkFloors, CalibrationError, Speed, TauFloor
from deepspec.gates.gain import TauGain
from deepspec.gates.looks import error_of
from deepspec.gates.soundness import AsMeasured, Lossless, Servable
from deepspec.gates.verdict import Comparison, Reason, Verdict


class Gate(Protocol):
    """One question that is put to a challenger."""

    @property
    def name(self) -> str:
        """What it is called in verdicts."""

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """Its answer, or None if it is not asked."""


GATES: tuple[Gate, ...] = (
    TauGain(),
    TauFloor(),
    BenchmarkFloors(),
    Domains(),
    Speed(),
    CalibrationError(),
    Lossless(),
    Servable(),
    AsMeasured(),
)


def judge(
    evidence: Evidence,
    config: Config,
    *,
    challenger_digest: str | None = None,
    champion_digest: str | None = None,
    seen: Collection[str] = (),
    imported: Collection[unseen.Side] = (),
    missing: str | None = None,
) -> Verdict:
    """Put every gate to a challenger.

    Args:
        evidence: what was measured of it, and of the champion.
        config: the thresholds.
        challenger_digest: content digest of the judged draft.
        champion_digest: content digest of the champion; given exactly when it was measured.
        seen: ids of the gate prompts that a draft was trained or chosen on; they do not count.
        imported: which of the two is, or was started from, a draft that was not trained here: its data are not known.
        missing: what would have to be there to know them.

    Returns:
        The verdict, bound to both digests.

    Raises:
        ArtifactError: a measurement is unusable, or the two were made on different prompts.
        ValueError: a champion without a digest or the other way round: the verdict could not be bound to it.
    """
    if (evidence.champion is None) != (champion_digest is None):
        raise ValueError("a champion's measurement and its digest are given together or not at all")
    evidence.check_same_prompts()
    asked = len(evidence.challenger.per_prompt)
    met = len(evidence.challenger.per_prompt.keys() & set(seen))
    fair = unseen.reason(asked, met, imported) if missing is None else unseen.unknown(missing)
    found = [fair]
    known = evidence.without(seen)
    if fair is None or fair.passed:
        found = [*(gate.judge(known, config) for gate in GATES), fair]
    reasons = tuple(reason for reason in found if reason is not None)
    against = known.champion is not None
    return Verdict(
        accepted=all(reason.passed for reason in reasons),
        reasons=reasons,
        challenger=challenger_digest,
        champion=champion_digest,
        comparison=_comparison(known),
        look=evidence.look if against else None,
        alpha=error_of(evidence.look, config.confidence) if against else None,
        detectable=detectable(
            len(known.challenger.per_prompt),
            gain(known.challenger.per_prompt, known.champion.per_prompt) if known.champion is not None else None,
            config.confidence,
            evidence.look,
        ),
        wanted_tau_gain=config.wanted_tau_gain,
    )


def _comparison(evidence: Evidence) -> tuple[Comparison, ...]:
    """Both drafts side by side: on the gate split, on each benchmark, and their mean."""
    ours = {GATE: evidence.challenger.per_prompt, **evidence.benchmarks}
    theirs = {**evidence.champion_benchmarks}
    if evidence.champion is not None:
        theirs[GATE] = evidence.champion.per_prompt
    found = evidence.differences()
    paired: dict[str, Difference | None] = {GATE: found.gate, **found.benchmarks} if found is not None else {}
    return tuple(
        _row(name, counts, theirs.get(name), paired.get(name)) for name, counts in sorted(ours.items(), key=_gate_first)
    )


def _gate_first(item: tuple[str, Counts]) -> tuple[bool, str]:
    return item[0] != GATE, item[0]


def _row(name: str, ours: Counts, theirs: Counts | None, paired: Difference | None) -> Comparison:
    return Comparison(
        name=name,
        prompts=len(ours),
        challenger=_tau(ours),
        champion=None if theirs is None else _tau(theirs),
        difference=None if paired is None else paired.difference,
        ci95=None if paired is None else paired.ci95,
    )


def _tau(counts: Counts) -> float | None:
    committed, rounds = (sum(of_prompt[place] for of_prompt in counts.values()) for place in (0, 1))
    return committed / rounds if rounds else None
