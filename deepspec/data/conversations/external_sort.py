"""An external sort of the rows between sources and splits.

Rows are spread over files by the first byte of their prompt's hash, and the files are sorted one after the other, so
that memory does not grow with the data. Each pass reads the files again, and only the columns that it needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from deepspec.data.tables import MESSAGES_WITH_WEIGHTS, TOOLS, TableWriter, read_conversations, read_table
from deepspec.data.traffic.exchange import MODEL, USER

SPILL_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("messages", MESSAGES_WITH_WEIGHTS),
        (TOOLS, pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("entry", pa.int32()),
        (USER, pa.string()),
        (MODEL, pa.string()),
        ("rank", pa.int32()),
    ]
)
_ORDER = ("prompt_id", "id", "rank", "source", "row")
_NUM_SPILLS = 64  # of 256 / 64 = 4 first hash bytes each: 5 GB of conversations are sorted 80 MB at a time
_SPILL_ROWS = 128  # pending in each of the files: 64 · 128 rows in all


class Spills:
    """Rows of `SPILL_SCHEMA` in the files of a folder.

    Args:
        folder: exists and is empty; the caller removes it.

    Attributes:
        have_tools: whether a row has thoughts, tool calls, tools or weights.
        have_weights: whether a row has an answer that is not supervised.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, TableWriter] = {}
        self.have_tools = self.have_weights = False

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        index = int(row["prompt_id"][:2], 16) * _NUM_SPILLS // 256
        if index not in self._files:
            path = self._folder / f"{index:02d}.parquet"
            self._files[index] = TableWriter(path, SPILL_SCHEMA, rows_per_group=_SPILL_ROWS)
        self._files[index].write(row)
        self.have_tools |= row[TOOLS] is not None or any(len(message) > 2 for message in row["messages"])
        self.have_weights |= any("weight" in message for message in row["messages"])

    def sorted_rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows by prompt, id and where they came from; the files must be closed.

        Args:
            columns: to read, in addition to those of the order.
        """
        for _, file in sorted(self._files.items()):
            read = read_conversations if "messages" in columns else read_table
            rows = read(file.path, list(dict.fromkeys((*_ORDER, *columns))))
            yield from sorted(rows, key=lambda row: tuple(row[name] for name in _ORDER))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
