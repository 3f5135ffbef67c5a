"""Writing shards of states: whole documents, whole row groups, equal bytes for equal content.

Not here: where states come from (capture/writer.py) and how numbers become bytes (codecs.py).
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from deepspec.states.format.codec_sizes import VALUE_COLUMNS
from deepspec.states.format.codecs import CODECS, Bytes
from deepspec.states.format.layout import (
    CHECKSUMS,
    INDEX,
    INDEX_SCHEMA,
    TOKEN_COLUMNS,
    Layout,
    Places,
    RowGroupChecksums,
    has_final,
    shard_schema,
)

_PAGE_BYTES = (1 << 31) - 1
"""A column of a row group is one page: its values lie in one piece, where readers find them without parsing pages."""


@dataclass(frozen=True)
class EncodedStates:
    """A document with its states encoded, ready to be written.

    Args:
        index: the document's, in the tokens file.
        input_ids_T: int32.
        supervised_T: bool.
        columns: the value columns of its T tokens.
    """

    index: int
    input_ids_T: npt.NDArray[np.int32]
    supervised_T: npt.NDArray[np.bool_]
    columns: dict[str, Bytes]


def encode(states_TLD: Tensor, final_TD: Tensor, codec: str) -> dict[str, Bytes]:
    """The value columns of T tokens, encoded on the tensors' device."""
    columns: dict[str, Bytes] = {}
    for name, vectors in zip(VALUE_COLUMNS, (states_TLD, final_TD.unsqueeze(1)), strict=True):
        for suffix, data in CODECS[codec][name].encode(vectors).items():
            # See layout.shard_schema for the width of nothing.
            columns[name + suffix] = data if data.shape[1] else np.zeros((len(data), 1), dtype=np.uint8)
    return columns


class ShardWriter:
    """Writes documents to one shard; the file is whole after `close`.

    Args:
        path: the file, replaced if it exists.
        codec: name of the codec.
        num_layers: captured layers.
        hidden_size: numbers per vector.
        row_group_tokens: a row group ends before it would exceed this; a longer document is alone in one.
    """

    def __init__(self, path: Path, *, codec: str, num_layers: int, hidden_size: int, row_group_tokens: int) -> None:
        self._schema = shard_schema(codec, num_layers, hidden_size)
        values = [name for name in self._schema.names if name not in TOKEN_COLUMNS]
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            # Numbers hardly compress, and uncompressed ones need no decoding.
            compression={**dict.fromkeys(TOKEN_COLUMNS, "zstd"), **dict.fromkeys(values, "none")},
            use_dictionary=list(TOKEN_COLUMNS[:2]),
            write_statistics=False,
            write_page_checksum=True,
            data_page_size=_PAGE_BYTES,
        )
        self._row_group_tokens = row_group_tokens
        self._pending: list[EncodedStates] = []
        self._pending_tokens = 0
        self._checksums: list[RowGroupChecksums] = []

    def write(self, document: EncodedStates) -> None:
        """Append a document."""
        num_tokens = len(document.input_ids_T)
        if self._pending and self._pending_tokens + num_tokens > self._row_group_tokens:
            self._flush()
        self._pending.append(document)
        self._pending_tokens += num_tokens

    def close(self) -> None:
        """Write what is pending and end the file."""
        try:
            if self._pending:
                self._flush()
            listed = [one.model_dump() for one in self._checksums]
            self._writer.add_key_value_metadata({CHECKSUMS: json.dumps(listed)})
        finally:
            self._writer.close()

    def _flush(self) -> None:
        documents = self._pending
        has_final_T = np.concatenate([has_final(d.supervised_T) for d in documents])
        kept = pa.py_buffer(np.packbits(has_final_T, bitorder="little"))
        columns: dict[str, Any] = {
            "document": np.repeat([d.index for d in documents], [len(d.input_ids_T) for d in documents]),
            "input_id": np.concatenate([d.input_ids_T for d in documents]),
            "supervised": np.concatenate([d.supervised_T for d in documents]),
        }
        crc32 = {}
        for field in self._schema:
            if field.name not in columns:
                data = np.concatenate([d.columns[field.name] for d in documents])
                crc32[field.name] = zlib.crc32((data[has_final_T] if field.nullable else data).data)
                columns[field.name] = pa.FixedSizeBinaryArray.from_buffers(
                    field.type, len(data), [kept if field.nullable else None, pa.py_buffer(data)]
                )
        table = pa.table(columns, schema=self._schema)
        self._checksums.append(RowGroupChecksums(num_final=int(has_final_T.sum()), crc32=crc32))
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._pending = []
        self._pending_tokens = 0


def write_index(
    folder: Path,
    layout: Layout,
    where: Places,
    num_tokens_N: npt.NDArray[np.int64],
    num_supervised_N: npt.NDArray[np.int64],
) -> None:
    """Write `documents.parquet` and `states.json`: after that, the folder is complete.

    Args:
        folder: where the shards are.
        layout: names the shards.
        where: shard, row group and row of each document.
        num_tokens_N, num_supervised_N: of each document.
    """
    columns = {
        "document": np.arange(len(num_tokens_N)),
        "shard": where.shards_N,
        "block": where.row_groups_N,
        "first_row": where.first_rows_N,
        "num_tokens": num_tokens_N,
        "num_supervised": num_supervised_N,
    }
    arrays = {field.name: pa.array(columns[field.name].astype(field.type.to_pandas_dtype())) for field in INDEX_SCHEMA}
    pq.write_table(pa.table(arrays, schema=INDEX_SCHEMA), folder / INDEX, compression="zstd", write_page_checksum=True)
    layout.write(folder)
