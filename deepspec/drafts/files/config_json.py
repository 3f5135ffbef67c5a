"""The `config.json` of a draft's directory: written, read and checked without torch, as registry and estimate need it.

The fields are those of the public checkpoints; source: spec page "Serving", section 4. One is ours, and readers that do
not know it pass over it: `tokenizer_fingerprint`, which tokenizer the draft was trained with. None is a format version.
Names that are not known (an architecture, a kind of head) are refused rather than guessed; should a draft ever need
more than that to be read rightly, it will say `deepspec_format`, and this version will refuse it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepspec.config import Section
from deepspec.data.chat.tokenizer import tokenizer_identity
from deepspec.errors import ArtifactError, IncompatibleDraft, UnsupportedTarget
from deepspec.foreign_json import parse
from deepspec.store.records import refuse_newer
from deepspec.targets import family_of
from deepspec.targets.family import Family, TargetSpec, spec_from_config

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TOKENIZER_FIELD = "tokenizer_fingerprint"
FORMAT_FIELD = "deepspec_format"
"""Not written yet: a draft without it is of format 1."""
COPY_AGAIN = "Copy the draft's folder again, all of it."

_MAX_BYTES = 4 << 20
_MOST_SHOWN = 100
_MOST = 2**31 - 1
"""No size of a network is larger, and products of two of them still fit into what torch counts with."""

_NOT_COPIED = frozenset({"torch_dtype", "transformers_version", "_name_or_path", "use_cache", "quantization_config"})
_TAKEN_FROM_TARGET = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope",
    "hidden_act",
    "value_from_keys",
    "attention_scale",
    "embedding_scale",
    "logit_softcap",
)


def read_draft_config(directory: Path) -> dict[str, Any]:
    """A draft directory's config.json.

    Raises:
        IncompatibleDraft: there is none, it is no JSON object, or a newer deepspec wrote it.
    """
    where = _where(directory)
    file = directory / CONFIG_FILE
    if not file.is_file():  # what is no file may not even end
        raise IncompatibleDraft(
            "there is no config.json.",
            where=str(directory),
            remedy="Name a draft's folder: config.json and model.safetensors.",
        )
    try:
        with file.open("rb") as opened:
            config = parse(opened.read(_MAX_BYTES + 1), _MAX_BYTES)
    except (OSError, ValueError) as error:
        raise IncompatibleDraft(f"cannot be read as JSON: {error}.", where=where, remedy=COPY_AGAIN) from error
    if not isinstance(config, dict):
        raise IncompatibleDraft("is not a JSON object.", where=where, remedy=COPY_AGAIN)
    try:
        refuse_newer(config, 1, what="This draft", where=where, otherwise="train it with this one", field=FORMAT_FIELD)
    except ArtifactError as error:
        raise IncompatibleDraft(error.what, where=error.where, remedy=error.remedy) from None
    return config


def write_draft_config(config: Mapping[str, Any], directory: Path) -> None:
    """Write a draft directory's config.json, its fields sorted."""
    text = json.dumps(dict(config), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class SavedAs:
    """Marks a field of a draft's Config that config.json says: `Annotated[int, SavedAs("block_size")]`.

    Args:
        name: what it is called there, as in the public checkpoints.
        absent: its value where config.json does not say it; without one it is required.
        trained_with: it says how the draft was trained, not what it is: a recipe may say otherwise.
    """

    name: str
    absent: Any = ...
    trained_with: bool = False

    @staticmethod
    def of(kind: type[Section]) -> dict[str, "SavedAs"]:
        """The marks of a Config, by field."""
        fields = kind.model_fields.items()
        return {field: mark for field, info in fields for mark in info.metadata if isinstance(mark, SavedAs)}


def saved_fields(config: Section) -> dict[str, Any]:
    """What config.json says of a draft's Config, under its names there."""
    values = {mark.name: getattr(config, field) for field, mark in SavedAs.of(type(config)).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def read_fields(kind: type[Section], written: Mapping[str, Any], directory: Path) -> Section:
    """The Config that a draft's config.json was written with; what it does not say has its default.

    Raises:
        IncompatibleDraft: a field is missing, of another type or out of range.
    """
    marks = {"num_target_layers": SavedAs("num_target_layers"), **SavedAs.of(kind)}
    values: dict[str, Any] = {}
    for field, mark in marks.items():
        value = written.get(mark.name)
        value = mark.absent if value is None else value
        if value is ...:
            raise IncompatibleDraft(
                f"field {mark.name} is missing.",
                where=_where(directory),
                remedy=COPY_AGAIN,
            )
        if isinstance(value, int) and not -_MOST <= value <= _MOST:
            raise _of_another_kind(mark.name, value, "a number of 32 bits", directory)
        values[field] = tuple(value) if isinstance(value, list) else value
    num_target_layers = values.pop("num_target_layers")
    if type(num_target_layers) is not int:
        raise _of_another_kind("num_target_layers", num_target_layers, "int", directory)
    try:
        return kind.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise IncompatibleDraft(f"{first['msg']}.", where=_where(directory), remedy=COPY_AGAIN) from error
        name = marks[str(first["loc"][0])].name
        if first["type"].endswith("_type"):
            kind_name = first["type"].removesuffix("_type").replace("tuple", "list")
            raise _of_another_kind(name, written[name], kind_name, directory) from error
        raise IncompatibleDraft(
            f"field {name} is {_shown(written[name])}: {first['msg']}.",
            where=_where(directory),
            remedy=COPY_AGAIN,
        ) from error


def draft_config(spec: TargetSpec, architecture: str, num_layers: int, dtype: str) -> dict[str, Any]:
    """What every draft's config.json says: the target's text configuration with the draft's own fields.

    Args:
        spec: the target.
        architecture: what the network is called, without the family's prefix.
        num_layers: its decoder layers.
        dtype: of its weights.
    """
    family = family_of(spec)
    tokenizer = tokenizer_identity(spec.path)
    copied = {key: value for key, value in family.draft_fields(spec).items() if key not in _NOT_COPIED}
    return (
        copied
        | ({TOKENIZER_FIELD: asdict(tokenizer)} if tokenizer else {})
        | {
            "architectures": [family.draft_prefix + architecture],
            "dtype": dtype,
            "num_hidden_layers": num_layers,
            "layer_types": ["full_attention"] * num_layers,
            "tie_word_embeddings": False,
            "num_target_layers": spec.num_layers,
        }
    )


def _of_another_kind(field: str, value: Any, kind: str, directory: Path) -> IncompatibleDraft:
    return IncompatibleDraft(
        f"field {field} is {_shown(value)}, not {kind}.",
        where=_where(directory),
        remedy=COPY_AGAIN,
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _where(directory: Path) -> str:
    return f"{directory.name}/{CONFIG_FILE}"


def check_fits(config: Mapping[str, Any], spec: TargetSpec, directory: Path) -> None:
    """Compare every field that a draft takes from its target, and the target's tokenizer with the draft's.

    Another chat template is said, not refused: the tokens mean the same, and a target's template is mended at times.

    Raises:
        IncompatibleDraft: a field differs, with both values; or the tokens do.
    """
    _check_tokenizer(config.get(TOKENIZER_FIELD), spec, directory)
    where = _where(directory)
    body = body_of(config, family_of(spec), directory)
    pairs = [(name, getattr(body, name), getattr(spec, name)) for name in _TAKEN_FROM_TARGET]
    for field, has, wants in [("num_target_layers", config["num_target_layers"], spec.num_layers), *pairs]:
        if has != wants:
            raise IncompatibleDraft(
                f"field {field} is {_shown(has)} in the draft, but {_shown(wants)} in the target.",
                where=where,
                remedy="Use the target that the draft was trained for.",
            )


def body_of(config: Mapping[str, Any], family: Family, directory: Path) -> TargetSpec:
    """The shape of a draft's body: a small model of its target's family, which says so in the same fields.

    Raises:
        IncompatibleDraft: a field of it is missing, of another type, or means nothing.
    """
    where = _where(directory)
    try:
        return spec_from_config(family, config, path=directory, model_type=str(config.get("model_type")))
    except UnsupportedTarget as error:
        raise IncompatibleDraft(error.what, where=where, remedy=COPY_AGAIN) from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Each of some twenty fields may be anything: what the family's reader makes of it is its own error.
        raise IncompatibleDraft(
            f"a field of the target's shape cannot be read: {_shown(error)}.", where=where, remedy=COPY_AGAIN
        ) from error


def _check_tokenizer(written: Any, spec: TargetSpec, directory: Path) -> None:
    if written is None:
        return  # of an older deepspec, or of others
    where = _where(directory)
    remedy = "Use the target that the draft was trained for, or train another draft."
    if not isinstance(written, dict):
        raise IncompatibleDraft(
            f"field {TOKENIZER_FIELD} is {_shown(written)}, not an object.",
            where=where,
            remedy=COPY_AGAIN,
        )
    found = tokenizer_identity(spec.path)
    if found is None:
        raise IncompatibleDraft(
            f"the draft was trained with a tokenizer, but there is no tokenizer.json in {spec.path}.",
            where=where,
            remedy="Put the target's tokenizer.json next to its weights.",
        )
    if written.get("vocabulary") != found.vocabulary:
        sizes = f"{written.get('num_tokens')} tokens, the target's {found.num_tokens}"
        raise IncompatibleDraft(
            f"the draft was trained with another tokenizer: other tokens have its ids ({sizes};"
            f" {str(written.get('vocabulary'))[:12]} is not {found.vocabulary[:12]}).",
            where=where,
            remedy=remedy,
        )
    if written.get("chat_template") != found.chat_template:
        logger.warning(
            "%s: the draft was trained with another chat template than the target's: it may be accepted less", where
        )


def check_fields(kind: type[Section], found: Mapping[str, Any], wanted: Mapping[str, Any], directory: Path) -> None:
    """Compare what a directory's config.json says of a draft with what it would say by a recipe.

    Raises:
        IncompatibleDraft: a field differs, with both values.
    """
    trained_with = {mark.name for mark in SavedAs.of(kind).values() if mark.trained_with}
    for field in dict.fromkeys((*found, *wanted)):
        has, wants = (side.get(field, "absent") for side in (found, wanted))
        if has != wants and field not in trained_with:
            raise IncompatibleDraft(
                f"field {field} is {_shown(has)}, but the recipe says {_shown(wants)}.",
                where=_where(directory),
                remedy="Change the recipe's draft section, or name another draft.",
            )
