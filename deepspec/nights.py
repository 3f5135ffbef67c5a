"""The file of nights: which models are retrained by themselves, when, with what budget, and who is told.

    nights.yaml ──► read_nights ──► PlannedNight, one per model ──► flows.nights (deployments on Prefect's server)

A file is read as a whole and refused as a whole; an error names the file, the line of the entry and the field. Secrets
do not stand in it: a webhook is named by the environment variable that holds its address, or by a block on Prefect's
server. Not here: crons, which Prefect reads (`flows.nights.schedule`), and everything that asks a server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from zoneinfo import available_timezones

from pydantic import Field, field_validator, model_validator

from deepspec.config import Section
from deepspec.errors import NightsError, RecipeError
from deepspec.recipe import Recipe, read_yaml, validated
from deepspec.yaml import NotYaml, dumps, item_lines, loads

FILE = "file of nights"

_END = "...\n"
"""What YAML writes after a value that stands alone."""

Occasion: TypeAlias = Literal["missed", "failed", "refused", "promoted", "awaiting_approval", "budget_exhausted"]
"""What people are told of."""

OCCASIONS: tuple[Occasion, ...] = get_args(Occasion)


class Notification(Section):
    """Who is told of what becomes of a night."""

    webhook_from: str | None = Field(
        None, description="Environment variable with the address that JSON with a `text` is sent to (Slack, …)."
    )
    block: str | None = Field(
        None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$", description="TYPE/NAME of a block on Prefect's server, instead."
    )
    on: tuple[Occasion, ...] = Field(OCCASIONS, description="What they are told of.")

    @field_validator("webhook_from")
    @classmethod
    def _is_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not (value.isidentifier() and value.isascii()):
            # The value is not shown: it may be the address itself, which is a secret.
            raise ValueError("it must be the name of an environment variable; the address itself is a secret")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> "Notification":
        if (self.webhook_from is None) == (self.block is None):
            raise ValueError("it must name either webhook_from or block")
        return self


class Night(Section):
    """One model that is retrained by itself."""

    recipe: str = Field(min_length=1, description="A shipped recipe's name, or a path, relative to this file.")
    model: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="The registered model; default: the recipe's. It is the deployment's name, too.",
    )
    target: str | None = Field(None, description="Path or location of the target; default: the recipe's.")
    overrides: tuple[str, ...] = Field((), description="field=value, as after --set.")
    cron: str | None = Field(None, description="When a run starts.")
    every_hours: float | None = Field(None, gt=0, description="Hours from one start to the next, instead of a cron.")
    timezone: str | None = Field(None, description="In which the cron is read; default: the file's.")
    active: bool = Field(default=True, description="Whether a new night's schedule runs; later a person's word counts.")
    budget: dict[str, int | float] = Field(default_factory=dict, description="Fields of the recipe's budget.")
    missed_after_hours: float | None = Field(
        None, gt=0, description="In which a run has to end; default: 2 or budget.max_hours after the next should start."
    )
    approval: Literal["automatic", "manual"] | None = Field(None, description="gates.approval; default: the recipe's.")
    notification: Notification | None = Field(None, description="Instead of the file's.")

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        return _timezone(value)

    @model_validator(mode="after")
    def _one_schedule(self) -> "Night":
        if self.cron is not None and self.every_hours is not None:
            raise ValueError("cron and every_hours are both given: leave one out")
        if self.cron is None and self.every_hours is None:
            raise ValueError("a schedule is missing: give cron or every_hours")
        return self


class Nights(Section):
    """What stands around the nights of a file."""

    timezone: str = Field("UTC", description="In which crons are read.")
    work_pool: str = Field("deepspec", min_length=1, description="Prefect's work pool whose workers run the nights.")
    pending_minutes: float = Field(
        30.0, ge=0.2, le=24 * 60, description="After which a run whose process was never heard of is ended as Crashed."
    )
    notification: Notification | None = Field(None, description="Who is told of what becomes of the nights.")
    nights: tuple[Any, ...] = Field((), description="The nights.")

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        return _timezone(value) or value


def _timezone(value: str | None) -> str | None:
    if value is not None and value not in available_timezones():
        raise ValueError(f"{value!r} is no time zone; use a name such as UTC or Europe/Zurich")
    return value


@dataclass(frozen=True)
class PlannedNight:
    """A night as it is to be, with what its recipe says.

    Attributes:
        model: the registered model.
        recipe: name of a shipped recipe, or the path of a file.
        overrides: of the recipe, all that the entry says.
        resolved: the recipe with them.
        cron, every_hours: its schedule, one of the two.
        timezone: of the cron, and of the dates in the names of runs.
        missed_after_hours: in which a run has to end; None: as the schedule and the budget are.
        active: whether a new night's schedule runs.
        notification: who is told; None: nobody.
        where: file, line and model, for errors.
    """

    model: str
    recipe: str
    overrides: tuple[str, ...]
    resolved: Recipe
    cron: str | None
    every_hours: float | None
    timezone: str
    missed_after_hours: float | None
    active: bool
    notification: Notification | None
    where: str

    @property
    def schedule(self) -> str:
        """When it runs, in a few words."""
        return f"every {self.every_hours:g} h" if self.cron is None else f"{self.cron} {self.timezone}"


@dataclass(frozen=True)
class NightsFile:
    """All nights of a file.

    Attributes:
        nights: in the file's order, each of another model.
        work_pool: whose workers run them.
        pending_minutes: after which a run that does not start is ended.
    """

    nights: tuple[PlannedNight, ...]
    work_pool: str
    pending_minutes: float


def read_nights(path: Path) -> NightsFile:
    """Read a file of nights, with all recipes that it names.

    Raises:
        NightsError: the file, an entry or its recipe cannot be read, or two entries are about one model.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise NightsError(
            f"This file of nights cannot be read: {getattr(error, 'strerror', None) or error}.",
            where=str(path),
            remedy="Check the path and its permissions.",
        ) from error
    except NotYaml as error:
        line = "" if error.line is None else f":{error.line}"
        raise NightsError(f"This is not YAML: {error}.", where=f"{path}{line}", remedy="Correct that line.") from error
    if not isinstance(content, dict) or not isinstance(content.get("nights"), list):
        raise NightsError(
            "A file of nights has a list `nights`.", where=str(path), remedy="See `deepspec guide nights`."
        )
    around = _validated(Nights, content, str(path))
    found: dict[str, PlannedNight] = {}
    for entry, begins in zip(around.nights, item_lines(text, "nights"), strict=True):
        night = _planned(entry, around, path, begins)
        if night.model in found:
            raise NightsError(
                f"Two entries are about the model {night.model}: here and at {found[night.model].where}.",
                where=night.where,
                remedy="Remove one of them, or give one another `model`.",
            )
        found[night.model] = night
    return NightsFile(tuple(found.values()), around.work_pool, around.pending_minutes)


