"""What a folder of target states looks like: readable with any Parquet library, without our code.

    states.json             the `Layout`: which layers, which codec, how many tokens, the shards
    documents.parquet       where each document lies: document, shard, block (the number of its row group in the shard),
                            first_row (in the row group), num_tokens, num_supervised
    states-00000.parquet …  shards: one row per token, documents one after the other in whole row groups

Columns of a shard, one row per token:

    document     int64   row number in the tokens file
    input_id     int32
    supervised   bool    the loss mask
    states       bytes   raw outputs of the captured layers, in the order of `layer_ids`, D numbers each
    final        bytes   after the target's final norm, D numbers; null where no draft learns from it, that is at
                         positions that are neither supervised nor right behind a supervised one of their document

Codec bf16: these bytes are little-endian bfloat16 numbers. With pyarrow alone:

    row = pq.read_table("states-00000.parquet").slice(7, 1)
    bits = np.frombuffer(row["states"][0].as_py(), dtype="<u2")         # L·D numbers
    values = (bits.astype("<u4") << 16).view("<f4").reshape(L, D)       # bfloat16 is the upper half of float32

Codecs int8 and int4: `states` and `final` hold integers, and each has columns `…_scale`, `…_peak`, `…_peak_index` as
well. A vector is cut into groups of g = 128 numbers (the largest smaller divisor of D that the packing allows, where
128 is none). A number is its integer times its group's scale (bfloat16); but the numbers of a group at the places
`_peak_index` (bytes; two per group, with int4 three) are those of `_peak` (bfloat16). int8's integers are signed bytes:

    levels = np.frombuffer(row["states"][0].as_py(), dtype="i1").reshape(-1, g)
    values = levels * bfloat16(row["states_scale"])[:, None]
    np.put_along_axis(values, index.reshape(-1, 2), bfloat16(row["states_peak"]).reshape(-1, 2), axis=1)

int4 has 4 bits in `states` and 5 in `final`, offset by 8 and 16: of a row's n integers, byte i < n/2 holds the lowest
four bits of number i in its low half and of number i + n/2 in its high half; `final` goes on with n/8 bytes, bit k of
the i-th of which is the fifth bit of number i + k·n/8.

Checks: every page carries Parquet's own CRC-32. Values are uncompressed and each column of a row group is one page, so
that a reader can also map the file and take the values from the end of the column's chunk; for that the file's metadata
has a list `deepspec.checksums`, per row group the number of rows with a final state and the CRC-32 of each column's
values.

Why Parquet: 368 MiB of bf16 states on two cores with other work (load 3), page cache dropped, medians of eight turns
in MiB/s (CPU seconds): `cat` 1174; decoded by pyarrow 565 (0.35); safetensors, copied and compared with a CRC-32,
679 (0.25), unchecked 1273 (0.12); this format mapped, checked and packed into batches 531 (0.42, two threads). The
cost is the checksum and memory, not the container; Parquet adds token columns, nulls and row groups.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ConfigDict, Field, ValidationError

from deepspec.config import Section
from deepspec.errors import ArtifactError
from deepspec.states.format.codec_sizes import VALUE_COLUMNS, WIDTHS
from deepspec.store.reading.files import Files
from deepspec.store.records import refuse_newer

FORMAT = 2
"""1 held a final state at every position, and 4-bit numbers in another order. Nothing reads states across versions of
the stage that makes them, so that the old format needs no reader."""
DESCRIPTION = "states.json"
INDEX = "documents.parquet"
CHECKSUMS = "deepspec.checksums"
CAPTURE_AGAIN = "Capture the states again."
TOKEN_COLUMNS = ("document", "input_id", "supervised")

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
    """One file of states; as JSON it says `num_blocks` for its number of row groups."""

    model_config = ConfigDict(populate_by_name=True)

    file: str
    num_documents: int
    num_tokens: int
    num_row_groups: int = Field(alias="num_blocks")


class RowGroupChecksums(Section):
    """Checksums of one row group; a shard's metadata has a JSON list of them under `deepspec.checksums`.

    Args:
        num_final: rows that have a final state.
        crc32: value column -> CRC-32 of its values, one after the other as they lie in the file.
    """

    num_final: int
    crc32: dict[str, int]


class Layout(Section):
    """The content of `states.json`."""

    format: Literal[2] = 2
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
            raise ArtifactError(f"cannot be read: {error}.", where=path, remedy=CAPTURE_AGAIN) from error
        if isinstance(content, dict):
            refuse_newer(content, FORMAT, what="This capture of states", where=path, otherwise="capture them again")
            if content.get("format", 1) < FORMAT:
                raise ArtifactError(
                    f"has format {content.get('format', 1)}; this deepspec reads format {FORMAT}.",
                    where=path,
                    remedy="Capture them again.",
                )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(f"does not describe states: {error}.", where=path, remedy=CAPTURE_AGAIN) from error

    def write(self, folder: Path) -> None:
        """Write `states.json`."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=1, by_alias=True) + "\n", encoding="utf-8")


