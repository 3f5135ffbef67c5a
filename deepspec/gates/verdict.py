"""What the gates said, as a record that travels: into artifacts, the promotion log, reports."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deepspec.errors import ArtifactError
from deepspec.store.records import refuse_newer

FORMAT = 1
"""Format of a verdict, which every later version of the stage reads; a record without one is of format 1."""


class Reason(BaseModel):
    """One gate's answer.

    Attributes:
        gate: its name in the table of gates.
        passed: whether the challenger may pass it.
        measured: what was compared (for τ: tokens per round).
        required: what `measured` was compared with; None: nothing.
        sentence: the answer in words, with both numbers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    gate: str
    passed: bool
    measured: float
    required: float | None = None
    sentence: str


class Verdict(BaseModel):
    """All gates' answers about one challenger, bound to the champion it was measured against.

    Attributes:
        accepted: every gate was passed.
        reasons: one per gate that was asked, in the order of the table.
        challenger: content digest of the judged draft, if the caller named it.
        champion: content digest of the champion it was compared with; None: there was no champion. A promotion under
            this verdict is valid only while that is still so.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    accepted: bool
    reasons: tuple[Reason, ...] = Field(min_length=1)
    challenger: str | None = None
    champion: str | None = None

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
