"""The one typed configuration of a run, composed of the sections that live with the things they configure.

    recipe = load_recipe("demo", ["train.lr=3e-4"])

A recipe is a YAML file (a shipped one by name, or a path) plus overrides `section.field=value`. Unknown fields, wrong
types and values out of range are refused with the field, the value and what is allowed. `run` and `store` say how and
where things run and are never part of an artifact's key; everything else is.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from importlib import resources
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

import deepspec.data.config
import deepspec.evaluation.config
import deepspec.gates.config
import deepspec.states.config
import deepspec.targets.config
import deepspec.training.config
from deepspec.config import ExecutionSection, Section
from deepspec.drafts import ALGORITHMS
from deepspec.errors import RecipeError

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

    url: str | None = Field(None, description="A folder; DEEPSPEC_STORE overrides it. Default: `store` in the home.")
    gc_grace_seconds: float = Field(24 * 3600.0, ge=0, description="Nothing younger is ever collected.")


class RunConfig(deepspec.training.config.Execution):
    """How and with what a run is executed."""

    generation_rows: int = Field(48, ge=1, description="Sequences decoded at once when answers are regenerated.")
    decoding_threads: int | None = Field(
        None, ge=1, description="CPU threads while drafts are evaluated; one is fastest for very small targets."
    )
    capture_batch_tokens: int = Field(4096, ge=1, description="Tokens per forward when states are captured.")


class Recipe(Section):
    """Everything that a retraining run is made of."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the registered model.")
    target: deepspec.targets.config.Config
    data: deepspec.data.config.Config
    states: deepspec.states.config.Config = deepspec.states.config.Config()
    draft: DraftConfig
    train: deepspec.training.config.Config = deepspec.training.config.Config()
    evaluate: deepspec.evaluation.config.Config = deepspec.evaluation.config.Config()
    gates: deepspec.gates.config.Config = deepspec.gates.config.Config()
    store: StoreConfig = StoreConfig()
    run: RunConfig = RunConfig()
    inputs: str | None = Field(
        None,
        description="Shipped description of the inputs that `run` makes first if they are missing (demo-inputs).",
        json_schema_extra={"location": True},
    )


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


def validated(model: type[Model], content: dict[str, Any], overrides: Iterable[str], where: str) -> Model:
    """`content` with `overrides` as a `model`; RecipeError names the first offending field."""
    for override in overrides:
        _apply(content, override)
    try:
        return model.model_validate(_expanded(content))
    except ValidationError as error:
        raise _explained(model, error, where) from error


def read_yaml(name: str) -> dict[str, Any]:
    """The mapping in a shipped YAML file or in the file at a path."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"This recipe cannot be read: {error.strerror}.", where=name) from error
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
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"This is not YAML: {_one_line(error)}.", where=name) from error
    if not isinstance(content, dict):
        raise RecipeError("A recipe is a mapping of sections.", where=name, remedy="See `deepspec run demo --dry-run`.")
    return content


def _published(name: str) -> str:
    """Our name of a recipe that is asked for as the public checkpoint is called (dspark_qwen3_4b_block7)."""
    public = re.fullmatch(r"(\w+)_(?:block|ttt)7", name)
    return public[1].replace("_", "-") if public else name


def to_yaml(recipe: BaseModel) -> str:
    """The resolved recipe, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value, for parameters of a tracking server."""
    if isinstance(value, Mapping):
        entries: dict[str, Any] = {}
        for name, item in value.items():
            entries.update(flat(item, f"{path}.{name}" if path else str(name)))
        return entries
    return {path: value}


def _apply(content: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path.strip():
        raise RecipeError(f"{override!r} is not an override.", where="--set", remedy="Write --set section.field=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value is not YAML: {_one_line(error)}.", where=f"--set {path}") from error
    if isinstance(value, str):
        value = _number(value)
    names = path.strip().split(".")
    for name in names[:-1]:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{name} is not a section.", where=f"--set {path}")
        content = inner
    content[names[-1]] = value


def _number(text: str) -> Any:
    """YAML 1.1 reads `3e-4` as text; people mean a number."""
    try:
        return float(text) if text[:1] in "+-.0123456789" else text
    except ValueError:
        return text


def _expanded(value: Any) -> Any:
    """Environment variables and `~` in strings, as in `${DEEPSPEC_HOME}/demo/target`."""
    if isinstance(value, str):
        text = os.path.expandvars(value)
        return str(Path(text).expanduser()) if text.startswith("~") else text
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if isinstance(value, dict):
        return {name: _expanded(item) for name, item in value.items()}
    return value


def _explained(model: type[BaseModel], error: ValidationError, where: str) -> RecipeError:
    details = error.errors(include_url=False)
    first = details[0]
    known_tags = set(ALGORITHMS)
    names = [str(part) for part in first["loc"] if str(part) not in known_tags]
    field = ".".join(names)
    more = f" ({len(details) - 1} more)" if len(details) > 1 else ""
    if first["type"] == "extra_forbidden":
        allowed = _fields(model, names[:-1])
        close = get_close_matches(names[-1], allowed, n=1)
        advice = f"Did you mean {close[0]}?" if close else f"Allowed: {', '.join(sorted(allowed))}."
        return RecipeError(f"Unknown field {field}{more}.", where=where, remedy=advice)
    if first["type"] == "missing":
        return RecipeError(f"{field} is missing{more}.", where=where, remedy=f"Set it, e.g. --set {field}=…")
    message = first["msg"][0].lower() + first["msg"][1:]
    return RecipeError(f"{field} = {first['input']!r}: {message}{more}.", where=where)


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields of the section at `path`."""
    current: Any = model
    for name in path:
        declared = getattr(current, "model_fields", {}).get(name)
        annotation = declared.annotation if declared is not None else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        current = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(getattr(current, "model_fields", {}))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
