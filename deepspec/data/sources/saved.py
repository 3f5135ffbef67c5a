"""Folders of the `datasets` library, as its `save_to_disk` writes them: which Arrow files hold the rows of which part.

Only their JSON is read here; Arrow files are opened by the reading process (columnar). Standard library only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.data.sources.finding import held_out_split
from deepspec.errors import DataError
from deepspec.foreign_json import parse
from deepspec.store.layout import is_plain

_PARTS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_MOST_BYTES = 16 << 20
_SAVE_AGAIN = "Save it again with save_to_disk."
Parts = tuple[str, tuple[str, ...]]
"""Of a data set of several parts, the one that is read, and the others."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What is read of a folder.

    Attributes:
        files: its Arrow files, in the order of the rows.
        columns: those that its rows show; None: all.
        parts: that the folder has; None: it is one.
    """

    files: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    parts: Parts | None = None


def read_saved(folder: str, *, any_split: bool) -> Saved:
    """What is read of a folder: `train`, or the only part.

    Args:
        folder: that `save_to_disk` has written.
        any_split: whether the only part may be one that is held out from training by its name.

    Raises:
        DataError: its description is damaged, or says no part to read.
        OSError: it cannot be read.
    """
    path = Path(folder)
    if not (path / _PARTS).is_file() or ((path / _STATE).is_file() and (path / _INFO).is_file()):
        return _one(path)
    names = _object(path / _PARTS).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise _damaged(path / _PARTS, "names no parts")
    name = part_to_read(names, folder, any_split=any_split)
    found = _one(path / name)
    return Saved(found.files, found.columns, (name, tuple(other for other in names if other != name)))


def part_to_read(names: Sequence[str], where: str, *, any_split: bool) -> str:
    """The part of a data set that is read: `train`, or the only one.

    Args:
        names: of its parts.
        where: the data set, for messages.
        any_split: whether the only part may be one that is held out from training by its name.

    Raises:
        DataError: there is none.
    """
    is_held_out = len(names) == 1 and held_out_split(names[0]) and not any_split
    if "train" not in names and (len(names) != 1 or is_held_out):
        raise DataError(
            f"has the parts {', '.join(sorted(names)) or '(none)'} and none called train.",
            where=where,
            remedy="Point data.source at one part's folder.",
        )
    return "train" if "train" in names else names[0]


def _one(folder: Path) -> Saved:
    state = _object(folder / _STATE)
    match state.get("_data_files"):
        case [*files] if files and all(isinstance(file, Mapping) for file in files):
            names = [file.get("filename") for file in files]
        case _:
            names = []
    if not names or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise _damaged(folder / _STATE, "names no Arrow files in its folder")
    columns = None if state.get("_output_all_columns") else state.get("_format_columns")
    if isinstance(columns, list) and all(isinstance(name, str) for name in columns):
        return Saved(tuple(str(folder / name) for name in names), tuple(columns))
    return Saved(tuple(str(folder / name) for name in names))


def _is_name(name: str) -> bool:
    return is_plain(name) and "/" not in name


def _object(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            value = parse(opened.read(_MOST_BYTES + 1), _MOST_BYTES)
    except FileNotFoundError as error:
        raise _damaged(file.parent, f"has no {file.name}") from error
    except ValueError as error:
        raise _damaged(file, f"is not readable: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(file, "is no JSON object")
    return value


def _damaged(where: Path, what: str) -> DataError:
    return DataError(f"{what}: that is no `datasets` folder.", where=str(where), remedy=_SAVE_AGAIN)
