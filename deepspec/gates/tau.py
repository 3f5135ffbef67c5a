"""Gates on the acceptance length τ of the gate split: not worse than the champion, not below a floor."""

import math

from deepspec.errors import ArtifactError
from deepspec.evaluation.results import GateResult
from deepspec.gates.config import Config
from deepspec.gates.verdict import Reason

# τ is a ratio of two integers below 1e9, so different values differ by more than this, and equal ones that were
# rounded differently (5.1 + 0.1 against 5.2) by less: a tie stays a tie.
_ROUNDING = 1e-9


def gain(challenger: GateResult, champion: GateResult | None, config: Config) -> Reason:
    """Whether the challenger's τ exceeds the champion's by more than `config.min_tau_gain`.

    Args:
        challenger: the gate part of its evaluation.
        champion: the champion's, on the same prompts; None if there is none: then the gate is passed.
        config: the margin.

    Raises:
        ArtifactError: a measurement has no usable τ.
    """
    measured = tau_of(challenger, "challenger")
    if champion is None:
        sentence = f"There is no champion to beat; τ is {measured:.3f} on the gate split."
        return Reason(gate="tau_gain", passed=True, measured=measured, required=None, sentence=sentence)
    required = tau_of(champion, "champion") + config.min_tau_gain
    passed = measured - required > _ROUNDING
    margin = f" plus the margin {config.min_tau_gain:g}" if config.min_tau_gain else ""
    sentence = (
        f"τ {measured:.3f} {'exceeds' if passed else 'does not exceed'} "
        f"the champion's {required - config.min_tau_gain:.3f}{margin} on the gate split."
    )
    return Reason(gate="tau_gain", passed=passed, measured=measured, required=required, sentence=sentence)


def floor(challenger: GateResult, champion: GateResult | None, config: Config) -> Reason | None:
    """Whether the challenger's τ reaches `config.min_tau`; None if the recipe asks for no floor.

    Raises:
        ArtifactError: the measurement has no usable τ.
    """
    del champion  # a floor holds with and without a champion
    if config.min_tau is None:
        return None
    measured = tau_of(challenger, "challenger")
    passed = measured - config.min_tau > -_ROUNDING
    sentence = f"τ {measured:.3f} {'reaches' if passed else 'is below'} the floor of {config.min_tau:g}."
    return Reason(gate="tau_floor", passed=passed, measured=measured, required=config.min_tau, sentence=sentence)


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
    if value < 1.0 - _ROUNDING:
        raise ArtifactError(
            f"The {whose}'s τ of {value:g} is below 1, which no decoding gives.",
            where="gate.tau",
            remedy="Evaluate the draft again.",
        )
    return value
