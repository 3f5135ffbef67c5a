"""The base of every section of a recipe.

A section is an immutable pydantic model that refuses unknown fields. Identity and execution are apart by structure:
a `Section` is part of artifact keys, an `ExecutionSection` (devices, workers, endpoints) can never be. A single field
of one that changes rounding is a `later_field`: stages that name it have it in their keys where it is not neutral.
A `renamed_field` is read under its old name, too, and keeps that name in keys; a `RETIRED` one is read and left out.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

logger = logging.getLogger(__name__)

EXPANDING = {"expand_locations": True}
"""Validation context of what a user wrote: `$NAME` and `~` are then expanded in locations, and in no other field.

A recipe may come from somebody else: a variable in a field that is published would publish what the variable holds."""

Model = TypeVar("Model", bound=BaseModel)
RecipeValue: TypeAlias = BaseModel | str | float | bool | tuple["RecipeValue", ...] | Mapping[str, "RecipeValue"] | None
"""What stands at a dotted path of a recipe: a section, or a field's value."""


class Section(BaseModel):
    """Part of a recipe that says *what* is computed: hashed into the keys of the stages that read it."""

    RETIRED: ClassVar[Mapping[str, str]] = {}
    """Fields of earlier versions that nothing reads any more -> why; a recipe that gives one is read with a warning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any, info: ValidationInfo) -> Any:
        """Read old names of fields, and refuse `true` where a number is meant: pydantic would take it for 1.

        In the context `EXPANDING`, environment variables and `~` in locations are expanded.
        """
        if not isinstance(values, Mapping):
            return values
        values = _under_new_names(cls, values)
        values = _without_retired(cls, values)
        if info.context == EXPANDING:
            values = {name: _expanded(cls.model_fields.get(name), value) for name, value in values.items()}
        for name, value in values.items():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and not _allows_bool(field.annotation):
                raise ValueError(f"{name} must be a number, got {str(value).lower()}")
        return values


class ExecutionSection(Section):
    """Part of a recipe that says *how* it is computed: never hashed."""


def _expanded(field: FieldInfo | None, value: Any) -> Any:
    """The value of a location with its variables, as in `${DEEPSPEC_HOME}/demo/target`; any other as it is."""
    if field is None or not _is_location(field) or not isinstance(value, str):
        return value
    text = os.path.expandvars(value)
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _allows_bool(annotation: Any) -> bool:
    """Whether a field may hold a truth value; only plain numbers may not."""
    options = get_args(annotation) or (annotation,)
    return not any(option in (int, float) for option in options) or bool in options


def later_field(default: Any, *, key_absent: Any, **arguments: Any) -> Any:
    """A field that was added after artifacts with this section existed.

    Args:
        default: its default.
        key_absent: the value that reproduces what was computed before the field existed; with exactly that value the
            field is left out of the key, so old artifacts stay valid.
        arguments: further arguments of `pydantic.Field`.
    """
    return Field(default, json_schema_extra={"key_absent": key_absent}, **arguments)


def renamed_field(default: Any = ..., *, was: str, **arguments: Any) -> Any:
    """A field that had another name: read under both, with a warning under the old one, which keys keep.

    Args:
        default: its default.
        was: its first name. Artifacts that were made under it stay valid.
        arguments: further arguments of `pydantic.Field`; `json_schema_extra` may hold `key_absent` of a `later_field`.
    """
    extra = {**arguments.pop("json_schema_extra", {}), "was": was}
    return Field(default, json_schema_extra=extra, **arguments)


def _under_new_names(section: type[BaseModel], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a section, each under the present name of its field.

    Raises:
        ValueError: a field is given under both of its names.
    """
    present = {old: new for old, new in _old_names(section).items() if old in values}
    for old, new in present.items():
        if new in values:
            raise ValueError(f"{old} is the old name of {new}, and both are given: leave {old} out")
        _warn(section, old, new)
    return {present.get(name, name): value for name, value in values.items()} if present else values


@cache
def _warn(section: type[BaseModel], old: str, new: str) -> None:
    """Warn of an old name, once: a recipe is read several times in a run."""
    del section
    logger.warning("The recipe's field %s is now called %s; please rename it.", old, new)


