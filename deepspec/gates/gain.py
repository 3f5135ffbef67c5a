"""The gate on the gain in τ: is the challenger better than the champion, beyond chance?"""

import math

from deepspec.errors import ArtifactError
from deepspec.evaluation.compare.drafts import gain
from deepspec.evaluation.intervals import Estimate
from deepspec.evaluation.results import GateResult
from deepspec.gates.config import Config
from deepspec.gates.detectable import FEWEST_PROMPTS
from deepspec.gates.evidence import Evidence
from deepspec.gates.looks import error_of
from deepspec.gates.verdict import Reason

ROUNDING = 1e-9
"""τ is a ratio of two integers below 1e9, so different values differ by more than this, and equal ones that were
rounded differently (5.1 + 0.1 against 5.2) by less: a tie stays a tie."""


class TauGain:
    """Whether the lower bound of the paired gain exceeds `min_tau_gain`, at the error that this look may spend."""

    name = "tau_gain"

    def judge(self, evidence: Evidence, config: Config) -> Reason:
        """Passed where there is no champion; refused where there are too few prompts to know how sure a gain is.

        Raises:
            ArtifactError: a measurement has no usable τ.
        """
        measured = tau_of(evidence.challenger, "challenger")
        if evidence.champion is None:
            said = f"There is no champion to beat; τ is {measured:.3f} on the gate split."
            return Reason(gate=self.name, passed=True, measured=measured, required=None, sentence=said)
        serving = tau_of(evidence.champion, "champion")
        said = f"τ {measured:.3f} against the champion's {serving:.3f} on the gate split: {measured - serving:+.3f}"
        found = gain(evidence.challenger.per_prompt, evidence.champion.per_prompt)
        if found is None or len(evidence.challenger.per_prompt) < FEWEST_PROMPTS:
            num_prompts = len(evidence.champion.per_prompt)
            sentence = f"{said}; {num_prompts} prompts cannot show whether that is more than chance."
            return Reason(gate=self.name, passed=False, measured=None, required=config.min_tau_gain, sentence=sentence)
        surely = lower_bound(found, config, evidence.look)
        passed = surely - config.min_tau_gain > ROUNDING
        sure = 1.0 - error_of(evidence.look, config.confidence)
        sentence = (
            f"{said}, {'surely' if passed else 'but perhaps no'} more than {surely:+.3f}"
            f" (at {100 * sure:.4g} %, look {evidence.look}); more than {config.min_tau_gain:g} is asked."
        )
        return Reason(gate=self.name, passed=passed, measured=surely, required=config.min_tau_gain, sentence=sentence)


def lower_bound(found: Estimate, config: Config, look: int) -> float:
    """What a gain is at least, at the error that a look may spend."""
    return found.at_least(1.0 - error_of(look, config.confidence))


def tau_of(measurement: GateResult, whose: str) -> float:
    """The τ of a measurement.

    Raises:
        ArtifactError: there is none, it is not finite, or below 1 (every round commits at least one token).
    """
    value = measurement.tau
    if value is None or not math.isfinite(value):
        raise ArtifactError(
            f"The {whose}'s evaluation has no τ on the gate split (found {value!r}).",
            where="gate.tau",
            remedy="Evaluate it again; the gate split needs at least one prompt that decodes.",
        )
    if value < 1.0 - ROUNDING:
        raise ArtifactError(
            f"The {whose}'s τ of {value:g} is below 1, which no decoding gives.",
            where="gate.tau",
            remedy="Evaluate the draft again.",
        )
    return value
