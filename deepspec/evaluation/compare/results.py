"""What comparisons of drafts and of algorithms come to, as values for reports and records. Not here: the statistics."""

from typing import Any

from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.results import Evaluation, Interval, Number, Sample
from deepspec.store.records import JsonRecord


class Difference(JsonRecord):
    """How much τ of two drafts differs.

    Attributes:
        difference: the challenger's τ minus the reference's; None where no prompt has rounds in both.
        ci95: its interval, paired by prompt; None where there are too few prompts for one.
    """

    difference: Number | None
    ci95: Interval | None


class PairedDifference(Difference):
    """On one benchmark or split.

    Attributes:
        prompts: on how many.
    """

    prompts: int


class MeanDifference(Difference):
    """The plain mean over benchmarks.

    Attributes:
        benchmarks: which.
    """

    benchmarks: tuple[str, ...]


class Differences(JsonRecord):
    """A draft against another, wherever both were measured.

    Attributes:
        benchmarks: by name.
        domains: means over the benchmarks of each domain.
        macro: mean over all benchmarks.
        gate: on the gate split; None where it is not in both.
    """

    benchmarks: dict[str, PairedDifference]
    domains: dict[str, MeanDifference]
    macro: MeanDifference
    gate: PairedDifference | None


class DraftDifferences(Differences):
    """A draft against the first of a comparison.

    Attributes:
        name: the draft's.
    """

    name: str


class ComparedDraft(JsonRecord):
    """One draft of a comparison.

    Attributes:
        name: as the person named it.
        kind, key, digest: of its artifact; of a directory outside the store "external", None and its fingerprint.
        evaluation_key: of its evaluation's artifact.
        evaluation, calibration, samples: what was measured; None where there is nothing.
    """

    name: str
    kind: str
    key: str | None
    digest: str | None
    evaluation_key: str
    evaluation: Evaluation
    calibration: CalibrationResult | None
    samples: tuple[Sample, ...] | None


class Comparison(JsonRecord):
    """Several drafts, evaluated on the same prompts.

    Attributes:
        comparison_id: sorts by time.
        recipe_name: of the recipe that they were judged by.
        recipe: that recipe, resolved.
        drafts: in the order in which they were named.
        differences: of every draft but the first against the first.
    """

    comparison_id: str
    recipe_name: str
    recipe: dict[str, Any]
    drafts: tuple[ComparedDraft, ...]
    differences: tuple[DraftDifferences, ...]


class SeedTau(JsonRecord):
    """τ of an algorithm over training seeds.

    Attributes:
        tau: mean over seeds.
        ci95: its interval over prompts and seeds; None where there are too few prompts for one.
        by_seed: of each seed.
    """

    tau: Number
    ci95: Interval | None
    by_seed: tuple[Number, ...]


class SeedDifference(JsonRecord):
    """How much two algorithms differ over seeds.

    Attributes:
        difference: of their mean τ.
        ci95: its interval, paired by prompt and seed; None where there are too few prompts for one.
    """

    difference: Number
    ci95: Interval | None


class AlgorithmDifference(JsonRecord):
    """One algorithm against another.

    Attributes:
        of, against: their names.
        benchmarks: by name, and `macro`.
    """

    of: str
    against: str
    benchmarks: dict[str, SeedDifference]


class SideBySide(JsonRecord):
    """Algorithms over training seeds.

    Attributes:
        tau: algorithm -> benchmark (and `macro`, the plain mean over benchmarks).
        differences: of each pair.
        prompts: benchmark -> on how many.
    """

    tau: dict[str, dict[str, SeedTau]]
    differences: tuple[AlgorithmDifference, ...]
    prompts: dict[str, int]


class TrainingBudget(JsonRecord):
    """What the trainings of an algorithm took.

    Attributes:
        epochs: of each training.
        steps, cpu_seconds: of each seed.
    """

    epochs: int
    steps: tuple[int, ...]
    cpu_seconds: tuple[Number, ...]


class SeedStudy(SideBySide):
    """Algorithms over training seeds, with what their trainings took.

    Attributes:
        seeds: the training seeds.
        budget: by algorithm.
    """

    seeds: tuple[int, ...]
    budget: dict[str, TrainingBudget]
