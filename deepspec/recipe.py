"""The one typed configuration of a run, composed of the sections that live with the things they configure.

    recipe = load_recipe("demo", ["train.lr=3e-4"])

A recipe is a YAML 1.2 file (a shipped one by name, or a path) plus overrides `section.field=value`. An error names the
field, its value and what is allowed. `run` and `store` say how and where things run and are in no artifact's key;
everything else is.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from importlib import resources
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

import deepspec.data.config
import deepspec.evaluation.config
import deepspec.gates.config
import deepspec.states.config
import deepspec.targets.config
import deepspec.training.config
from deepspec.config import (
    EXPANDING,
    ExecutionSection,
    Section,
    execution_field,
    later_field,
    location_field,
    other_name,
    renamed_field,
)
from deepspec.drafts import ALGORITHMS
from deepspec.errors import RecipeError
from deepspec.yaml import NotYaml, dumps, loads

if TYPE_CHECKING:

    class DraftConfig(Section):
        """Any algorithm's Config."""

        algorithm: str

else:
    _CONFIGS = [algorithm.Config for algorithm in ALGORITHMS.values()]
    DraftConfig = (
        Annotated[reduce(or_, _CONFIGS), Field(discriminator="algorithm")] if len(_CONFIGS) > 1 else _CONFIGS[0]
    )


Model = TypeVar("Model", bound=BaseModel)


class StoreConfig(ExecutionSection):
    """Where artifacts are kept."""

    url: str | None = location_field(
        None, description="A folder; DEEPSPEC_STORE overrides it. Default: `store` in the home."
    )
    gc_grace_seconds: float = Field(24 * 3600.0, ge=0, description="Nothing younger is removed by `artifacts gc`.")


class RunConfig(deepspec.training.config.TrainingExecution, deepspec.data.config.EndpointExecution):
    """How and with what a run is executed."""

    num_generation_rows: int = renamed_field(
        48,
        was="generation_rows",
        ge=1,
        description="Sequences decoded at once when answers are regenerated; a rare token may depend on it.",
    )
    num_evaluation_rows: int = renamed_field(
        16, was="evaluation_rows", ge=1, description="Prompts decoded at once when a draft's acceptance is measured."
    )
    num_decoding_threads: int | None = renamed_field(
        None,
        was="decoding_threads",
        ge=1,
        description="CPU threads while drafts are evaluated; one is fastest for very small targets.",
    )
    capture_batch_tokens: int = Field(
        4096, ge=1, description="Tokens per batch when states are captured; a CPU computes each of its rows alone."
    )
    num_shard_workers: int | None = renamed_field(
        None,
        was="shard_workers",
        ge=1,
        description="Workers that make shards of states at once, one per GPU; none: num_processes.",
    )
    task_runner: Literal["threads", "processes", "dask", "ray"] = Field(
        "threads", description="Prefect's task runner for those workers; dask and ray need prefect-dask, prefect-ray."
    )
    gpu: str | None = Field(None, description="Name of the GPUs it runs on (h100, h200 …): for estimates and budgets.")
    price_per_gpu_hour: float | None = Field(None, ge=0, description="Of one GPU, in run.currency.")
    price_per_cpu_hour: float | None = Field(None, ge=0, description="Of an hour of processor time, in run.currency.")
    currency: str = Field("USD", min_length=1, max_length=8, description="What prices are in.")

    @property
    def num_capture_workers(self) -> int:
        """Workers that make shards at once."""
        return self.num_shard_workers or self.num_processes


class RegistryConfig(Section):
    """As what a draft is registered, and against whom it competes."""

    model: str | None = later_field(
        None,
        key_absent=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the registered model; recipes with the same one compete. None: the recipe's name.",
    )
    on_new_target: Literal["measure", "refuse"] = execution_field(
        "measure",
        description="What to do where the champion was made for another target: measure it on this one, if it fits, and"
        " leave the promotion to a person; or refuse the run.",
    )


