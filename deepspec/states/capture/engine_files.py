"""States that another engine has captured: files of vLLM's `extract_hidden_states`, turned into ours.

One safetensors file per request: `token_ids` [T] and `hidden_states` [T, n, D], which vLLM's connector writes with
`eagle_aux_hidden_state_layer_ids` = our layer ids plus one each (its id j is what *enters* layer j), and last the
number of layers: that state has not passed the final norm, which is applied here. Only the token ids
say which file belongs to which document. Source: spec page "Serving", sections 1a and 5.

Shapes: T tokens of a document, L captured layers, n = L + 1 stored vectors, D hidden.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepspec.errors import DataError
from deepspec.states.token_documents import Document
from deepspec.targets import family_of
from deepspec.targets.directory import read_spec
from deepspec.targets.family import TargetSpec
from deepspec.targets.layers import rms_norm
from deepspec.targets.weights import Weights

_STRETCH_TOKENS = 4096


def vllm_layer_ids(layer_ids: Sequence[int], spec: TargetSpec) -> tuple[int, ...]:
    """What `eagle_aux_hidden_state_layer_ids` has to be for the engine to capture `layer_ids` and the final state."""
    return (*(layer + 1 for layer in layer_ids), spec.num_layers)


class CapturedFiles:
    """A `StateOrigin` over a folder of such files.

    Args:
        folder: is searched for *.safetensors, subfolders too; 100 bytes a file are kept in memory.
        target: the target's directory; only its final norm is read.
        layer_ids: captured decoder layers, in the order of the files.
        dtype: what the final norm is computed in: what the engine computed in.

    Raises:
        DataError: there are no files, or one of them is of another form.
        UnsupportedTarget: the target has no final norm.
    """

    def __init__(self, folder: Path, target: Path, layer_ids: tuple[int, ...], *, dtype: str) -> None:
        self._spec = read_spec(target)
        self._layer_ids = layer_ids
        self._dtype = getattr(torch, dtype)
        weights = Weights(target)
        # Layers have norms of other names; a composite model may have a second norm elsewhere, the text model has one.
        prefix = weights.find("embed_tokens.weight").removesuffix("embed_tokens.weight")
        self._norm_D = weights.read(f"{prefix}norm.weight", dtype=self._dtype, shape=(self._spec.hidden_size,))
        self._folder = folder
        self._files: dict[bytes, Path] = {}
        for path in sorted(folder.rglob("*.safetensors")):
            self._files[_identity(_read(path, "token_ids").numpy())] = path
        if not self._files:
            raise DataError(
                "there are no captured files (*.safetensors).",
                where=str(folder),
                remedy="Name the folder that the engine writes hidden states to.",
            )

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Captured decoder layers, in the order of the states."""
        return self._layer_ids

    @property
    def hidden_size(self) -> int:
        """Numbers per state."""
        return self._spec.hidden_size

    @property
    def stretch_tokens(self) -> int:
        """Not much: files are read one by one."""
        return _STRETCH_TOKENS

    def states(self, documents: Sequence[Document]) -> Iterator[tuple[list[Document], Tensor, Tensor]]:
        """See `StateOrigin.states`; one document at a time."""
        for document in documents:
            path = self._files.get(_identity(document.input_ids_T))
            if path is None:
                raise DataError(
                    "no captured file has the token ids of this document.",
                    where=f"row {document.index}",
                    remedy=f"Have the engine capture every row of the tokens file, into {self._folder}.",
                )
            hidden_TnD = _read(path, "hidden_states")
            expected = (len(document.input_ids_T), len(self._layer_ids) + 1, self.hidden_size)
            if hidden_TnD.shape != expected:
                raise DataError(
                    f"hidden_states is {list(hidden_TnD.shape)}; {list(expected)} was expected.",
                    where=str(path),
                    remedy=f"Have the engine capture the layers {list(vllm_layer_ids(self._layer_ids, self._spec))}.",
                )
            final_TD = rms_norm(
                hidden_TnD[:, -1].to(self._dtype),
                self._norm_D,
                self._spec.rms_norm_eps,
                casts_first=family_of(self._spec).norm_casts_first,
            )
            yield [document], hidden_TnD[:, :-1].to(torch.bfloat16), final_TD.to(torch.bfloat16)


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{name} cannot be read: {error}.",
            where=str(path),
            remedy="Copy the file again, or have the engine capture that row again.",
        ) from error


def _identity(ids_T: "np.ndarray[tuple[int, ...], np.dtype[np.integer]]") -> bytes:
    return hashlib.sha256(np.ascontiguousarray(ids_T, dtype=np.int64).tobytes()).digest()
