"""What the gates look at: everything that was measured of a challenger, and of the champion on the same prompts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deepspec.errors import ArtifactError
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.compare.drafts import Counts, differences
from deepspec.evaluation.compare.results import Differences
from deepspec.evaluation.config import GATE
from deepspec.evaluation.results import Evaluation, GateResult
from deepspec.gates import unseen
from deepspec.gates.looks import FIRST


@dataclass(frozen=True)
class Served:
    """What came of asking a server for a draft.

    Attributes:
        passed: it serves the draft as it was measured.
        sentence: the same in words, or why that is not known.
        rounds: that its answers took; None: not known.
        expected: rounds that they took when it was measured.
    """

    passed: bool
    sentence: str
    rounds: int | None = None
    expected: int | None = None


@dataclass(frozen=True)
class Evidence:
    """Of one challenger, and the champion it is compared with.

    Attributes:
        challenger: the gate part of its evaluation.
        champion: the champion's, measured on the same prompts; None if there is no champion.
        evaluation: the challenger's, whole; None: not measured.
        calibration: of its confidences; None: not measured.
        benchmarks: benchmark -> the challenger's counts.
        champion_benchmarks: the champion's, on the same prompts.
        domains: domain -> its benchmarks.
        flaws: what is wrong with the draft as it is exported; None: not looked at.
        look: which look at this champion it is.
        served: what the recipe's server did with it; None: none was asked.
    """

    challenger: GateResult
    champion: GateResult | None
    evaluation: Evaluation | None = None
    calibration: CalibrationResult | None = None
    benchmarks: Mapping[str, Counts] = field(default_factory=dict)
    champion_benchmarks: Mapping[str, Counts] = field(default_factory=dict)
    domains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    flaws: tuple[str, ...] | None = None
    look: int = FIRST
    served: Served | None = None

    def without(self, prompts: Collection[str]) -> "Evidence":
        """The same without some of the gate's prompts."""
        champion = None if self.champion is None else unseen.without(self.champion, prompts)
        return replace(self, challenger=unseen.without(self.challenger, prompts), champion=champion)

    def check_same_prompts(self) -> None:
        """Refuse measurements of the gate split that were made on different prompts, with an ArtifactError."""
        if self.champion is None:
            return
        ours, theirs = self.challenger.per_prompt.keys(), self.champion.per_prompt.keys()
        if ours != theirs:
            raise ArtifactError(
                f"Challenger and champion were measured on different prompts: {len(ours & theirs)} in common, "
                f"{len(ours - theirs)} only the challenger's, {len(theirs - ours)} only the champion's.",
                where="gate.per_prompt",
                remedy="Evaluate the champion on this run's gate split.",
            )

    def differences(self) -> Differences | None:
        """The challenger's τ less the champion's, with paired intervals; None if there is no champion."""
        if self.champion is None:
            return None
        return differences(
            {**self.benchmarks, GATE: self.challenger.per_prompt},
            {**self.champion_benchmarks, GATE: self.champion.per_prompt},
            self.domains,
        )