class BudgetConfig(ExecutionSection):
    """What a run may take: one whose estimate is larger is refused, and training ends where it is used up.

    What earlier attempts at the same draft have cost counts, those included that were killed.
    """

    max_cost: float | None = Field(
        None,
        ge=0,
        description="In run.currency; needs run.gpu and run.price_per_gpu_hour, or run.price_per_cpu_hour.",
    )
    max_gpu_hours: float | None = Field(None, ge=0, description="Of all GPUs together; needs run.gpu.")
    max_hours: float | None = Field(None, ge=0, description="By the clock on the wall; estimated where run.gpu is set.")
    max_states_bytes: int | None = Field(None, ge=0, description="Of captured states.")


class Recipe(Section):
    """Everything that a retraining run is made of."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the recipe.")
    target: deepspec.targets.config.Config
    data: deepspec.data.config.Config
    states: deepspec.states.config.Config = deepspec.states.config.Config()
    draft: DraftConfig
    train: deepspec.training.config.Config = deepspec.training.config.Config()
    evaluate: deepspec.evaluation.config.Config = deepspec.evaluation.config.Config()
    gates: deepspec.gates.config.Config = deepspec.gates.config.Config()
    registry: RegistryConfig = RegistryConfig()
    store: StoreConfig = StoreConfig()
    run: RunConfig = RunConfig()
    budget: BudgetConfig = BudgetConfig()
    inputs: str | None = Field(
        None,
        description="Shipped description of the inputs that `run` makes first if they are missing (demo-inputs).",
        json_schema_extra={"location": True},
    )

    @property
    def registered_model(self) -> str:
        """What its drafts are versions of."""
        return self.registry.model or self.name

    @model_validator(mode="after")
    def _reckonable_budget(self) -> "Recipe":
        by_cpu = self.run.price_per_cpu_hour is not None and self.run.price_per_gpu_hour is None
        limits = {"max_cost": None if by_cpu else self.budget.max_cost, "max_gpu_hours": self.budget.max_gpu_hours}
        limited = next((name for name, limit in limits.items() if limit is not None), None)
        if limited is not None and self.run.gpu is None:
            raise ValueError(f"budget.{limited} is set, but not run.gpu: hours cannot be estimated")
        if limits["max_cost"] is not None and self.run.price_per_gpu_hour is None:
            raise ValueError("budget.max_cost is set, but not run.price_per_gpu_hour: a cost cannot be estimated")
        return self


def shipped() -> list[str]:
    """Names of the recipes that come with deepspec."""
    names = (Path(item.name) for item in (resources.files("deepspec") / "recipes").iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml" and not name.stem.endswith("-inputs"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (shipped name or path of a YAML file) with `overrides` applied and validated.

    Raises:
        RecipeError: there is no such recipe, or a field is unknown, of the wrong type or out of range.
    """
    return validated(Recipe, read_yaml(name), overrides, where=f"recipe {name}")


def validated(
    model: type[Model], content: dict[str, Any], overrides: Iterable[str], where: str, *, file: str = "recipe"
) -> Model:
    """`content` with `overrides` as a `model`; RecipeError names the first offending field, and `file` to change."""
    for override in overrides:
        _apply(model, content, override)
    try:
        return model.model_validate(content, context=EXPANDING)
    except ValidationError as error:
        raise _explained(model, error, where, file) from error


