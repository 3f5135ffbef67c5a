"""The tensors of a model directory by name, each read when it is asked for. safetensors only.

Of its own, because most of what needs a target's weights needs a few of them (a draft: two tables), and because
building transformers' module to read them costs seconds of imports.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepspec.errors import UnsupportedTarget
from deepspec.targets.family import TargetSpec
from deepspec.targets.layer_tensors import EMBEDDING, HEAD, find_tensor, has_head
from deepspec.targets.weight_files import StoredTensor, stored_tensors


class Weights:
    """Where each tensor of a model directory lies.

    Args:
        path: the directory.

    Raises:
        UnsupportedTarget: see `stored_tensors`.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._stored = stored_tensors(self._path)

    @property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Name -> what the file's header says of it."""
        return self._stored

    def find(self, ending: str) -> str:
        """The name that is `ending`, or ends with a dot and `ending`.

        Raises:
            UnsupportedTarget: there is none, or more than one.
        """
        return find_tensor(self._stored, ending, where=str(self._path))

    def below(self, prefix: str) -> list[str]:
        """The names that start with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._stored if name.startswith(prefix)]

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
        stored = self._stored.get(name)
        if stored is None:
            raise UnsupportedTarget(
                f"there is no tensor {name}.", where=str(self._path), remedy="Copy the directory again, all of it."
            )
        with self._opened(stored.file) as tensors:
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
    """A target's embedding and head [V, D]; the same tensor where they are equal.

    A head that lies in the files is the head, as in transformers, also where config.json calls the tables tied: some
    published models store the embedding twice, others forgot the field.

    Raises:
        UnsupportedTarget: they are not there, more than once there, or have another shape than config.json says.
    """
    shape = (spec.vocab_size, spec.hidden_size)
    embedding_VD = weights.read(weights.find(EMBEDDING), dtype=dtype, shape=shape, device=device)
    if spec.tie_word_embeddings and not has_head(weights.stored):
        return embedding_VD, embedding_VD
    head_VD = weights.read(weights.find(HEAD), dtype=dtype, shape=shape, device=device)
    same = spec.tie_word_embeddings and torch.equal(embedding_VD, head_VD)
    return embedding_VD, embedding_VD if same else head_VD