def _without_retired(section: "type[Section]", values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a section but for those of fields that are no more."""
    present = [name for name in section.RETIRED if name in values]
    for name in present:
        _warn_retired(section, name)
    return {name: value for name, value in values.items() if name not in present} if present else values


@cache
def _warn_retired(section: "type[Section]", name: str) -> None:
    logger.warning("The recipe's field %s is not used any more (%s); please remove it.", name, section.RETIRED[name])


def _old_names(section: type[BaseModel]) -> dict[str, str]:
    """Old name -> present name of the section's renamed fields."""
    keys = {name: name_in_key(name, field) for name, field in section.model_fields.items()}
    return {old: name for name, old in keys.items() if old != name}


def other_name(section: type[BaseModel], name: str) -> str | None:
    """The other name of a field that has two."""
    news = _old_names(section)
    olds = {new: old for old, new in news.items()}
    return news.get(name) or olds.get(name)


def name_in_key(name: str, field: FieldInfo) -> str:
    """What a field is called in keys: a renamed one has its old name there."""
    extra = field.json_schema_extra
    return str(extra.get("was", name)) if isinstance(extra, dict) else name


def path_in_key(recipe: BaseModel, path: str) -> str:
    """What a dotted path of a recipe is called in keys."""
    section: Any = recipe
    names = []
    for name in path.split("."):
        field = type(section).model_fields.get(name) if isinstance(section, BaseModel) else None
        names.append(name if field is None else name_in_key(name, field))
        section = _part(section, name)
    return ".".join(names)


def _part(section: Any, name: str) -> Any:
    return section[name] if isinstance(section, Mapping) else getattr(section, name)


def location_field(default: Any = ..., **arguments: Any) -> Any:
    """A field that says where an external input is found: never hashed, its content is fingerprinted instead.

    `$NAME` and `~` are expanded in these fields alone.
    """
    return Field(default, json_schema_extra={"location": True}, **arguments)


def execution_field(default: Any, **arguments: Any) -> Any:
    """A field among those of a `Section` that changes nothing of what is computed: never hashed."""
    return Field(default, json_schema_extra={"execution": True}, **arguments)


def absent_in_key(field: FieldInfo, value: Any) -> bool:
    """Whether `value` of `field` is to be left out of keys: a location, execution, or a later field's neutral value."""
    if _is_location(field):
        return True
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("execution"):
        return True
    if not isinstance(extra, dict) or "key_absent" not in extra:
        return False
    absent = extra["key_absent"]
    # `repr` too: (1,) equals (1.0,), but they are two values in a key.
    return type(value) is type(absent) and bool(value == absent) and repr(value) == repr(absent)


def left_out_of_key(recipe: BaseModel, path: str) -> bool:
    """Whether what stands at a dotted path of a recipe says nothing that a key has to know.

    That is a field with its neutral value, and a list of sections of which nothing but locations is given. So a stage
    that begins to read a later field keeps its earlier keys wherever the field has that value.
    """
    *parents, name = path.split(".")
    section: Any = recipe
    for parent in parents:
        section = _part(section, parent)
    if not isinstance(section, Section):
        return False
    value = getattr(section, name)
    field = type(section).model_fields.get(name)
    if field is not None and absent_in_key(field, value):
        return True
    return isinstance(value, tuple) and bool(value) and all(_says_nothing(item) for item in value)


def _says_nothing(item: object) -> bool:
    return isinstance(item, Section) and all(
        absent_in_key(field, getattr(item, name)) for name, field in type(item).model_fields.items()
    )


def narrowed(section: Model, paths: Iterable[str]) -> Model:
    """A section, or a recipe, with the fields at dotted `paths` and no others.

    Fields that say where something lies stay: what lies there is in keys by its content. Everything else is missing:
    reading it raises AttributeError instead of deciding something that no key knows.
    """
    below: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        below.setdefault(name, []).append(rest)
    fields: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if "" in below.get(name, ()) or _is_location(field):
            fields[name] = value
        elif isinstance(value, Section) and (name in below or _names_locations(type(value))):
            fields[name] = narrowed(value, below.get(name, ()))
    part = section.model_copy()
    part.__dict__.clear()
    part.__dict__.update(fields)
    return part


def _names_locations(section: type[Section]) -> bool:
    return any(map(_is_location, section.model_fields.values()))


def _is_location(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("location"))