def read_yaml(name: str) -> dict[str, Any]:
    """The mapping in a shipped YAML file or in the file at a path."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(
                f"This recipe cannot be read: {error.strerror}.",
                where=name,
                remedy="Check the path and its permissions.",
            ) from error
    else:
        item = resources.files("deepspec") / "recipes" / f"{_published(name)}.yaml"
        if not item.is_file():
            close = get_close_matches(name, shipped(), n=1)
            advice = f"Did you mean {close[0]}? " if close else ""
            raise RecipeError(
                f"There is no recipe {name!r}.",
                remedy=f"{advice}Shipped: {', '.join(shipped())}; or give the path of a YAML file.",
            )
        text = item.read_text(encoding="utf-8")
    try:
        content = loads(text)
    except NotYaml as error:
        line = "" if error.line is None else f":{error.line}"
        raise RecipeError(
            f"This is not YAML: {error}.", where=f"{name}{line}", remedy="Correct the file at that line."
        ) from error
    if not isinstance(content, dict):
        raise RecipeError("A recipe is a mapping of sections.", where=name, remedy="See `deepspec run demo --dry-run`.")
    return content


def _published(name: str) -> str:
    """Our name of a recipe that is given by the public checkpoint's name (dspark_qwen3_4b_block7)."""
    public = re.fullmatch(r"(\w+)_(?:block|ttt)7", name)
    return public[1].replace("_", "-") if public else name


def to_yaml(recipe: BaseModel) -> str:
    """The resolved recipe, every default spelled out."""
    return dumps(recipe.model_dump(mode="json"))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value, for parameters of a tracking server."""
    if isinstance(value, Mapping):
        entries: dict[str, Any] = {}
        for name, item in value.items():
            entries.update(flat(item, f"{path}.{name}" if path else str(name)))
        return entries
    return {path: value}


def _apply(model: type[BaseModel], content: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path.strip():
        raise RecipeError(f"{override!r} is not an override.", where="--set", remedy="Write --set section.field=value.")
    try:
        value = loads(text)
    except NotYaml as error:
        raise RecipeError(
            f"The value is not YAML: {error}.",
            where=f"--set {path}",
            remedy="Quote it, e.g. --set 'data.source=[a.jsonl, b.jsonl]'.",
        ) from error
    names = path.strip().split(".")
    other = other_name(_section_of(model, content, names), names[-1])
    for name in names[:-1]:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise RecipeError(
                f"{name} is not a section.",
                where=f"--set {path}",
                remedy="Write --set section.field=value; `deepspec run RECIPE --dry-run` lists the fields.",
            )
        content = inner
    if other is not None:
        content.pop(other, None)
    content[names[-1]] = value


def _section_of(model: type[BaseModel], content: Mapping[str, Any], names: Sequence[str]) -> type[BaseModel]:
    """The kind of section that the field at a path belongs to."""
    draft = content.get("draft")
    algorithm = [str(draft.get("algorithm"))] if names[0] == "draft" and isinstance(draft, Mapping) else []
    return _place(model, [names[0], *algorithm, *names[1:]]).section


def _explained(model: type[BaseModel], error: ValidationError, where: str, file: str) -> RecipeError:
    """The first of pydantic's complaints as one of ours: field, value, what is allowed, what to do."""
    details = error.errors(include_url=False)
    first = details[0]
    more = f" ({len(details) - 1} more)" if len(details) > 1 else ""
    place = _place(model, first["loc"])
    kind, value, names = first["type"], first["input"], list(place.names)
    if kind.startswith("union_tag"):
        names.append(str(first["ctx"]["discriminator"]).strip("'"))
        value = first["ctx"].get("tag")
    elif kind in ("extra_forbidden", "missing") and place.beyond:
        names += place.beyond
    field = ".".join(names)
    if kind == "extra_forbidden":
        allowed = sorted(place.section.model_fields)
        close = get_close_matches(names[-1], allowed, n=1)
        advice = f"Did you mean {close[0]}?" if close else f"Allowed: {', '.join(allowed)}."
        return RecipeError(f"Unknown field {field}{more}.", where=where, remedy=advice)
    if kind == "union_tag_not_found" or (kind == "missing" and not place.is_value):
        is_option = file == "recipe" and "[" not in field
        set_it = f"Set it, e.g. --set {field}=…" if is_option else f"Set it in the {file}."
        return RecipeError(f"{field} is missing{more}.", where=where, remedy=set_it)
    if kind == "value_error" or place.field is None:
        # A sentence of our own, which names the value: the input may be a whole section.
        problem = first["msg"].removeprefix("Value error, ")
        own = place.inner.model_fields if field and place.inner else ()
        subject = f"{field}." if re.split(r"[ .]", problem)[0] in own else f"{field or f'The {file}'}: "
        option = " or with --set" if file == "recipe" else ""
        return RecipeError(f"{subject}{problem}{more}.", where=where, remedy=f"Change it in the {file}{option}.")
    words, example = _allowed(place.section, place.field)
    if kind == "union_tag_invalid":
        words, example = f"one of {', '.join(sorted(ALGORITHMS))}", "…"
    change = f" or with --set {field}={example}" if file == "recipe" and "[" not in field else ""
    return RecipeError(
        f"{field} must be {words}, got {_as_written(value)}{more}.",
        where=where,
        remedy=f"Change it in the {file}{change}.",
    )


