"""Documents: the tokens of one conversation each, a row of a tokens file.

Shapes: T tokens of a document.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from deepspec.data.tokens.encode import runs_to_mask
from deepspec.errors import DataError

_READ_ROWS = 256


@dataclass(frozen=True)
class Document:
    """The tokens of one conversation.

    Args:
        index: its row in the tokens file, from 0.
        input_ids_T: int32.
        supervised_T: bool.
    """

    index: int
    input_ids_T: npt.NDArray[np.int32]
    supervised_T: npt.NDArray[np.bool_]


def read_documents(tokens_file: Path, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """The documents start … stop-1 of a tokens file, in order; row groups before and behind them are not read.

    Raises:
        DataError: a row's mask does not fit its tokens, or the file cannot be read.
    """
    index = 0
    try:
        with pq.ParquetFile(tokens_file, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if index + num_rows <= start or (stop is not None and index >= stop):
                    index += num_rows
                    continue
                for batch in file.iter_batches(_READ_ROWS, row_groups=[group], columns=["input_ids", "mask_runs"]):
                    for ids, runs in zip(batch.column(0), batch.column(1), strict=True):
                        if index >= start and (stop is None or index < stop):
                            yield _document(tokens_file, index, ids, runs)
                        index += 1
    except (pa.ArrowException, KeyError) as error:
        raise DataError(
            f"cannot be read as tokens: {error}.", where=str(tokens_file), remedy="Encode the conversations again."
        ) from error


def _document(tokens_file: Path, index: int, ids: Any, runs: Any) -> Document:
    input_ids_T = ids.values.to_numpy(zero_copy_only=False).astype(np.int32)
    supervised_T = runs_to_mask(runs.values.to_numpy(zero_copy_only=False))
    if len(supervised_T) != len(input_ids_T):
        raise DataError(
            f"the mask covers {len(supervised_T)} of {len(input_ids_T)} tokens.",
            where=f"{tokens_file.name}:{index}",
            remedy="Encode the conversations again.",
        )
    return Document(index, input_ids_T, supervised_T)
