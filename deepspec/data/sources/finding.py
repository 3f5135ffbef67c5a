"""Which files a source has: what is read of a folder or glob, what is held out, and what is passed over.

A file is read by its suffix; `.gz` and `.zst` behind it are unpacked. Linked folders are followed, each once. Splits
are found by their names, as the `datasets` library finds them: files of `test` and `validation` are never trained on,
unless they are named themselves, as files or by a glob that says the split. Everything that is left out or passed over
is named, in `Found.not_read`; only hidden files are not.

Not here: reading (readers.py). Standard library only.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Literal

from deepspec.data.sources.forms import FORMS
from deepspec.data.sources.hub import HubPart
from deepspec.data.sources.opening import head, without_compression
from deepspec.errors import DataError

Kind = Literal["jsonl", "parquet", "folder", "hub"]

FORMATS = (
    "Give JSON Lines or a JSON array (.jsonl, .json), Parquet (.parquet), these as .gz or .zst, a folder of these, or a"
    " `datasets` folder or id."
)
_SUFFIXES: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(_SPLIT_WORDS)})(?=[-._ 0-9]|$)")
_ARRAY = re.compile(rb"\s*\[\s*(?:[\{\]]|$)")


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to read.

    Attributes:
        path: file, folder, or data set id (`owner/name` or `owner/name@revision`).
        kind: how it is read.
        entry: index of its pattern in `data.source`, from 0.
        part: of a data set on the hub, what of it is read; None: `train`, or the only split.
        any_split: whether the only split of a data set may be one that is held out from training by its name.
    """

    path: str
    kind: Kind
    entry: int = field(default=0, compare=False)
    part: HubPart | None = None
    any_split: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class NotRead:
    """A file of a source that is not read.

    Attributes:
        path: where it is.
        why: why not, in words that many files can share.
        split: the split that it is left out as, or None.
        entry: index of its pattern in `data.source`, from 0.
    """

    path: str
    why: str
    split: str | None = None
    entry: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What patterns name.

    Attributes:
        sources: to be read, in order.
        splits: of each pattern: the names of the splits that its files belong to, those left out among them.
        not_read: all else that is there.
    """

    sources: tuple[Source, ...]
    splits: tuple[frozenset[str], ...]
    not_read: tuple[NotRead, ...]


def find(patterns: Sequence[str | Path], *, held_out_too: bool = False) -> Found:
    """The sources that files, folders, globs and data set ids name; each file once, folders and globs in sorted order.

    Args:
        patterns: as in `data.source`.
        held_out_too: whether splits that are held out from training are read as well, as of a benchmark.

    Raises:
        DataError: a pattern names nothing that can be read, or only what is held out.
    """
    found: dict[Path | str, Source] = {}
    splits = []
    not_read = []
    for entry, pattern in enumerate(map(str, patterns)):
        sources, others = _find(pattern, held_out_too=held_out_too)
        for source in sources:
            identity = source.path if source.kind == "hub" else Path(source.path).resolve()
            found.setdefault(identity, replace(source, entry=entry, any_split=held_out_too))
        not_read += [replace(other, entry=entry) for other in others]
        named = {other.split for other in others if other.split}
        if named:  # the files that are read are then those of the training split
            named.add("train")
        splits.append(frozenset(named))
    if not found:
        raise DataError("no source is given.", where="data.source", remedy=FORMATS)
    return Found(tuple(found.values()), tuple(splits), tuple(not_read))


def find_sources(patterns: Sequence[str | Path], *, held_out_too: bool = False) -> tuple[Source, ...]:
    """What is read of `find`; raises what that raises."""
    return find(patterns, held_out_too=held_out_too).sources


def is_array(beginning: bytes) -> bool:
    """Whether a file that begins so is one JSON array of rows."""
    return _ARRAY.match(beginning) is not None


def kind_of(path: PurePath) -> Kind:
    """How a file is read.

    Raises:
        DataError: nothing is known of its suffix.
    """
    kind = _kind(path)
    if kind is None:
        raise DataError(f"has the unknown suffix {path.suffix!r}.", where=str(path), remedy=FORMATS)
    return kind


def _kind(path: PurePath) -> Kind | None:
    return _SUFFIXES.get(without_compression(path).suffix.lower())


def _find(pattern: str, *, held_out_too: bool) -> tuple[list[Source], list[NotRead]]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _find_in_folder(path, held_out_too=held_out_too)
    if path.is_file():
        return [Source(str(path), kind_of(path))], []
    if glob.has_magic(pattern):
        return _find_by_glob(str(path), pattern, held_out_too=held_out_too)
    # In a folder that exists, a name that does not is a mistake, and not worth half a minute of asking the hub.
    if _kind(path) is None and _HUB_ID.fullmatch(pattern) and not path.parent.is_dir():
        return [Source(pattern, "hub")], []
    raise DataError("there is no such file or folder.", where=pattern, remedy="Check data.source.")


def _find_by_glob(path: str, pattern: str, *, held_out_too: bool) -> tuple[list[Source], list[NotRead]]:
    matches = [Path(match) for match in sorted(glob.glob(path, recursive=True))]  # noqa: PTH207 - absolute patterns
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError("matches no file.", where=pattern, remedy="Check data.source.")
    for file in files:
        kind_of(file)
    parts = PurePath(path).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    # What the pattern says itself is wanted.
    wanted = {split for part in parts[fixed:] for split in _splits_in(part)}
    folders = [match for match in matches if match.is_dir()] if "**" not in parts else []
    others = [NotRead(str(folder), "a folder, which the pattern does not look into") for folder in folders]
    files, held_out = _divided(files, Path(*parts[:fixed]), wanted, all_=held_out_too)
    return _sources(files, held_out, pattern), [*others, *held_out]


def _find_in_folder(folder: Path, *, held_out_too: bool) -> tuple[list[Source], list[NotRead]]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return [Source(str(folder), "folder")], []  # which splits it has is known when it is loaded
    files, others = [], []
    for file in sorted(_files_in(folder)):
        why = _passed_over(file)
        if why is None:
            files.append(file)
        else:
            others.append(NotRead(str(file), why))
    if not files:
        there = ", ".join(Path(other.path).name for other in others[:5])
        raise DataError(
            f"holds no file that can be read ({there or 'it is empty'}).", where=str(folder), remedy=FORMATS
        )
    files, held_out = _divided(files, folder, set(), all_=held_out_too)
    return _sources(files, held_out, str(folder)), [*others, *held_out]


def _files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; linked folders are followed, each once."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(Path(place, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _passed_over(file: Path) -> str | None:
    """Why a file of a folder is no file of rows; None if it is one."""
    if _kind(file) is None:
        return f"the suffix {file.suffix}" if file.suffix else "no suffix"
    if not file.is_file():
        return "a broken link"
    if without_compression(file).suffix.lower() == ".json" and not _holds_rows(file):
        return "JSON that is no row and no list of rows"
    return None


def _holds_rows(file: Path) -> bool:
    """Whether a lone .json is one of rows: such files are often descriptions."""
    try:
        beginning = head(file, 1 << 20)
    except (OSError, DataError):
        return True  # reading it says what is wrong
    if is_array(beginning):
        return True
    line = next((line for line in beginning.splitlines() if line.strip()), b"")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return len(line) == len(beginning) == 1 << 20  # a very long row
    return isinstance(row, dict) and any(form.column in row for form in FORMS)


def _divided(files: list[Path], root: Path, wanted: set[str], *, all_: bool) -> tuple[list[Path], list[NotRead]]:
    """The files that are read, and those of splits that are held out from training.

    Args:
        files: that are there.
        root: what is above it says nothing of splits.
        wanted: splits that are read all the same.
        all_: whether all are.
    """
    kept, held_out = [], []
    for file in files:
        split = None if all_ else _split_of(file.relative_to(root))
        if split in (None, "train") or split in wanted:
            kept.append(file)
        else:
            held_out.append(NotRead(str(file), f"of the split {split}", split))
    return kept, held_out


def _split_of(path: PurePath) -> str | None:
    """The split that a path names: the outermost folder that names one, or the file."""
    return next((split for part in path.parts for split in _splits_in(part)), None)


def _splits_in(part: str) -> Iterator[str]:
    return (_SPLIT_WORDS[found] for found in _SPLIT_WORD.findall(part.lower()))


def held_out_split(name: str) -> bool:
    """Whether a split of this name is held out from training."""
    return next(_splits_in(name), "train") != "train"


def _sources(files: list[Path], held_out: list[NotRead], where: str) -> list[Source]:
    if not files:
        splits = ", ".join(sorted({other.split or "" for other in held_out}))
        raise DataError(
            f"holds only files of the splits that are held out ({splits}).",
            where=where,
            remedy="Name the files themselves to train on them.",
        )
    return [Source(str(file), kind_of(file)) for file in files]
