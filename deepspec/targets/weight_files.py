"""Which tensors a model directory holds and where, from the headers of its safetensors files alone.

The one place that decides which of a directory's files count: as transformers does, `model.safetensors`, else the files
that `model.safetensors.index.json` names. What serving engines read otherwise is refused. No torch here: a header says
in a millisecond what loading would find out after an hour.

Source: the safetensors format (8 bytes of length, a JSON header, the data).
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deepspec.errors import UnsupportedTarget
from deepspec.foreign_json import COPY_AGAIN, read_object, refuse_pointer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_WIDTHS: Mapping[str, int] = MappingProxyType(
    {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
    | {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        file: the file.
        dtype: as the format calls it, e.g. "BF16".
        shape: its shape.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(path: Path | str) -> dict[str, StoredTensor]:
    """Every tensor of a model directory, by name.

    Raises:
        UnsupportedTarget: no safetensors weights (with advice when there are `.bin` weights: they are pickles), files
            of which it is not clear which count, a missing, truncated or damaged file, or a tensor that is not in the
            file that the index names, or in two.
    """
    path = Path(path)
    mapped = _index(path)
    found: dict[str, StoredTensor] = {}
    for file in weight_files(path, mapped):
        for name, tensor in _header(file).items():
            if name in found:
                raise UnsupportedTarget(
                    f"{name} is in {found[name].file.name} and in {file.name}.",
                    where=str(path),
                    remedy="Keep the files of one copy.",
                )
            found[name] = tensor
    for name, shard in mapped.items():
        if name not in found or found[name].file.name != shard:
            raise UnsupportedTarget(
                f"weight_map says that {name} is in {shard}, which does not hold it.",
                where=str(path / INDEX),
                remedy=COPY_AGAIN,
            )
    return found


def weight_files(path: Path, mapped: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """The safetensors files of a model directory that count, sorted by name.

    Args:
        path: the directory.
        mapped: tensor -> file, as its index says; None: it is read.

    Raises:
        UnsupportedTarget: see `stored_tensors`.
    """
    mapped = _index(path) if mapped is None else mapped
    there = sorted(file.name for file in path.glob("*.safetensors"))
    if mapped:
        named = sorted(set(mapped.values()))
        missing = [name for name in named if name not in there]
        if missing:
            raise UnsupportedTarget(
                f"{_listed(missing)} of {len(named)} weight files {'is' if len(missing) == 1 else 'are'} missing.",
                where=str(path / INDEX),
                remedy=COPY_AGAIN,
            )
        if SINGLE in there and SINGLE not in named:
            raise UnsupportedTarget(
                f"{SINGLE} and {INDEX}, which names {_listed(named)}, are both there: two sets of weights.",
                where=str(path),
                remedy="Remove the one that does not belong to this model.",
            )
        return tuple(path / name for name in named)
    if there == [SINGLE]:
        return (path / SINGLE,)
    if SINGLE in there:
        others = [name for name in there if name != SINGLE]
        raise UnsupportedTarget(
            f"{_listed(others)} {'lies' if len(others) == 1 else 'lie'} next to {SINGLE}: some engines read both.",
            where=str(path),
            remedy="Move away what does not belong to this model.",
        )
    if there:
        raise UnsupportedTarget(
            f"there are {_listed(there)}, but neither {SINGLE} nor {INDEX}.",
            where=str(path),
            remedy=f"Copy {INDEX}, too.",
        )
    if any(path.glob("*.bin")):
        raise UnsupportedTarget(
            "the weights are .bin files, which can run code when they are read.",
            where=str(path),
            remedy="Convert them once with save_pretrained(..., safe_serialization=True) where you trust them.",
        )
    raise UnsupportedTarget("there are no *.safetensors weights.", where=str(path), remedy=COPY_AGAIN)


def has_weights(path: Path) -> bool:
    """Whether anything of the weights is there, complete or not."""
    return (path / INDEX).is_file() or any(path.glob("*.safetensors")) or any(path.glob("*.bin"))


def _index(path: Path) -> dict[str, str]:
    """Tensor -> file, as the index says; empty without an index."""
    file = path / INDEX
    if not file.is_file():
        return {}
    mapped = read_object(file).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise UnsupportedTarget(
            f"field weight_map is {_short(mapped)}, not an object with the file of every tensor.",
            where=str(file),
            remedy=COPY_AGAIN,
        )
    for name, shard in mapped.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UnsupportedTarget(
                f"field weight_map.{name} is {_short(shard)}, not a .safetensors file of this directory.",
                where=str(file),
                remedy=COPY_AGAIN,
            )
    return mapped


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            refuse_pointer(start + opened.read(32), str(file))
            (length,) = struct.unpack("<Q", start)
            if length > min(_MOST_HEADER_BYTES, size - 8):
                raise ValueError("it is shorter than its header")
            opened.seek(8)
            header = json.loads(opened.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        found, end = {}, 0
        for name, entry in header.items():
            if name != "__metadata__":
                found[name] = _described(file, name, entry)
                end = max(end, entry["data_offsets"][1])
        if size != 8 + length + end:
            raise ValueError(f"it has {size:,} bytes, not {8 + length + end:,} as its header says")
    except (OSError, struct.error, ValueError, RecursionError) as error:
        raise UnsupportedTarget(
            f"cannot be read as safetensors: {error}.", where=str(file), remedy="Copy the file again."
        ) from error
    return found


def _described(file: Path, name: str, entry: Any) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if all(
            type(size) is int and size >= 0 for size in shape
        ):
            # Of a dtype that is not known here only the place can be checked.
            width = _WIDTHS.get(dtype)
            if 0 <= start <= end and (width is None or end - start == width * math.prod(shape)):
                return StoredTensor(file, dtype, tuple(shape))
    raise ValueError(f"tensor {name} is {_short(entry)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
