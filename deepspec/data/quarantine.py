"""Rows that cannot be used: written to a file of their own and counted; too many of them fail the stage."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from deepspec.data.sources.rows import Position, RowRejected
from deepspec.data.tables import TableWriter
from deepspec.errors import DataError

QUARANTINE_FILE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema(
    [("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("excerpt", pa.string())]
)
_NUM_SAMPLES = 5


class TooManyQuarantined(DataError):
    """More rows cannot be used than the recipe allows.

    Attributes:
        num_quarantined, num_rows: how many, of how many.
        reasons: (reason, rows), the commonest first.
        samples: the first rows, as "file:row (reason)".
        quarantine_path: the file that holds all of them.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        allowed: float,
        reasons: list[tuple[str, int]],
        samples: list[str],
        quarantine_path: Path,
    ) -> None:
        num_quarantined = sum(count for _, count in reasons)
        listed = ", ".join(f"{reason} ({count})" for reason, count in reasons[:3])
        super().__init__(
            f"{num_quarantined} of {num_rows} rows ({num_quarantined / num_rows:.2%}) cannot be used, but"
            f" data.max_quarantined_share allows {allowed:.2%}. Commonest reasons: {listed}."
            f" First rows: {'; '.join(samples)}.",
            where=str(quarantine_path),
            remedy="Correct these rows (accepted forms: `deepspec guide data`), or raise data.max_quarantined_share.",
        )
        self.num_quarantined = num_quarantined
        self.num_rows = num_rows
        self.reasons = reasons
        self.samples = samples
        self.quarantine_path = str(quarantine_path)


class Quarantine:
    """Collects rejected rows in a folder's `quarantine.parquet`; the file is whole however the block ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / QUARANTINE_FILE
        self._reasons: Counter[str] = Counter()
        self._samples: list[str] = []
        self._writer = TableWriter(self.path, QUARANTINE_SCHEMA)

    def add(self, position: Position, rejection: RowRejected, excerpt: str) -> None:
        """Add one row."""
        self._reasons[rejection.reason] += 1
        if len(self._samples) < _NUM_SAMPLES:
            self._samples.append(f"{position} ({rejection.reason})")
        text = f"[{rejection.detail}] {excerpt}" if rejection.detail else excerpt
        self._writer.write({"source": position.name, "row": position.row, "reason": rejection.reason, "excerpt": text})

    @property
    def num_rows(self) -> int:
        """Rows added so far."""
        return self._writer.num_rows

    def reasons(self) -> list[tuple[str, int]]:
        """(reason, rows), the commonest first, equal ones by name."""
        return sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))

    def counts(self) -> dict[str, Any]:
        """What a summary says of it."""
        return {"quarantined": self.num_rows, "quarantine_reasons": dict(self.reasons())}

    def check(self, num_rows: int, allowed: float) -> None:
        """Fail if too large a share is in quarantine.

        Args:
            num_rows: all rows, the quarantined ones included.
            allowed: largest share of them, in 0 … 1.

        Raises:
            TooManyQuarantined: naming counts, the three commonest reasons and the first rows.
        """
        if self.num_rows > allowed * num_rows:
            raise TooManyQuarantined(
                num_rows=num_rows,
                allowed=allowed,
                reasons=self.reasons(),
                samples=self._samples,
                quarantine_path=self.path,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def check_splits(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Fail if a stage has lost all of a split's rows.

    Args:
        before, after: rows of each split.

    Raises:
        DataError: naming the split.
    """
    for split, num_rows in before.items():
        if num_rows and not after[split]:
            raise DataError(
                f"none of the {num_rows} rows of the split {split} is left: all were quarantined or left out.",
                remedy="See summary.json next to the quarantine file for the reasons.",
            )
