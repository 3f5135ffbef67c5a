"""A draft directory as an export needs it: what its config.json says, whose body it has, and its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deepspec.drafts import algorithm_in
from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.files.config_json import CONFIG_FILE, body_of, read_draft_config
from deepspec.drafts.files.weights_file import WEIGHTS_FILE, read_tensors, write_tensors
from deepspec.errors import IncompatibleDraft
from deepspec.export.matrix import HEADLESS
from deepspec.foreign_json import strict_text
from deepspec.targets import FAMILIES, family_of
from deepspec.targets.family import TargetSpec

_HEAD = "markov_head"


@dataclass(frozen=True)
class Described:
    """A draft as its config.json describes it.

    Attributes:
        directory: where it lies.
        written: its config.json.
        algorithm, config: what it is.
        spec: the shape of its body; layers are counted as the target's.
    """

    directory: Path
    written: Mapping[str, Any]
    algorithm: Algorithm
    config: Any
    spec: TargetSpec

    @classmethod
    def read(cls, directory: Path, written: Mapping[str, Any] | None = None) -> "Described":
        """Read a draft directory.

        Args:
            directory: config.json and weights.
            written: what config.json says, in our own layout; None: it is in our own layout.

        Raises:
            IncompatibleDraft: it is no draft's.
        """
        written = read_draft_config(directory) if written is None else written
        algorithm = algorithm_in(written, directory)
        config = algorithm.read(written, directory)  # sees that num_target_layers is a number
        return cls(directory, written, algorithm, config, target_of(written, written["num_target_layers"], directory))

    @property
    def row(self) -> str:
        """Its row in the table of what engines load."""
        return self.algorithm.export_row(self.config)

    @property
    def layer_ids(self) -> list[int]:
        """The target's layers that it reads, by the number of the layer whose output it is; -1: the embedding."""
        return list(self.config.target_layer_ids)

    @property
    def num_draft_tokens(self) -> int:
        """Tokens proposed per round."""
        return self.algorithm.num_draft_tokens(self.config)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its weights, in their own dtype.

        Raises:
            IncompatibleDraft: they cannot be read.
        """
        return dict(read_tensors(self.directory))

    def body(self) -> dict[str, Any]:
        """What a config.json has to say of its body, so that nothing is left to a reader's default."""
        num_layers, copied = self.config.num_layers, family_of(self.spec).draft_fields(self.spec)
        return {
            **{name: copied[name] for name in family_of(self.spec).body_fields if copied.get(name) is not None},
            **rope_fields(self.written, self.spec),
            "num_hidden_layers": num_layers,
            "layer_types": ["full_attention"] * num_layers,
            "tie_word_embeddings": False,
        }


def with_zero_head(described: Described, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with a sequential head of rank 1 that adds zero to every logit, if the draft has none itself."""
    if described.row not in HEADLESS:
        return tensors
    size, dtype = described.spec.vocab_size, tensors["fc.weight"].dtype
    head = {f"{_HEAD}.markov_{part}.weight": torch.zeros(size, 1, dtype=dtype) for part in ("w1", "w2")}
    return tensors | head


def head_fields(described: Described) -> dict[str, Any]:
    """What a block draft's config.json says of its sequential head, one that adds zero included."""
    names = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")
    saved = described.algorithm.saved(described.config)
    said = {"confidence_head_with_markov": False, **{name: saved[name] for name in names if name in saved}}
    if described.row in HEADLESS:
        return said | {"markov_rank": 1, "markov_head_type": "vanilla", "confidence_head_with_markov": False}
    return said


def write_directory(out: Path, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], draft: Path) -> None:
    """Write config.json and weights to the new directory `out`.

    Raises:
        IncompatibleDraft: a field of the draft's has no place in strict JSON.
    """
    try:
        text = strict_text(dict(config), indent=2)
    except ValueError as error:
        raise IncompatibleDraft(
            f"others could not read it: field {error}.",
            where=f"{draft.name}/{CONFIG_FILE}",
            remedy="Correct that field, which was copied from the target's config.json.",
        ) from error
    out.mkdir(parents=True)
    (out / CONFIG_FILE).write_text(text, encoding="utf-8")
    write_tensors(tensors, out / WEIGHTS_FILE)


def rope_fields(config: Mapping[str, Any], spec: TargetSpec) -> dict[str, Any]:
    """Rotary parameters in the new and the old notation; a family with several kinds of them has only one notation."""
    written = config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in written.values()):
        return {}
    rope = dict(spec.rope)
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    old = {"rope_scaling": scaling} if scaling.get("rope_type") != "default" else {}
    return {"rope_parameters": rope, "rope_theta": rope["rope_theta"], **old}


def target_of(config: Mapping[str, Any], num_target_layers: int, directory: Path) -> TargetSpec:
    """What the draft's config.json says of the target: the body's shape and the number of layers.

    Raises:
        IncompatibleDraft: no supported family has such a body.
    """
    model_type = str(config.get("model_type"))
    family = next((family for family in FAMILIES.values() if model_type in family.model_types), None)
    if family is None:
        raise IncompatibleDraft(
            f"model_type {model_type!r} belongs to no supported family.",
            where=f"{directory.name}/{CONFIG_FILE}",
            remedy="Export a draft that was trained for a supported target.",
        )
    return replace(body_of(config, family, directory), num_layers=num_target_layers)
