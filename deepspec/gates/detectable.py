"""What a number of prompts can show: the gain that a look would find with a probability of `POWER`.

The true gain must exceed a threshold `error · t(1 - α)` by the luck of both: `error · t(power) · √(1 + t(1 - α)² / f)`,
for the threshold is a measured error, too. With f degrees of freedom half of that second term is textbook (Johnson and
Welch 1940, Biometrika 31: t² / 2f), the other half is for f itself, which is measured from the same prompts, and stands
on the simulation alone. Without it, twelve prompts find what they are said to show in 75 % instead of 80 %. The error
of a mean falls with the square root of the number of prompts, so what one measurement says of its own number says it of
any other.
"""

import math
from typing import TYPE_CHECKING

from deepspec.gates.looks import FIRST, error_of
from deepspec.store.records import JsonRecord

if TYPE_CHECKING:
    from deepspec.evaluation.intervals import Estimate

FEWEST_PROMPTS = 4
"""With fewer the gate promotes nothing over a champion: so few counts are alike by chance, and then look sure."""
POWER = 0.8
"""Of ten challengers that are better by the detectable gain, eight are found."""
MANY_PROMPTS = 500
"""Another number of prompts that the gain is said of."""
ASSUMED_SPREAD = 1.4
"""Tokens per round by which two drafts differ on one prompt: error of the gain times the root of the prompts' number.

Where nothing was measured. Pairs of the demo's drafts have 1.0 to 1.7, at a τ of 4.
"""


class Detectable(JsonRecord):
    """The gain in τ that gate prompts can show.

    Attributes:
        prompts: how many there are.
        gain: that they show with a probability of `POWER`, margin not included; None: there are too few to say.
        more_prompts: another number.
        more_gain: that those would show.
        measured: whether the spread of prompts was measured; else it is that of the demo.
    """

    prompts: int
    gain: float | None
    more_prompts: int
    more_gain: float
    measured: bool

    @property
    def sentence(self) -> str:
        """Both, in words."""
        if self.gain is None:
            few = f"{self.prompts} prompts can show nothing"
        else:
            few = f"{self.prompts} prompts can show a gain of {self.gain:.2f} τ"
        return f"{few}; {self.more_prompts} of {self.more_gain:.2f}."


def detectable(prompts: int, gain: "Estimate | None", confidence: float, look: int = FIRST) -> Detectable:
    """What a look can find.

    Args:
        prompts: that are asked.
        gain: a measured gain, whose error says how much prompts differ; None: nothing was measured.
        confidence: `gates.confidence`.
        look: which look at the champion.
    """
    alpha = error_of(look, confidence)
    spread = ASSUMED_SPREAD if gain is None else gain.error * math.sqrt(prompts)
    share = 1.0 if gain is None else gain.freedom / max(prompts - 1, 1)
    enough = prompts >= FEWEST_PROMPTS
    return Detectable(
        prompts=prompts,
        gain=_effect(spread, prompts, share, alpha) if enough else None,
        more_prompts=MANY_PROMPTS,
        more_gain=_effect(spread, MANY_PROMPTS, share, alpha),
        measured=gain is not None,
    )


def limits(found: Detectable, wanted: float | None) -> str:
    """What prompts can show, with a warning where that is less than a recipe wants (`gates.wanted_tau_gain`)."""
    if wanted is None or (found.gain is not None and found.gain <= wanted):
        return found.sentence
    return f"{found.sentence} A gain of {wanted:g} is wanted: raise evaluate.num_gate_prompts."


def _effect(spread: float, prompts: int, share: float, alpha: float) -> float:
    from deepspec.evaluation.intervals import quantile

    freedom = max(share * (prompts - 1), 1.0)
    threshold = quantile(1.0 - alpha, freedom)
    luck = quantile(POWER, freedom) * math.sqrt(1.0 + threshold**2 / freedom)
    return spread / math.sqrt(prompts) * (threshold + luck)
