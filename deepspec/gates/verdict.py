"""What the gates said, as a record that travels: into artifacts, the promotion log, reports."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deepspec.errors import ArtifactError
from deepspec.evaluation.results import Interval, Number
from deepspec.gates.detectable import Detectable, limits
from deepspec.store.manifest import ABOUT
from deepspec.store.records import JsonRecord, refuse_newer

FORMAT = 1
"""Format of a verdict, which every later version of the stage reads; a record without one is of format 1."""
JUDGED_BY = f"{ABOUT}judged-by.json"
"""File in a verdict's artifact with the id of the run that judged; artifacts of earlier versions have none."""


class Reason(BaseModel):
    """One gate's answer.

    Attributes:
        gate: its name in the table of gates.
        passed: whether the challenger may pass it.
        measured: what was compared (for τ: tokens per round); None: it was not measured.
        required: what `measured` was compared with; None: nothing.
        sentence: the answer in words, with both numbers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    gate: str
    passed: bool
    measured: float | None
    required: float | None = None
    sentence: str

    @property
    def answer(self) -> Literal["passed", "failed", "not known"]:
        """In a word; a challenger may pass a gate that nothing is known for, where that is not the draft's fault."""
        if not self.passed:
            return "failed"
        return "passed" if self.measured is not None else "not known"


class Comparison(JsonRecord):
    """Both drafts on the same prompts.

    Attributes:
        name: of the benchmark, or "gate".
        prompts: the challenger's, those that do not count left out.
        challenger, champion: τ; None: not measured, or there is no champion.
        difference: challenger less champion, on the prompts that both have rounds on.
        ci95: its interval, paired by prompt; None where there are too few prompts for one.
    """

    name: str
    prompts: int
    challenger: Number | None
    champion: Number | None = None
    difference: Number | None = None
    ci95: Interval | None = None


class Verdict(BaseModel):
    """All gates' answers about one challenger, bound to the champion it was measured against.

    Attributes:
        accepted: every gate was passed.
        reasons: one per gate that was asked, in the order of the table.
        challenger: content digest of the judged draft, if the caller named it.
        champion: content digest of the champion it was compared with; None: there was no champion. A promotion under
            this verdict is valid only while that is still so.
        comparison: both drafts side by side; empty in verdicts of earlier versions, as what follows is None there.
        look: how many challengers had been judged against this champion, this one included.
        alpha: the error that this look may spend.
        detectable: what the gate's prompts can show.
        wanted_tau_gain: what the recipe wants them to show.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    accepted: bool
    reasons: tuple[Reason, ...] = Field(min_length=1)
    challenger: str | None = None
    champion: str | None = None
    comparison: tuple[Comparison, ...] = ()
    look: int | None = None
    alpha: float | None = None
    detectable: Detectable | None = None
    wanted_tau_gain: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.accepted != all(reason.passed for reason in self.reasons):
            raise ValueError("`accepted` contradicts the gates' answers")
        return self

    @property
    def sentence(self) -> str:
        """Accepted or refused, and why, in one line."""
        shown = self.reasons if self.accepted else [reason for reason in self.reasons if not reason.passed]
        return f"{'Accepted' if self.accepted else 'Refused'}: {' '.join(reason.sentence for reason in shown)}"

    @property
    def limits(self) -> str | None:
        """What the gate's prompts can show, and whether that is less than is wanted; None in earlier verdicts."""
        return None if self.detectable is None else limits(self.detectable, self.wanted_tau_gain)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, record: Any, *, where: str = "verdict") -> Self:
        """Read a verdict back.

        Raises:
            ArtifactError: the record is not a verdict, or contradicts itself, or a newer deepspec wrote it.
        """
        if isinstance(record, dict):
            refuse_newer(record, FORMAT, what="This verdict", where=where, otherwise="run the gate again")
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"This is no valid verdict: {first['msg']}{f' at {place}' if place else ''}.",
                where=where,
                remedy="Run the gate again.",
            ) from error
