"""Where conversations came from: a file next to the rows, so that later stages can name a row's source.

Locations are no part of what a stage computes: the file lies in the artifact's `about/`, outside its digest.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepspec.data.sources.rows import Position
from deepspec.data.tables import TableWriter, read_table

_FILE = Path("about") / "positions.parquet"
_SCHEMA = pa.schema([("prompt_id", pa.string()), ("source", pa.string()), ("row", pa.int64())])


class PositionWriter(TableWriter):
    """Notes where each row stood, in the order of the rows.

    Args:
        folder: of the artifact.
    """

    def __init__(self, folder: Path) -> None:
        (folder / _FILE).parent.mkdir(exist_ok=True)
        super().__init__(folder / _FILE, _SCHEMA)


class Positions:
    """Where the rows of a folder came from; the file is read at the first question.

    Args:
        folder: what a stage wrote that copied or made positions.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: Mapping[str, list[Position]] | None = None

    def of(self, prompt_id: str, index: int, otherwise: Position) -> Position:
        """The position of the index-th row with a prompt; `otherwise` where none is noted."""
        if self._known is None:
            self._known = self._read()
        positions = self._known.get(prompt_id, [])
        return positions[index] if index < len(positions) else otherwise

    def copy_to(self, folder: Path) -> None:
        """Hand the positions on to the next stage's folder."""
        if (self._folder / _FILE).is_file():
            (folder / _FILE).parent.mkdir(exist_ok=True)
            shutil.copyfile(self._folder / _FILE, folder / _FILE)

    def _read(self) -> Mapping[str, list[Position]]:
        known: dict[str, list[Position]] = {}
        if (self._folder / _FILE).is_file():
            rows: Any = read_table(self._folder / _FILE, _SCHEMA.names)
            for row in rows:
                known.setdefault(row["prompt_id"], []).append(Position(row["source"], row["row"]))
        return known
