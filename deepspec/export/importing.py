"""A draft that others have published, taken over: checked against a target, then written as one of our own.

What comes in is a directory in the layout of the public checkpoints (`deepspec_format` writes the same). All of it is
checked before anything is written. config.json is then written as training writes it, from the target and from what the
layout says of the draft: a field that neither knows (code to be run, a quantisation) does not get in. The weights keep
their dtype; a file that is whole is copied as it is, so that the same weights have the same digest.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepspec.drafts import algorithm_of
from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.files.config_json import (
    CONFIG_FILE,
    COPY_AGAIN,
    TOKENIZER_FIELD,
    draft_config,
    write_draft_config,
)
from deepspec.drafts.files.public_files import PublicFiles, public_files
from deepspec.drafts.files.weights_file import (
    WEIGHTS_FILE,
    check_dtype,
    check_finite,
    check_shapes,
    check_size,
    write_tensors,
)
from deepspec.drafts.initialization import TABLES
from deepspec.errors import IncompatibleDraft
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec
from deepspec.targets.weight_files import SINGLE
from deepspec.targets.weights import Weights, read_tables

_DTYPES: Mapping[str, str] = MappingProxyType(
    {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
)
_FULL = "full_attention"


@dataclass(frozen=True)
class Imported:
    """What was taken over.

    Attributes:
        algorithm: the draft's.
        num_tensors: of its weights.
        has_the_targets_tables: whether its embedding and head are the target's. Every draft is trained with its
            target's tables and keeps a copy: another one was trained for another version of the target.
    """

    algorithm: str
    num_tensors: int
    has_the_targets_tables: bool


def import_draft(directory: Path, target: TargetSpec, out: Path) -> Imported:
    """Check a published draft against a target, and write it as a draft directory of our own.

    Args:
        directory: in the layout of the public checkpoints.
        target: what it is to propose for.
        out: new directory.

    Raises:
        IncompatibleDraft: the directory cannot be read safely, is no draft of a known algorithm, or does not fit the
            target; names file and field or tensor. Nothing is written then.
        UnsupportedTarget: the target's tables cannot be read.
    """
    files = public_files(directory)
    algorithm = algorithm_of(directory)
    _check_body(files, algorithm, target)
    described = algorithm.read_for(directory, target)
    _check_shapes(files, algorithm, described, target)
    _check_values(files)
    same = _has_tables_of(files, target)
    dtype = _DTYPES[files.tensors["fc.weight"].dtype]
    config = draft_config(target, algorithm.architecture, described.num_layers, dtype) | algorithm.saved(described)
    if not same and TOKENIZER_FIELD not in files.config:
        config.pop(TOKENIZER_FIELD, None)  # with which tokenizer it was trained nothing says
    out.mkdir(parents=True)
    write_draft_config(config, out)
    if files.weights == (directory / SINGLE,):
        shutil.copyfile(files.weights[0], out / WEIGHTS_FILE)
    else:
        write_tensors(dict(_tensors(files)), out / WEIGHTS_FILE)
    return Imported(algorithm.name, len(files.tensors), same)


def _check_body(files: PublicFiles, algorithm: Algorithm, target: TargetSpec) -> None:
    """What a draft for this target is called, and that its layers see everything: a reader would not notice later."""
    family, where = family_of(target), f"{files.directory.name}/{CONFIG_FILE}"
    names: tuple[tuple[str, Sequence[Any]], ...] = (
        ("model_type", family.model_types),
        ("architectures", ([family.draft_prefix + algorithm.architecture],)),
    )
    for field, allowed in names:
        if files.config.get(field) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise IncompatibleDraft(
                f"field {field} is {_shown(files.config.get(field))}, but a draft for this target has {expected}.",
                where=where,
                remedy="Use the target that the draft was trained for, or a draft in the public checkpoints' layout.",
            )
    kinds = files.config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != _FULL for kind in kinds)):
        raise IncompatibleDraft(
            f"field layer_types is {_shown(kinds)}, but all layers of a draft are {_FULL}.",
            where=where,
            remedy="Use a draft in the public checkpoints' layout.",
        )


def _check_shapes(files: PublicFiles, algorithm: Algorithm, described: Any, target: TargetSpec) -> None:
    """Every tensor by the headers: no memory is taken for a network that the weights are not of."""
    shapes = {name: tensor.shape for name, tensor in files.tensors.items()}
    for name, tensor in files.tensors.items():
        check_dtype(name, tensor.dtype, f"{files.directory.name}/{tensor.file.name}")
    check_size(described.num_layers, shapes, files.directory)
    with torch.device("meta"):
        draft = algorithm.build(described, target)
    whole = len(files.weights) == 1
    check_shapes(draft, shapes, f"{files.directory.name}/{files.weights[0].name}" if whole else files.directory.name)


def _check_values(files: PublicFiles) -> None:
    for name, tensor in _tensors(files):
        check_finite(name, tensor, f"{files.directory.name}/{files.tensors[name].file.name}")


def _has_tables_of(files: PublicFiles, target: TargetSpec) -> bool:
    """Whether embedding and head are the target's, in the draft's dtype."""
    found = dict(_tensors(files, TABLES))
    tables = read_tables(Weights(target.path), target, dtype=found[TABLES[0]].dtype)
    return all(
        torch.equal(found[name], table.to(found[name].dtype)) for name, table in zip(TABLES, tables, strict=True)
    )


def _tensors(files: PublicFiles, names: tuple[str, ...] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Tensors, all or some, one after the other; a file is mapped while its own are read."""
    for file in files.weights:
        with _readable(file), safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                if names is None or name in names:
                    yield name, opened.get_tensor(name)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise IncompatibleDraft(
            f"cannot be read as safetensors: {error}.", where=f"{file.parent.name}/{file.name}", remedy=COPY_AGAIN
        ) from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
