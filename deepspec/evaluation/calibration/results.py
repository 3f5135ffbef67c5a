"""What a calibration comes to: `calibration.json` as values, from the stage to reports and load tests.

Fields without a default stand in the files of every version. Torch-free and NumPy-free. Not here: the fit (fit.py).
"""

import json
from typing import Self

from deepspec.evaluation.results import LostTurn, Number, Rates
from deepspec.foreign_json import strict_text
from deepspec.store.records import JsonRecord

NO_AREA = 0.5
"""Stands for an area under the ROC curve that cannot be said: what a coin has."""


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

    Lists are over draft positions, and end before the positions of which nothing can be said (nothing proposed; for
    areas only one outcome seen); an area that cannot be said before one that can is `NO_AREA`. Serving engines read
    lists of numbers: files of earlier versions have nulls there, and `without_nulls` is what they mean.

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

    def without_nulls(self) -> Self:
        """The same with numbers only in its lists."""
        lists = {name: value for name, value in self if isinstance(value, tuple) and None in value}
        return self.model_copy(update={name: _numbers(value) for name, value in lists.items()})


def calibration_text(calibration: CalibrationResult) -> str:
    """`calibration.json`, wherever it is written: in the store, in the registry, beside an exported draft."""
    return strict_text(calibration.without_nulls().to_json(), indent=1)


def rewritten(text: str, *, where: str) -> str:
    """A `calibration.json` of any version as this one writes it; ArtifactError if it is none."""
    return calibration_text(CalibrationResult.from_json(json.loads(text), where=where))


def _numbers(rates: Rates) -> tuple[float, ...]:
    known = max((place for place, rate in enumerate(rates, 1) if rate is not None), default=0)
    return tuple(NO_AREA if rate is None else rate for rate in rates[:known])
