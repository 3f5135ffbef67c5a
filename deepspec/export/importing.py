"""A draft that others have published, taken over: checked against a target, then written as one of our own.

What comes in is a directory in one of the layouts of `deepspec.drafts.layouts`; its config.json says in which. That is
read in our own words, and then all is checked, by the same checks for every layout, before anything is written.
config.json is then written as training writes it, from the target and from what the layout says of the draft: a field
that neither knows (code to be run, a quantisation) does not get in. The weights keep their dtype; a file that is whole
and has our names is copied as it is, so that the same weights have the same digest.
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

from deepspec.drafts import algorithm_in
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
from deepspec.drafts.layouts import in_its_words, layout_of, read_layout
from deepspec.drafts.layouts.layout import Layout
from deepspec.errors import IncompatibleDraft
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec
from deepspec.targets.weight_files import SINGLE, StoredTensor
from deepspec.targets.weights import Weights, read_tables

_DTYPES: Mapping[str, str] = MappingProxyType(
    {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
)
_FULL = "full_attention"
_MAPS: Mapping[str, str] = MappingProxyType({"d2t": "I64", "t2d": "BOOL"})
"""Tensors of a draft's own vocabulary: how far each of its ids is from the target's, and which of those it has."""


@dataclass(frozen=True)
class Imported:
    """What was taken over.

    Attributes:
        algorithm: the draft's.
        num_tensors: of its weights.
        has_the_targets_tables: whether its embedding and head are the target's. Every draft is trained with its
            target's tables and keeps a copy: another one was trained for another version of the target.
        layout: the one that it was in.
        assumed: what its files leave open, and what was taken for it, in sentences.
    """

    algorithm: str
    num_tensors: int
    has_the_targets_tables: bool
    layout: str
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A directory as it was looked at.

    Attributes:
        files: its files.
        layout: the one that it is in.
        config: its config.json in our own words.
        tensors: by our names, without vocabulary maps.
    """

    files: PublicFiles
    layout: Layout
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def name(self) -> str:
        return self.files.directory.name

    def read(self, names: tuple[str, ...] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Tensors, all or some, one after the other; a file is mapped while its own are read."""
        for file in self.files.weights:
            with _readable(file), safe_open(file, framework="pt", device="cpu") as opened:
                for there in opened.keys():  # noqa: SIM118 (no mapping)
                    name = self.layout.tensor_name(there)
                    if name in self.tensors and (names is None or name in names):
                        yield name, opened.get_tensor(there)


def import_draft(directory: Path, target: TargetSpec, out: Path) -> Imported:
    """Check a published draft against a target, and write it as a draft directory of our own.

    Args:
        directory: in one of the layouts of `deepspec.drafts.layouts`.
        target: what it is to propose for.
        out: new directory.

    Raises:
        IncompatibleDraft: the directory cannot be read safely, is no draft of a known algorithm, is one that cannot be
            run here, or does not fit the target; names file and field or tensor. Nothing is written then.
        UnsupportedTarget: the target's tables cannot be read.
    """
    files = public_files(directory)
    said, assumed = read_layout(files.config, directory)
    layout = layout_of(files.config)
    found = _Found(files, layout, {"num_target_layers": target.num_layers, **said}, _named(files, layout))
    algorithm = algorithm_in(found.config, directory)
    with in_its_words(layout):
        _check_body(found, algorithm, target)
        described = algorithm.read_for(directory, target, written=found.config)
    _check_maps(files, target)
    _check_shapes(found, algorithm, described, target)
    _check_values(found)
    tables = _tables(found, target)
    same = all(torch.equal(tensor, tables[name]) for name, tensor in found.read(TABLES))
    absent = {name: table for name, table in tables.items() if name not in found.tensors}
    dtype = _DTYPES[found.tensors["fc.weight"].dtype]
    config = draft_config(target, algorithm.architecture, described.num_layers, dtype) | algorithm.saved(described)
    if not same and TOKENIZER_FIELD not in files.config:
        config.pop(TOKENIZER_FIELD, None)  # with which tokenizer it was trained nothing says
    out.mkdir(parents=True)
    write_draft_config(config, out)
    _write_weights(found, absent, out / WEIGHTS_FILE)
    if absent:
        assumed += (f"Its files have no {' and no '.join(sorted(absent))}: the target's are taken.",)
    return Imported(algorithm.name, len(found.tensors) + len(absent), same, layout.name, assumed)


def _named(files: PublicFiles, layout: Layout) -> dict[str, StoredTensor]:
    """The tensors by our names, without vocabulary maps."""
    named: dict[str, StoredTensor] = {}
    for there, tensor in files.tensors.items():
        name = layout.tensor_name(there)
        if _MAPS.get(there) == tensor.dtype:
            continue
        if name in named:
            raise IncompatibleDraft(
                f"tensor {there} is there twice, also as {name}.",
                where=f"{files.directory.name}/{tensor.file.name}",
                remedy=COPY_AGAIN,
            )
        named[name] = tensor
    return named


def _check_maps(files: PublicFiles, target: TargetSpec) -> None:
    """A vocabulary map says nothing where every token is its own; no other can be run."""
    for name, dtype in _MAPS.items():
        stored = files.tensors.get(name)
        if stored is None or stored.dtype != dtype:
            continue
        where = f"{files.directory.name}/{stored.file.name}"
        with _readable(stored.file), safe_open(stored.file, framework="pt", device="cpu") as opened:
            tensor = opened.get_tensor(name)
        if tensor.shape != (target.vocab_size,) or not bool(((tensor == 0) if name == "d2t" else tensor).all()):
            raise IncompatibleDraft(
                f"tensor {name} maps a vocabulary of the draft's own, of {tensor.numel()} ids; drafts that run here"
                f" have the target's {target.vocab_size}, each for itself.",
                where=where,
                remedy="Use a draft with the whole vocabulary.",
            )


def _check_body(found: _Found, algorithm: Algorithm, target: TargetSpec) -> None:
    """What a draft for this target is called, and that its layers see everything: a reader would not notice later."""
    family, where = family_of(target), f"{found.name}/{CONFIG_FILE}"
    names: tuple[tuple[str, Sequence[Any]], ...] = (
        ("model_type", family.model_types),
        ("architectures", ([family.draft_prefix + algorithm.architecture],)),
    )
    for field, allowed in names:
        if found.config.get(field) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise IncompatibleDraft(
                f"field {field} is {_shown(found.config.get(field))}, but a draft for this target has {expected}.",
                where=where,
                remedy="Use the target that the draft was trained for, or a draft in a layout that deepspec reads.",
            )
    kinds = found.config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != _FULL for kind in kinds)):
        raise IncompatibleDraft(
            f"field layer_types is {_shown(kinds)}, but all layers of a draft are {_FULL}.",
            where=where,
            remedy="Use a draft whose layers see everything.",
        )


def _check_shapes(found: _Found, algorithm: Algorithm, described: Any, target: TargetSpec) -> None:
    """Every tensor by the headers: no memory is taken for a network that the weights are not of."""
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    for name, tensor in found.tensors.items():
        check_dtype(name, tensor.dtype, f"{found.name}/{tensor.file.name}")
    check_size(described.num_layers, shapes, found.files.directory)
    if not found.layout.holds_tables:
        shapes = dict.fromkeys(TABLES, (target.vocab_size, target.hidden_size)) | shapes
    with torch.device("meta"):
        draft = algorithm.build(described, target)
    weights = found.files.weights
    check_shapes(draft, shapes, f"{found.name}/{weights[0].name}" if len(weights) == 1 else found.name)


def _check_values(found: _Found) -> None:
    for name, tensor in found.read():
        check_finite(name, tensor, f"{found.name}/{found.tensors[name].file.name}")


def _tables(found: _Found, target: TargetSpec) -> dict[str, Tensor]:
    """The target's embedding and head, each in the dtype that it has in the draft, or would have."""
    dtypes = {name: found.tensors.get(name, found.tensors["fc.weight"]).dtype for name in TABLES}
    tables = read_tables(Weights(target.path), target, dtype=getattr(torch, _DTYPES[dtypes[TABLES[0]]]))
    return {name: table.to(getattr(torch, _DTYPES[dtypes[name]])) for name, table in zip(TABLES, tables, strict=True)}


def _write_weights(found: _Found, absent: Mapping[str, Tensor], out: Path) -> None:
    weights, there = found.files.weights, found.files.tensors
    if not absent and weights == (found.files.directory / SINGLE,) and found.tensors.keys() == there.keys():
        shutil.copyfile(weights[0], out)
        return
    # Each table lies in a place of its own in the file, also where a target has them in common.
    write_tensors({**dict(found.read()), **{name: table.clone() for name, table in absent.items()}}, out)


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
