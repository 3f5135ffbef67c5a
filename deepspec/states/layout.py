"""What a folder of target states looks like: readable with any Parquet library, without our code.

    states.json             the `Layout`: which layers, which codec, how many tokens, the shards
    documents.parquet       where each document lies: document, shard, block, first_row, num_tokens, num_supervised
    states-00000.parquet …  shards: one row per token, documents one after the other in whole row groups ("blocks")

Columns of a shard: `document` int64 (row number in the data set), `input_id` int32, `supervised` bool, `states` and
`final`: fixed-size binary. With the codec bf16, `states` holds L·D little-endian bfloat16 numbers (the raw outputs of
the captured layers, in the order of `layer_ids`) and `final` holds D (after the target's final norm). The other codecs
add columns `states_scale` … (see codecs.py). Numbers are stored uncompressed, so that a reader maps and copies them;
every page carries Parquet's own checksum.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, ValidationError

from deepspec.config import Section
from deepspec.errors import ArtifactError
from deepspec.states.widths import WIDTHS
from deepspec.store.files import Files
from deepspec.store.records import refuse_newer

DESCRIPTION = "states.json"
INDEX = "documents.parquet"
TOKEN_COLUMNS = ("document", "input_id", "supervised")
VALUE_COLUMNS = ("states", "final")

INDEX_SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("shard", pa.int32()),
        ("block", pa.int32()),
        ("first_row", pa.int32()),
        ("num_tokens", pa.int32()),
        ("num_supervised", pa.int32()),
    ]
)


class Shard(Section):
    """One file of states."""

    file: str
    num_documents: int
    num_tokens: int
    num_blocks: int


class Layout(Section):
    """The content of `states.json`."""

    format: Literal[1] = 1
    codec: Literal["bf16", "int8", "int4"]
    layer_ids: tuple[int, ...]
    hidden_size: int = Field(ge=1)
    target: str = Field("", description="Fingerprint of the target, where it is known.")
    num_documents: int
    num_tokens: int
    num_supervised: int
    shards: tuple[Shard, ...]

    @classmethod
    def read(cls, files: Files) -> "Layout":
        """The layout of the states in an artifact.

        Raises:
            ArtifactError: there is none, or none that this version understands.
        """
        path = f"{files.location}/{DESCRIPTION}"
        text = files.read(DESCRIPTION)
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"cannot be read: {error}.", where=path) from error
        if isinstance(content, dict):
            refuse_newer(content, 1, what="This capture of states", where=path, otherwise="capture them again")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(f"does not describe states: {error}.", where=path) from error

    def write(self, folder: Path) -> None:
        """Write `states.json`."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def shard_file(number: int) -> str:
    """Name of a shard."""
    return f"states-{number:05d}.parquet"


def shard_schema(codec: str, num_layers: int, hidden_size: int) -> pa.Schema:
    """Columns of a shard: token columns, then the codec's columns of `states` and of `final`."""
    fields = [("document", pa.int64()), ("input_id", pa.int32()), ("supervised", pa.bool_())]
    for name, num_vectors in zip(VALUE_COLUMNS, (num_layers, 1), strict=True):
        for suffix, width in WIDTHS[codec].widths(num_vectors, hidden_size).items():
            # Without captured layers there is nothing to store, and Parquet has no empty binary.
            fields.append((name + suffix, pa.binary(max(width, 1))))
    return pa.schema(fields)


def block_numbers(num_tokens: Iterable[int], *, shard_tokens: int, block_tokens: int) -> npt.NDArray[np.int64]:
    """In which block each document lies, counted over all shards; the order of training hangs on it.

    Documents stay whole: a shard or block ends before it would exceed its size, and a longer document is alone.

    Args:
        num_tokens: lengths of the documents, in order.
        shard_tokens, block_tokens: sizes.
    """
    numbers = []
    block, in_shard, in_block = -1, shard_tokens, 0
    for length in num_tokens:
        if block < 0 or (in_shard and in_shard + length > shard_tokens):
            block, in_shard, in_block = block + 1, 0, 0
        elif in_block and in_block + length > block_tokens:
            block, in_block = block + 1, 0
        numbers.append(block)
        in_shard += length
        in_block += length
    return np.asarray(numbers, dtype=np.int64)
