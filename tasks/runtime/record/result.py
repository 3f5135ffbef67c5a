"""How a run ended: what came of each recipe, and one status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deepspec.record import RecordedCalibration, RecordedEvaluation, RecordedModel, RecordedVerdict
from deepspec.usage import Usage
from tasks.runtime.flow import Flow, Status
from tasks.runtime.interrupt import is_interruption
from tasks.runtime.references import Reference
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.recipe import Recipe
    from deepspec.registry.mlflow.versions import RegisteredVersion

Steps = Sequence[tuple[Flow, Any]]
"""Flows, each with its configuration."""

_BY_ATTENTION: tuple[Status, ...] = (
    "failed",
    "interrupted",
    "budget_exhausted",
    "awaiting_approval",
    "refused",
    "promoted",
    "no_change",
)
"""Statuses, the one that most asks for a person first."""


@dataclass(frozen=True)
class PartResults:
    """What a record says of one recipe; None where the run did not reach it."""

    evaluation: RecordedEvaluation | None = None
    calibration: RecordedCalibration | None = None
    verdict: RecordedVerdict | None = None
    model: RecordedModel | None = None


@dataclass
class RecipeRun:
    """One recipe of a run, and what came of it; `results` once they have been read from its artifacts.

    `version` is what the draft is registered as, looked up at the end; `notes` what a person has to know besides;
    `repaired` whether something of that was done at the end, although all was found.
    """

    recipe: "Recipe"
    status: Status = "failed"
    outcome: Mapping[str, Reference] = field(default_factory=dict)
    tracking_run: str | None = None
    version: "RegisteredVersion | None" = None
    results: PartResults | None = None
    notes: tuple[str, ...] = ()
    repaired: bool = False


@dataclass
class Result:
    """How a run ended.

    Attributes:
        run: with the record of its stages.
        name: what the run is called by: its recipe, or what its recipes are together.
        parts: one per recipe, in order; one that was not reached counts as failed.
        error: what ended it early.
        ended_at: when that was, in UTC.
        counted: requests and bytes of its process, see `deepspec.usage.COUNTED`.
        further: what flows returned that came after the parts, by name.
    """

    run: Run[Any]
    name: str
    parts: list[RecipeRun]
    further: dict[str, Mapping[str, Reference]] = field(default_factory=dict)
    error: BaseException | None = None
    ended_at: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    counted: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    def end(self, error: BaseException) -> None:
        """The run ends here; what was not reached is interrupted, or failed."""
        self.error, self.ended_at = error, datetime.now(UTC).isoformat(timespec="seconds")
        if is_interruption(error):
            for part in self.parts:
                part.status = "interrupted" if part.status == "failed" else part.status

    def measure(self, usage: Usage) -> None:
        """What the run has used until now."""
        self.seconds, self.cpu_seconds = usage.seconds(), usage.cpu_seconds()
        self.counted, self.peak_rss_bytes = usage.counted(), usage.peak_rss_bytes()

    @property
    def status(self) -> Status:
        """The part's; of several the one that most asks for attention."""
        found = {part.status for part in self.parts}
        return next(status for status in _BY_ATTENTION if status in found)
