"""What a calibration comes to: `calibration.json` as values, from the stage to reports and load tests.

Fields without a default stand in the files of every version. Torch-free and NumPy-free. Not here: the fit (fit.py).
"""

from deepspec.evaluation.results import LostTurn, Number, Rates
from deepspec.store.records import JsonRecord


class ReliabilityBin(JsonRecord):
    """A bin of a reliability diagram that holds rounds.

    Attributes:
        confidence: mean of what was predicted, 0 … 1.
        observed: share of its rounds that survived.
        rounds: how many.
    """

    confidence: Number
    observed: Number
    rounds: int


class Halves(JsonRecord):
    """Counts of the two halves of the calibration split.

    Attributes:
        fitted: of the half that the temperatures are fitted on.
        measured: of the other one.
    """

    fitted: int
    measured: int


class CalibrationResult(JsonRecord):
    """Temperatures of a draft's confidences, and how good these are before and after, on the measured half.

    Lists are over draft positions, None where it cannot be said (nothing proposed; for areas only one outcome seen).

    Attributes:
        applicable: False, with a `reason` and nothing else, for a draft without a confidence head.
        temperatures: fitted.
        ece_…: calibration error over equal-width bins; mean_ece_…: over positions.
        ece_mass_…: over equal-mass bins.
        brier_…: mean squared error.
        auc_…: area under the ROC curve of the product of confidences; `auc` is that after.
        reliability_…: the bins of each position.
        conditional_auc: of a position's own confidence among rounds that got there.
        trials: rounds behind each position.
        prompts, rounds: of both halves.
        skipped: prompts that were too long for the target.
    """

    applicable: bool
    reason: str | None = None
    temperatures: tuple[Number, ...] = ()
    ece_before: Rates = ()
    ece_after: Rates = ()
    ece_mass_before: Rates = ()
    ece_mass_after: Rates = ()
    brier_before: Rates = ()
    brier_after: Rates = ()
    auc_before: Rates = ()
    auc_after: Rates = ()
    auc: Rates = ()
    conditional_auc: Rates = ()
    reliability_before: tuple[tuple[ReliabilityBin, ...], ...] = ()
    reliability_after: tuple[tuple[ReliabilityBin, ...], ...] = ()
    trials: tuple[int, ...] = ()
    mean_ece_before: Number | None = None
    mean_ece_after: Number | None = None
    prompts: Halves | None = None
    rounds: Halves | None = None
    skipped: tuple[LostTurn, ...] = ()
