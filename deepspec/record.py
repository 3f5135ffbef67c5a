"""The record of a run, `run.json`, as values: what dashboards, checks, reports and later commands read.

    tasks.runtime.record ──► record ◄── reports, registry.keys, flows.cli

Of a run with several recipes each of `evaluation`, `calibration`, `verdict` and `model` is a tuple: one item, with its
`algorithm`, for every recipe that reached it. Fields without a default stand in the records of every version. Not
here: making, writing and finding records (tasks/runtime/record/).
"""

from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import computed_field

from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.compare.results import SeedStudy
from deepspec.evaluation.results import Evaluation, Number
from deepspec.gates.verdict import Verdict
from deepspec.store.records import JsonRecord

FORMAT = 1
"""Raised when a record is written that an older deepspec could not read."""

Recorded = TypeVar("Recorded", bound=JsonRecord | Verdict)

RunStatus: TypeAlias = Literal[
    "promoted", "awaiting_approval", "refused", "no_change", "budget_exhausted", "interrupted", "failed"
]
StageStatus: TypeAlias = Literal["hit", "ran", "rebuilt", "failed", "skipped", "would_run"]


class StageEntry(JsonRecord):
    """One stage of a run.

    Attributes:
        name: the stage's.
        status: how it ended.
        seconds: that it took.
        kind, key: of its artifact; empty where there is none.
        why: it ran, or did not.
        algorithm: whose stage it was, in a run of several.
        cost: what the run itself used for it, failed attempts included, by the names in `deepspec.usage.USED`; None:
            nothing, or an earlier deepspec left it out.
    """

    name: str
    status: StageStatus
    seconds: Number
    kind: str
    key: str
    why: str
    algorithm: str | None = None
    cost: dict[str, Number] | None = None


class RecordedEvaluation(Evaluation):
    """The evaluation of a run's draft.

    Attributes:
        algorithm: whose it is, in a run of several.
    """

    algorithm: str | None = None


class RecordedCalibration(CalibrationResult):
    """The calibration of a run's draft.

    Attributes:
        algorithm: whose it is, in a run of several.
    """

    algorithm: str | None = None


class RecordedVerdict(Verdict):
    """The verdict about a run's draft, with its sentence.

    Attributes:
        algorithm: whose it is, in a run of several.
    """

    algorithm: str | None = None

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's documentation has it
    @property
    def sentence(self) -> str:
        """Accepted or refused, and why, in one line."""
        return super().sentence


class RecordedModel(JsonRecord):
    """The version that a run's draft is registered as.

    Attributes:
        name, version, uri: in the registry.
        aliases: `champion`, `previous` or `challenger`, as the promotion log says.
        algorithm: whose it is, in a run of several.
    """

    name: str
    version: str
    uri: str
    aliases: tuple[str, ...] = ()
    algorithm: str | None = None


class Cost(JsonRecord):
    """What a run used, in attempts that failed or were killed, too; what it found ready cost nothing.

    Attributes:
        cpu_seconds, gpu_seconds: of all its processes, of all GPUs.
        bytes_written: to the store.
        bytes_read: from object storage.
        put_requests, get_requests, list_requests, delete_requests: to object storage, retries included.
        endpoint_requests: to the servers of `run.endpoints`.
        tokens: that were encoded.
        states_bytes: of the states that were captured.
        training_peak_bytes: the most memory that a training process took.
        amount, currency: of money, where the (first) recipe has prices.
    """

    cpu_seconds: Number
    gpu_seconds: Number = 0.0
    bytes_written: int = 0
    bytes_read: int = 0
    put_requests: int = 0
    get_requests: int = 0
    list_requests: int = 0
    delete_requests: int = 0
    endpoint_requests: int = 0
    tokens: int = 0
    states_bytes: int = 0
    training_peak_bytes: int = 0
    amount: Number | None = None
    currency: str | None = None


class Failure(JsonRecord):
    """What ended a run early.

    Attributes:
        error: its class.
        message: what it said.
        stage: the stage that was being made; None: none was.
        at: when, in UTC.
    """

    error: str
    message: str
    stage: str | None
    at: str

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        where = f" in {self.stage}" if self.stage else ""
        return f"{self.error}{where} at {self.at}: {self.message}"


class RunRecord(JsonRecord):
    """What a run leaves behind.

    Attributes:
        format: of the record; see `FORMAT`.
        run_id: sorts by time.
        recipe: the recipe's name, or what several are called together.
        status: how it ended.
        seconds: wall clock.
        peak_rss_bytes: the most memory of its processes.
        stages: in order.
        evaluation, calibration, verdict, model: of the recipe, or of each of several; None: it did not come so far.
        cost: what it used.
        making_cost: what its draft and all it was made from, measured and shipped by have cost, whichever runs paid for
            it, those included that were killed; None: it made none, or an earlier deepspec left it out.
        report: path of its page, or, where nothing was made, of the one that shows the same; None: nothing was
            evaluated, or there is none.
        target: path of the target.
        store: location of the artifact store.
        notes: what a person has to know of how it ended: why a draft is blocked, what was repaired in MLflow;
            left out where there is nothing.
        error: what ended it early, in words.
        failure: the same with its class, stage and time; None: nothing did, or an earlier deepspec left it out.
        seeds: the study over training seeds.
        resolved_recipe: the recipe with every default, or those of several in order; None: an earlier deepspec left it
            out.
        registered_models: that its recipes are about, also where it registered nothing.
        flow_runs, tracking_runs: its runs on Prefect's server and in MLflow, by their ids.
        night: the Prefect deployment that started it; None: a person did.
    """

    format: int = 1
    run_id: str
    recipe: str
    status: RunStatus
    seconds: Number
    peak_rss_bytes: int
    stages: tuple[StageEntry, ...]
    evaluation: RecordedEvaluation | tuple[RecordedEvaluation, ...] | None = None
    calibration: RecordedCalibration | tuple[RecordedCalibration, ...] | None = None
    verdict: RecordedVerdict | tuple[RecordedVerdict, ...] | None = None
    model: RecordedModel | tuple[RecordedModel, ...] | None = None
    cost: Cost
    making_cost: Cost | None = None
    report: str | None
    target: str | None = None
    store: str | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    failure: Failure | None = None
    seeds: SeedStudy | None = None
    resolved_recipe: dict[str, Any] | tuple[dict[str, Any], ...] | None = None
    registered_models: tuple[str, ...] = ()
    flow_runs: tuple[str, ...] = ()
    tracking_runs: tuple[str, ...] = ()
    night: str | None = None

    @property
    def evaluations(self) -> tuple[RecordedEvaluation, ...]:
        """The evaluation, or all of several recipes; none where it did not come so far."""
        return _each(self.evaluation)

    @property
    def verdicts(self) -> tuple[RecordedVerdict, ...]:
        """The verdict, or all of several recipes."""
        return _each(self.verdict)

    @property
    def models(self) -> tuple[RecordedModel, ...]:
        """The registered version, or those of several recipes."""
        return _each(self.model)

    @property
    def stands_refused(self) -> bool:
        """Whether the gates have refused the draft, now or before, and it does not serve."""
        serves = any("champion" in model.aliases for model in self.models)
        return self.status == "refused" or (
            self.status == "no_change" and not serves and any(not verdict.accepted for verdict in self.verdicts)
        )


def _each(found: Recorded | tuple[Recorded, ...] | None) -> tuple[Recorded, ...]:
    if found is None:
        return ()
    return found if isinstance(found, tuple) else (found,)