def _planned(entry: Any, around: Nights, path: Path, line: int) -> PlannedNight:
    named = entry.get("model") or entry.get("recipe") if isinstance(entry, Mapping) else None
    where = f"{path}:{line}" + (f" ({named})" if isinstance(named, str) else "")
    if not isinstance(entry, dict):
        raise NightsError("A night is a mapping of fields.", where=where, remedy="See `deepspec guide nights`.")
    night = _validated(Night, entry, where)
    recipe = _recipe_name(night.recipe, path)
    overrides = _overrides(night)
    try:
        content = read_yaml(recipe)
        resolved = validated(Recipe, content, overrides, f"recipe {recipe}", file="recipe or in this entry's overrides")
    except RecipeError as error:
        raise NightsError(
            f"The recipe cannot be used: {error.what}", where=f"{where}, {error.where or recipe}", remedy=error.remedy
        ) from error
    return PlannedNight(
        model=resolved.registered_model,
        recipe=recipe,
        overrides=overrides,
        resolved=resolved,
        cron=night.cron,
        every_hours=night.every_hours,
        timezone=night.timezone or around.timezone,
        missed_after_hours=night.missed_after_hours,
        active=night.active,
        notification=night.notification or around.notification,
        where=where,
    )


def _validated(model: type[Any], content: dict[str, Any], where: str) -> Any:
    try:
        return validated(model, content, (), where, file=FILE)
    except RecipeError as error:
        raise NightsError(error.what, where=error.where, remedy=error.remedy) from error


def _recipe_name(name: str, path: Path) -> str:
    """The recipe as a worker finds it, which runs in another folder."""
    beside = path.parent / Path(name).expanduser()
    return str(beside.absolute()) if beside.suffix in {".yaml", ".yml"} or beside.is_file() else name


def _overrides(night: Night) -> tuple[str, ...]:
    fields: dict[str, Any] = {f"budget.{name}": value for name, value in night.budget.items()}
    fields |= {
        name: value
        for name, value in (
            ("registry.model", night.model),
            ("target.path", night.target),
            ("gates.approval", night.approval),
        )
        if value is not None
    }
    return (*night.overrides, *(f"{name}={dumps(value).removesuffix(_END).strip()}" for name, value in fields.items()))


def page(nights: NightsFile) -> str:
    """The nights as a Markdown table."""
    lines = ["| model | recipe | schedule | budget | approval | told of | at first |", "|---|---|---|---|---|---|---|"]
    for night in nights.nights:
        budget = night.resolved.budget.model_dump(exclude_none=True)
        told = night.notification.on if night.notification else ()
        cells = [
            f"`{night.model}`",
            f"`{Path(night.recipe).name}`",
            night.schedule,
            ", ".join(f"{name} {value:g}" for name, value in budget.items()) or "none",
            night.resolved.gates.approval,
            ", ".join(word.replace("_", " ") for word in told) or "nothing",
            "active" if night.active else "paused",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
