"""The one reader of a target's directory: its shape as a `TargetSpec`, and whether all of its files agree.

Plans, previews, runs and loading read a target here, so that what one of them refuses none of the others accepts. A
directory that says one thing twice is refused by file and field, unless transformers' own reading is the only one that
engines have.

No torch here: recipes, estimates and checks read a target's directory in milliseconds.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspec import targets
from deepspec.data.chat.tokenizer_files import TOKENIZER_FILE, TokenizerFiles
from deepspec.errors import RecipeError, UnsupportedTarget
from deepspec.foreign_json import read_object
from deepspec.targets.family import TargetSpec, spec_from_config, text_config
from deepspec.targets.layer_tensors import check_tensors
from deepspec.targets.weight_files import has_weights, stored_tensors

_CONFIG = "config.json"
_GENERATION = "generation_config.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_QUANTISED_FIELDS = ("quantization_config", "compression_config")


def read_target(path: Path | str) -> TargetSpec:
    """The spec of a directory that holds a whole target, all of it looked at: what a run starts with.

    Raises:
        UnsupportedTarget: see `read_spec`, `stored_tensors`, `check_tensors`, `stop_token_ids` and `TokenizerFiles`.
    """
    spec = read_spec(path)
    check_tensors(spec, targets.family_of(spec), stored_tensors(spec.path))
    stop_token_ids(spec, check_tokenizer(spec))
    return spec


def read_there(path: Path | str) -> TargetSpec:
    """The spec of a directory that need not hold all of a target yet; of weights and tokenizer, what is there counts.

    An estimate asks several times: a directory in which no file has changed is looked at once.

    Raises:
        UnsupportedTarget: see `read_target`.
    """
    path = Path(path)
    try:
        states = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    except OSError as error:
        raise UnsupportedTarget(
            f"cannot be read: {error.strerror}.", where=str(path), remedy="Name a directory in Hugging Face's layout."
        ) from error
    return _read_there(path, tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states))


@functools.lru_cache(maxsize=8)
def _read_there(path: Path, _state: tuple[Any, ...]) -> TargetSpec:
    spec = read_spec(path)
    if has_weights(spec.path):
        check_tensors(spec, targets.family_of(spec), stored_tensors(spec.path))
    stop_token_ids(spec, check_tokenizer(spec) if (spec.path / TOKENIZER_FILE).exists() else None)
    return spec


def read_spec(path: Path | str) -> TargetSpec:
    """Read `path`/config.json.

    Raises:
        UnsupportedTarget: no or unreadable config.json, a model type of no family, a field missing or of the wrong
            type, or something the family refuses; an adapter or a quantised model.
    """
    path = Path(path)
    config = read_object(path / _CONFIG)
    model_type = str(config.get("model_type"))
    family = next((f for f in targets.FAMILIES.values() if model_type in f.model_types), None)
    if family is None:
        known = sorted(t for f in targets.FAMILIES.values() for t in f.model_types)
        raise UnsupportedTarget(
            f"model_type {model_type!r} belongs to no supported family.",
            where=f"{path.name}/{_CONFIG}",
            remedy=f"Supported model types: {', '.join(known)}.",
        )
    text = text_config(family, config)
    for fields in (config, text):
        _refuse_quantised(path, fields)
    _refuse_beside(path)
    return spec_from_config(family, text, path=path, model_type=model_type)


def check_tokenizer(spec: TargetSpec) -> TokenizerFiles:
    """The files of a target's tokenizer, if they fit it.

    Raises:
        UnsupportedTarget: see `TokenizerFiles`; or a token's id is beyond the embedding.
    """
    files = TokenizerFiles.read(spec.path)
    beyond = {token: number for token, number in files.ids.items() if number >= spec.vocab_size}
    if beyond:
        token, number = max(beyond.items(), key=lambda item: item[1])
        raise UnsupportedTarget(
            f"{len(beyond)} of {len(files.ids)} tokens have ids beyond config.json's vocab_size {spec.vocab_size}:"
            f" {token!r} is {number}.",
            where=str(spec.path / TOKENIZER_FILE),
            remedy="tokenizer.json and config.json are of two models: copy the directory again, all of it.",
        )
    files.check_templates()
    config = read_object(spec.path / _CONFIG)
    files.check_class(str(config.get("tokenizer_class") or targets.family_of(spec).tokenizer_class))
    return files


def check_mask_token(spec: TargetSpec, token_id: int) -> None:
    """Refuse a mask token that a text can contain: a draft could not tell the token from a masked position.

    Raises:
        RecipeError: it is a token of ordinary text, ends an answer, or stands in a chat template.
        UnsupportedTarget: the tokenizer's files cannot be used.
    """
    files = TokenizerFiles.read(spec.path)
    token = next((token for token, number in files.ids.items() if number == token_id), None)
    if token is None:
        return
    if token not in files.special:
        reason = "a token of ordinary text"
    elif token_id in stop_token_ids(spec, files):
        reason = "a token that ends an answer"
    elif any(token in text for text in files.templates.values()):
        reason = "a token that the chat template writes"
    else:
        return
    free = max(files.ids.values()) + 1
    other = f"Name an id that no token has (from {free} to {spec.vocab_size - 1})" if free < spec.vocab_size else "Name"
    raise RecipeError(
        f"the mask token {token_id} is {token!r}, {reason}.",
        where="draft.mask_token_id",
        remedy=f"{other}{' or' if free < spec.vocab_size else ''} a special token that no text contains.",
    )


def stop_token_ids(spec: TargetSpec, files: TokenizerFiles | None = None) -> tuple[int, ...]:
    """Ids that end an answer: those of generation_config.json (else config.json) and the chat format's end of turn.

    Args:
        spec: the target.
        files: of its tokenizer; None: they are read, if they are there.

    Raises:
        UnsupportedTarget: a file is damaged, or an id is no token of the target.
    """
    path, family = spec.path, targets.family_of(spec)
    config = read_object(path / _CONFIG)
    sources = {_CONFIG: {**text_config(family, config), **{k: v for k, v in config.items() if v is not None}}}
    if (path / _GENERATION).exists():
        sources = {_GENERATION: read_object(path / _GENERATION), **sources}
    found: set[int] = set()
    for name, fields in sources.items():
        declared = fields.get("eos_token_id")
        if declared is not None:
            found |= _ids(declared, spec, f"{path / name}")
            break
    if files is None and (path / TOKENIZER_FILE).exists():
        files = TokenizerFiles.read(path)
    if files is not None:
        found |= {number for token, number in files.added.items() if token in family.chat.end_of_turn_tokens}
    return tuple(sorted(found))


def _ids(declared: Any, spec: TargetSpec, where: str) -> set[int]:
    ids = declared if isinstance(declared, list) else [declared]
    for number in ids:
        if type(number) is not int or not 0 <= number < spec.vocab_size:
            raise UnsupportedTarget(
                f"field eos_token_id is {declared!r}: {number!r} is no token id below {spec.vocab_size}.",
                where=where,
                remedy="Correct the field; it says which tokens end an answer.",
            )
    return set(ids)


def _refuse_quantised(path: Path, fields: Mapping[str, Any]) -> None:
    for name in _QUANTISED_FIELDS:
        if fields.get(name) is not None:
            method = fields[name].get("quant_method") if isinstance(fields[name], Mapping) else fields[name]
            raise UnsupportedTarget(
                f"field {name} is there (method {method!r}): the model is quantised, or was.",
                where=str(path / _CONFIG),
                remedy="Name the directory of the model that is not quantised; where its weights are plain, remove the"
                " field.",
            )


def _refuse_beside(path: Path) -> None:
    for names, what in (
        (_ADAPTERS, "an adapter lies next to the model, and it is not clear whether it counts"),
        (_QUANTISED, "it says that the model is quantised"),
    ):
        for name in names:
            if (path / name).exists():
                raise UnsupportedTarget(
                    f"{what}.",
                    where=str(path / name),
                    remedy="Merge the adapter into the weights (merge_and_unload, save_pretrained), or move it away."
                    if names is _ADAPTERS
                    else "Name the directory of the model that is not quantised.",
                )