class _ErrorLocation(NamedTuple):
    """Where pydantic's location of an error leads: the last section on the way, and the field of it.

    Attributes:
        section: the innermost section.
        field: its field that is wrong; None: the section itself is.
        names: of fields and keys on the way there.
        beyond: names that the section does not know.
        is_value: whether it goes on inside the field's own value (an item of a list).
        inner: the section that the field itself is, if it is one.
    """

    section: type[BaseModel]
    field: str | None
    names: tuple[str, ...]
    beyond: tuple[str, ...] = ()
    is_value: bool = False
    inner: type[BaseModel] | None = None


def _place(model: type[BaseModel], location: Sequence[str | int]) -> _ErrorLocation:
    section, field = model, None
    names: list[str] = []
    inner: type[BaseModel] | None = model
    keyed = False
    for part in location:
        if keyed and isinstance(part, str):
            names.append(part)  # of a mapping of sections: its key
            keyed = False
        elif isinstance(part, int) and inner is not None and field is not None:
            names[-1] += f"[{part}]"  # of a list of sections: its place
        elif inner is None or isinstance(part, int):
            return _ErrorLocation(section, field, tuple(names), is_value=True)
        elif field == "draft" and part in ALGORITHMS:
            inner = ALGORITHMS[part].Config
        elif part not in inner.model_fields:
            return _ErrorLocation(inner, None, tuple(names), beyond=(part,))
        else:
            section, field = inner, part
            names.append(part)
            annotation = section.model_fields[part].annotation
            keyed = get_origin(annotation) in (dict, Mapping)
            options = (annotation, *get_args(annotation))
            inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return _ErrorLocation(section, field, tuple(names), inner=inner)


def _allowed(section: type[BaseModel], name: str) -> tuple[str, str]:
    """What a field takes, in words, and an example of it: its default, if that is one value."""
    schema = section.model_json_schema()
    field = schema["properties"][name]
    default = field.get("default")
    example = json.dumps(default) if isinstance(default, int | float) else default
    return _in_words(field, schema.get("$defs", {})), example if isinstance(example, str) and example else "…"


def _as_written(value: Any) -> str:
    """A value as YAML has it, where Python writes it otherwise."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


_TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "no shorter than",
    "pattern": "of the form",
}


def _in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema or "oneOf" in schema:
        options = [_in_words(option, definitions) for option in schema.get("anyOf") or schema["oneOf"]]
        return " or ".join(dict.fromkeys(options))
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(str(value) for value in schema.get("enum") or [schema["const"]])
    kind = schema.get("type", "")
    if kind == "null":
        return "null"
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        length = f" of {least}" if least == most else f" of at least {least}" if least else ""
        items: Mapping[str, Any] = schema.get("items") or next(iter(schema.get("prefixItems", ())), {})
        return f"a list{length} ({_in_words(items, definitions)} each)"
    if kind == "object":
        return "a section"
    bounds = " and ".join(f"{words} {schema[name]}" for name, words in _BOUNDS.items() if name in schema)
    return _TYPES.get(kind, "another value") + (f", {bounds}" if bounds else "")