def shard_file(number: int) -> str:
    """Name of a shard."""
    return f"states-{number:05d}.parquet"


def shard_schema(codec: str, num_layers: int, hidden_size: int) -> pa.Schema:
    """Columns of a shard: token columns, then the codec's columns of `states` and of `final`."""
    tokens = (("document", pa.int64()), ("input_id", pa.int32()), ("supervised", pa.bool_()))
    fields = [pa.field(name, kind, nullable=False) for name, kind in tokens]
    for name, num_vectors in zip(VALUE_COLUMNS, (num_layers, 1), strict=True):
        for suffix, width in WIDTHS[codec][name].widths(num_vectors, hidden_size).items():
            # Without captured layers there is nothing to store, and Parquet has no empty binary.
            fields.append(pa.field(name + suffix, pa.binary(max(width, 1)), nullable=name == "final"))
    return pa.schema(fields)


def has_final(supervised_T: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """At which positions of a document the final state is kept: supervised ones, and the one behind each.

    Every draft learns what the target predicts there and nowhere else: at a supervised position in block drafts, behind
    one in unrolled drafts.

    Args:
        supervised_T: the loss mask of one document.
    """
    kept_T = supervised_T.copy()
    kept_T[1:] |= supervised_T[:-1]
    return kept_T


@dataclass(frozen=True)
class Places:
    """Where documents lie in files of states: a function of their lengths alone.

    Args:
        shards_N, row_groups_N: the shard of each document and its row group within the shard, int64.
        first_rows_N: where it begins in its row group, int64.
    """

    shards_N: npt.NDArray[np.int64]
    row_groups_N: npt.NDArray[np.int64]
    first_rows_N: npt.NDArray[np.int64]

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return int(self.shards_N[-1]) + 1 if len(self.shards_N) else 0

    def documents(self, shard: int) -> range:
        """The documents of a shard."""
        first, last = np.searchsorted(self.shards_N, [shard, shard + 1])
        return range(int(first), int(last))

    def global_row_groups(self) -> npt.NDArray[np.int64]:
        """Row group of each document, counted over all shards; the order of training depends on it."""
        starts_group = np.ones(len(self.row_groups_N), dtype=bool)
        starts_group[1:] = (np.diff(self.shards_N) != 0) | (np.diff(self.row_groups_N) != 0)
        return np.cumsum(starts_group) - 1


def places(num_tokens: Iterable[int], *, shard_tokens: int, row_group_tokens: int) -> Places:
    """Put documents into shards and row groups, in their order.

    Documents stay whole: a shard or row group ends before it would exceed its size, and a longer document is alone.

    Args:
        num_tokens: lengths of the documents, in order, each at least one.
        shard_tokens, row_group_tokens: sizes.
    """
    found = []
    shard, group, in_shard, in_group = -1, 0, 0, 0
    for length in num_tokens:
        if shard < 0 or in_shard + length > shard_tokens:
            shard, group, in_shard, in_group = shard + 1, 0, 0, 0
        elif in_group + length > row_group_tokens:
            group, in_group = group + 1, 0
        found.append((shard, group, in_group))
        in_shard += length
        in_group += length
    columns = np.asarray(found, dtype=np.int64).reshape(-1, 3).T
    return Places(*(np.ascontiguousarray(column) for column in columns))
