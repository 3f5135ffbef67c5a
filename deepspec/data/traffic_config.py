"""The section `traffic` of a source: which days of request logs are taken, and what of their rows may be.

Not here: reading the logs (traffic/). Imports pydantic only.
"""

from datetime import date
from typing import Self

from pydantic import Field, field_validator, model_validator

from deepspec.config import Section, execution_field, location_field

ANSWERED_BY = "response.model"
MOST_DAYS = 3660


class Redaction(Section):
    """What takes personal data out of rows before anything of them is written to the store."""

    command: tuple[str, ...] | None = Field(
        None, min_length=1, description="program and arguments: JSON Lines on its stdin, as many on its stdout"
    )
    function: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`package.module:function` instead: a list of rows to a list of as many",
    )
    version: str = Field(
        min_length=1, description="raise it when the hook does something else; rows are then taken again"
    )
    timeout_seconds: float = execution_field(600.0, gt=0, description="longest wait for one batch of rows")

    @model_validator(mode="after")
    def _one_hook(self) -> Self:
        if (self.command is None) == (self.function is None):
            raise ValueError("give a command or a function, and not both")
        return self

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.function or " ".join(self.command or ())


class Traffic(Section):
    """Served requests as conversations. Days are of UTC, and enter no key: the content of what is taken does."""

    days: int | None = location_field(
        None, ge=1, le=MOST_DAYS, description="the last whole days that are taken, yesterday the last of them"
    )
    first_day: date | None = location_field(None, description="the first day instead, e.g. 2026-11-01")
    last_day: date | None = location_field(None, description="the last day instead of yesterday")
    retention_days: int | None = location_field(
        None, ge=1, le=10 * MOST_DAYS, description="rows older than this are not taken, although the window has them"
    )
    consent_field: str | None = Field(
        min_length=1, description="where a row says whether it may be used, dotted; null: all rows may, and you say so"
    )
    consent_value: bool | int | str = Field(default=True, description="the value that permits it")
    request_field: str = Field("request", min_length=1, description="where the request stands, dotted")
    response_field: str = Field("response", min_length=1, description="where the response stands, dotted")
    id_field: str | None = Field(None, min_length=1, description="where the request's id stands: one of each is taken")
    time_field: str | None = Field(
        None, min_length=1, description="where the time of the request stands: ISO 8601, or seconds since 1970"
    )
    model_field: str | None = Field(
        ANSWERED_BY, min_length=1, description="where the model stands that answered: see responses.served_by"
    )
    user_field: str | None = Field(
        None, min_length=1, description="where the user's id stands: of it only a keyed digest is kept, to forget by"
    )
    user_salt: str | None = Field(None, min_length=8, description="key of those digests; the same in all your recipes")
    share: float = Field(1.0, gt=0, le=1, description="share of the requests that is taken, chosen by their ids")
    seed: int = Field(0, ge=0, description="seed of that choice")
    redaction: Redaction | None = Field(None, description="what takes personal data out of rows")

    @field_validator("consent_value", mode="before")
    @classmethod
    def _permitting(cls, value: object) -> object:
        if value in (None, "", False):
            raise ValueError("must be a value that permits: true, or a text or number")
        return value

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        if (self.days is None) == (self.first_day is None):
            raise ValueError("give days, or first_day and last_day")
        if self.days is not None and self.last_day is not None:
            raise ValueError("last_day goes with first_day: days end yesterday")
        if self.first_day and self.last_day and self.last_day < self.first_day:
            raise ValueError("last_day lies before first_day")
        if (self.user_field is None) != (self.user_salt is None):
            raise ValueError("user_field and user_salt go together")
        return self
