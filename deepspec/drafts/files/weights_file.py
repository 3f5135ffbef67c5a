"""Drafts as directories: `config.json` and `model.safetensors` in the layout of the public checkpoints.

What is written is one file; what is read may be several with an index. It is checked tensor by tensor before anything
runs: a draft that does not fit loads without error elsewhere and only its acceptance collapses. The weights' own dtype
is kept. What stands in config.json is `config_json`'s.

Source of the layout: spec page "Serving", section 4.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from deepspec.drafts.files.config_json import COPY_AGAIN, write_draft_config
from deepspec.drafts.files.stored import stored_weights
from deepspec.errors import IncompatibleDraft
from deepspec.file_system import readable_as_its_folder
from deepspec.targets.weight_files import INDEX, SINGLE

WEIGHTS_FILE = SINGLE
"""What is written."""

_DTYPES = ("F64", "F32", "F16", "BF16")


def save(draft: nn.Module, directory: Path, config: Mapping[str, Any]) -> None:
    """Write a draft, all of it in the dtype of its trained weights.

    Args:
        draft: with finite weights.
        directory: is made if it does not exist.
        config: its config.json.

    Raises:
        IncompatibleDraft: a weight is not finite, naming the tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    dtype = next(weight.dtype for weight in draft.parameters() if weight.requires_grad)
    for name, weight in draft.state_dict().items():
        # Tied tables lie in one place; in the file each has its own.
        shared = weight.data_ptr() in written
        tensors[name] = weight.detach().to(dtype, copy=shared).contiguous()
        written.add(weight.data_ptr())
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise IncompatibleDraft(
                "the tensor has values that are not finite; the draft was not saved.",
                where=name,
                remedy="Train it again with a lower train.lr.",
            )
    directory.mkdir(parents=True, exist_ok=True)
    write_draft_config(config, directory)
    write_tensors(tensors, directory / WEIGHTS_FILE)


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write tensors that share no memory as safetensors, readable by all who may read the folder."""
    save_file(tensors, file, metadata={"format": "pt"})
    readable_as_its_folder(file)


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a directory's tensors, by the files' headers.

    Raises:
        IncompatibleDraft: see `stored_weights`; or a tensor is of a dtype that no draft has.
    """
    stored = stored_weights(directory)
    for name, tensor in stored.items():
        check_dtype(name, tensor.dtype, f"{directory.name}/{tensor.file.name}")
    return {name: tensor.shape for name, tensor in stored.items()}


def read_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a directory, one after the other; a file is mapped while its own are read.

    Raises:
        IncompatibleDraft: see `stored_weights`.
    """
    for file in sorted({tensor.file for tensor in stored_weights(directory).values()}):
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise IncompatibleDraft(
                f"cannot be read as safetensors: {error}.", where=f"{directory.name}/{file.name}", remedy=COPY_AGAIN
            ) from error


def check_size(num_layers: int, found: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Before a network is made of what config.json says: see that its layers could be in the weights' header.

    Raises:
        IncompatibleDraft: there are fewer tensors than layers.
    """
    if num_layers > len(found):
        raise IncompatibleDraft(
            f"config.json says {num_layers} layers, but the weights have {len(found)} tensors.",
            where=weights_of(directory),
            remedy="Check that config.json and weights are of one draft.",
        )


def check_shapes(draft: nn.Module, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare a draft, whose tensors may still be without memory, with the weights' header.

    Args:
        draft: as it should be.
        found: name -> shape.
        where: the weights, for messages.

    Raises:
        IncompatibleDraft: a tensor that is missing, extra or mis-shaped.
    """
    _check_tensors(found, draft.state_dict(), where)


def check_dtype(name: str, dtype: str, where: str) -> None:
    """Refuse a tensor of a dtype that no draft has.

    Args:
        name: the tensor's.
        dtype: as safetensors calls it.
        where: the weights, for messages.

    Raises:
        IncompatibleDraft: it is quantised, or no floating-point number.
    """
    if dtype not in _DTYPES:
        raise IncompatibleDraft(
            f"tensor {name} is {dtype}, but weights are one of {', '.join(_DTYPES)}.",
            where=where,
            remedy="Use the draft as it was trained, before any quantisation.",
        )


def check_finite(name: str, tensor: torch.Tensor, where: str) -> None:
    """Refuse a tensor that has a NaN or an infinity, with an IncompatibleDraft that says `where`."""
    if not bool(torch.isfinite(tensor).all()):
        raise IncompatibleDraft(f"tensor {name} has values that are not finite.", where=where, remedy=COPY_AGAIN)


def load_weights(draft: nn.Module, directory: Path) -> None:
    """Fill a draft's tensors from a directory.

    Args:
        draft: of the form that the directory's config.json describes.
        directory: with the weights.

    Raises:
        IncompatibleDraft: a tensor that is missing, extra, mis-shaped or not finite.
    """
    expected = dict(draft.state_dict())
    where = weights_of(directory)
    _check_tensors(read_shapes(directory), expected, where)
    with torch.no_grad():
        for name, tensor in read_tensors(directory):
            expected[name].copy_(tensor)
            check_finite(name, expected[name], where)


def weights_of(directory: Path) -> str:
    """A directory's weights, as messages call them: the file, or the index of several."""
    return f"{directory.name}/{INDEX if (directory / INDEX).is_file() else WEIGHTS_FILE}"


def _check_tensors(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, torch.Tensor], where: str) -> None:
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise IncompatibleDraft(f"{_listed('tensor', missing)} missing.", where=where, remedy=COPY_AGAIN)
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise IncompatibleDraft(
            f"{_listed('tensor', extra)} not known to this draft.",
            where=where,
            remedy="Check that config.json and weights are of one draft.",
        )
    for name, tensor in expected.items():
        if found[name] != tuple(tensor.shape):
            raise IncompatibleDraft(
                f"tensor {name} has shape {list(found[name])}, but the target needs {list(tensor.shape)}.",
                where=where,
                remedy="Check that config.json and weights are of one draft.",
            )


def _listed(noun: str, names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{noun} {shown} is" if len(names) == 1 else f"{noun}s {shown} are"
