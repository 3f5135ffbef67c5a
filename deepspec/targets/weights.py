"""The tensors of a model directory by name, each read when it is asked for. safetensors only.

Of its own, because most of what needs a target's weights needs a few of them (a draft: two tables), and because
building transformers' module to read them costs seconds of imports.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepspec.errors import UnsupportedTarget
from deepspec.targets.directory import weight_files
from deepspec.targets.family import TargetSpec


class Weights:
    """Where each tensor of a model directory lies.

    Args:
        path: the directory. If it has an index, only what the index names counts.

    Raises:
        UnsupportedTarget: no weights (see `weight_files`), or files that cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._files: dict[str, Path] = {}
        index = self._path / "model.safetensors.index.json"
        if index.is_file():
            mapped = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._files = {str(name): self._path / str(file) for name, file in mapped.items()}
            return
        for file in weight_files(self._path):
            with self._opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118  # not a dict
                    if name in self._files:
                        raise UnsupportedTarget(
                            f"{name} is in {self._files[name].name} and in {file.name}.",
                            where=str(self._path),
                            remedy="Keep the files of one copy, or add model.safetensors.index.json.",
                        )
                    self._files[name] = file

    def find(self, ending: str) -> str:
        """The name that is `ending`, or ends with a dot and `ending`.

        Raises:
            UnsupportedTarget: there is none, or more than one.
        """
        found = [name for name in self._files if name == ending or name.endswith(f".{ending}")]
        if len(found) != 1:
            raise UnsupportedTarget(
                f"{len(found)} tensors have the name {ending}, not one.",
                where=str(self._path),
                remedy="Copy the directory again, all of it.",
            )
        return found[0]

    def below(self, prefix: str) -> list[str]:
        """The names that start with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._files if name.startswith(prefix)]

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype,
        shape: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """One tensor.

        Args:
            name: its full name.
            dtype: what it is cast to.
            shape: what config.json says it should be.
            device: where it is wanted.

        Raises:
            UnsupportedTarget: it is missing, unreadable or of another shape.
        """
        file = self._files.get(name)
        if file is None:
            raise UnsupportedTarget(
                f"there is no tensor {name}.", where=str(self._path), remedy="Copy the directory again, all of it."
            )
        with self._opened(file) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise UnsupportedTarget(
                f"{name} has shape {list(tensor.shape)}; config.json says {list(shape)}.",
                where=str(self._path),
                remedy="config.json and weights are of two models: copy the directory again, all of it.",
            )
        return tensor.to(device=device, dtype=dtype)

    def _opened(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UnsupportedTarget(
                f"{file.name} cannot be read: {error}.", where=str(self._path), remedy="Copy the file again."
            ) from error


def read_tables(
    weights: Weights, spec: TargetSpec, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A target's embedding and head [V, D]; the same tensor where they are tied.

    Raises:
        UnsupportedTarget: they are not there, more than once there, or have another shape than config.json says.
    """
    shape = (spec.vocab_size, spec.hidden_size)
    embedding_VD = weights.read(weights.find("embed_tokens.weight"), dtype=dtype, shape=shape, device=device)
    if spec.tie_word_embeddings:
        return embedding_VD, embedding_VD
    return embedding_VD, weights.read(weights.find("lm_head.weight"), dtype=dtype, shape=shape, device=device)
