"""Reading target states: a few row groups in memory, checked as they are read, packed into batches.

From object storage, the row groups that come next are fetched while others are used, and kept on a local disk.

Not here: in which order (order.py), and what is learned from them (drafts).
"""

import json
import math
import sys
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from deepspec.errors import ArtifactError
from deepspec.states.batch import PackedStates, PackedTokens
from deepspec.states.format.codecs import CODECS
from deepspec.states.format.layout import (
    CAPTURE_AGAIN,
    CHECKSUMS,
    INDEX,
    TOKEN_COLUMNS,
    Layout,
    RowGroupChecksums,
    has_final,
    shard_schema,
)
from deepspec.states.order import WINDOW_ROW_GROUPS, DataOrder
from deepspec.states.prefetch import ReadAhead
from deepspec.store.reading.files import open_files
from deepspec.store.reading.piece_cache import PieceCache
from deepspec.store.reading.tables import ParquetTable

Columns: TypeAlias = dict[str, npt.NDArray[Any]]

_CACHE_BYTES = 1 << 30
_READING_THREADS = 2
_PIECES = 6
_UNUSED = 3
_FINALS_BEFORE = "finals_before"


class StateReader:
    """The states of an artifact.

    Args:
        location: folder of what `write_states` wrote, or the URL of its artifact's manifest in object storage, from
            where row groups are read by range.
        cache_bytes: row groups kept in memory; at least one shuffling window is.
        disk: keeps row groups from object storage, so that other processes and later epochs don't fetch them again.

    Raises:
        ArtifactError: the states are incomplete or damaged.
    """

    def __init__(
        self, location: str | Path, *, cache_bytes: int = _CACHE_BYTES, disk: PieceCache | None = None
    ) -> None:
        self._at = open_files(location, disk=disk)
        self.layout = Layout.read(self._at)
        self._schema = shard_schema(self.layout.codec, len(self.layout.layer_ids), self.layout.hidden_size)
        index = self._at.parquet(INDEX).read()
        columns = {name: index.column(name).to_numpy() for name in index.column_names}
        self._shards = columns["shard"]
        self._row_groups = columns["block"]
        self._first_rows = columns["first_row"]
        self.num_tokens_of = columns["num_tokens"]
        if index.num_rows != self.layout.num_documents or int(self.num_tokens_of.sum()) != self.layout.num_tokens:
            raise ArtifactError(
                f"lists {index.num_rows} documents with {self.num_tokens_of.sum()} tokens; "
                f"{self.layout.num_documents} with {self.layout.num_tokens} were written.",
                where=f"{self._at.location}/{INDEX}",
                remedy=CAPTURE_AGAIN,
            )
        self._first_row_groups = np.cumsum([0, *(shard.num_row_groups for shard in self.layout.shards)])
        self._global_row_groups = self._first_row_groups[self._shards] + self._row_groups
        self._files: dict[int, ParquetTable] = {}
        self._checksums: dict[int, list[RowGroupChecksums]] = {}
        # What its threads read and check comes while other row groups are decoded or trained on.
        self._ahead: ReadAhead[tuple[int, int, bool], dict[bool, Columns]] = ReadAhead(lambda key: self._load(*key))
        self._one_at_a_time = Lock()
        self._memory = _Memory()
        self._cache: OrderedDict[tuple[int, int, bool], Columns] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return self.layout.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return self.layout.num_tokens

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Captured decoder layers, in the order of the states."""
        return self.layout.layer_ids

    @property
    def hidden_size(self) -> int:
        """Numbers per state."""
        return self.layout.hidden_size

    def order(self, seed: int) -> DataOrder:
        """The order in which a training with this seed sees the documents."""
        return DataOrder(self._global_row_groups, seed=seed)

    def read_ahead(self, documents: Sequence[int]) -> None:
        """See `StateSource.read_ahead`."""
        self._expect([self._row_group_of(document) for document in documents], values=True)

    def tokens(self, documents: Sequence[int]) -> PackedTokens:
        """See `StateSource.tokens`.

        Args:
            documents: indices in 0 … num_documents-1.

        Raises:
            ArtifactError: a row group is damaged.
        """
        lengths = [int(self.num_tokens_of[document]) for document in documents]
        input_ids_T = np.empty(sum(lengths), dtype=np.int64)
        loss_mask_T = np.empty(sum(lengths), dtype=np.bool_)
        for document, rows, target in self._spans(documents, values=False):
            tokens = self._row_group(*self._row_group_of(document), values=False)
            input_ids_T[target] = tokens["input_id"][rows]
            loss_mask_T[target] = tokens["supervised"][rows]
        return PackedTokens(
            torch.from_numpy(input_ids_T), torch.from_numpy(loss_mask_T), tuple(lengths), tuple(map(int, documents))
        )

    def with_states(self, tokens: PackedTokens) -> PackedStates:
        """See `StateSource.with_states`.

        Args:
            tokens: from `tokens`, on the CPU.

        Raises:
            ArtifactError: a row group is damaged.
        """
        states_TLD = self._memory.empty(tokens.num_tokens, len(self.layer_ids), self.hidden_size)
        final_T1D = self._memory.empty(tokens.num_tokens, 1, self.hidden_size)
        loss_mask_T = tokens.loss_mask_T.numpy()
        for document, rows, target in self._spans(tokens.document_ids, values=True):
            values = self._row_group(*self._row_group_of(document), values=True)
            self._decode(values, "states", rows, states_TLD[target])
            self._decode_final(values, rows, loss_mask_T[target], final_T1D[target])
        return tokens.with_states(states_TLD, final_T1D.squeeze(1))

    def _spans(self, documents: Sequence[int], *, values: bool) -> list[tuple[int, slice, slice]]:
        """Each document with its rows in its row group and its span of the pack; begin to fetch the row groups.

        Row group by row group, so that each is read once even when the cache holds few.
        """
        ends = np.cumsum([0, *(int(self.num_tokens_of[document]) for document in documents)])
        order = sorted(range(len(documents)), key=lambda index: self._row_group_of(documents[index]))
        self._expect([self._row_group_of(documents[index]) for index in order], values=values)
        spans = []
        for index in order:
            document, first = documents[index], int(self._first_rows[documents[index]])
            start, stop = int(ends[index]), int(ends[index + 1])
            spans.append((document, slice(first, first + stop - start), slice(start, stop)))
        return spans

    def _decode(self, values: Columns, name: str, rows: slice, out_NCD: torch.Tensor) -> None:
        if out_NCD.numel():
            codec = CODECS[self.layout.codec][name]
            suffixes = codec.widths(out_NCD.shape[1], self.hidden_size)
            codec.decode_into({suffix: values[name + suffix][rows] for suffix in suffixes}, out_NCD)

    def _decode_final(
        self, values: Columns, rows: slice, supervised_T: npt.NDArray[np.bool_], out_T1D: torch.Tensor
    ) -> None:
        """The final states of one document; NaN, which cannot be mistaken for one, where there is none."""
        kept_T = has_final(supervised_T)
        first = int(values[_FINALS_BEFORE][rows.start])
        stored = slice(first, first + int(kept_T.sum()))
        begin, end = (int(kept_T.argmax()), len(kept_T) - int(kept_T[::-1].argmax())) if kept_T.any() else (0, 0)
        if end - begin == stored.stop - stored.start:  # an answer: one stretch, which is decoded in place
            self._decode(values, "final", stored, out_T1D[begin:end])
            out_T1D[:begin] = float("nan")
            out_T1D[end:] = float("nan")
            return
        found_M1D = self._memory.empty(stored.stop - stored.start, *out_T1D.shape[1:])
        self._decode(values, "final", stored, found_M1D)
        out_T1D.fill_(float("nan"))
        out_T1D[torch.from_numpy(kept_T)] = found_M1D

    def _expect(self, row_groups: Sequence[tuple[int, int]], *, values: bool) -> None:
        """Have the row groups that are not in memory read and checked while earlier ones are decoded."""
        whole = values or self._at.by_range
        missing = (group for group in dict.fromkeys(row_groups) if (*group, values) not in self._cache)
        self._ahead.want((*group, whole) for group in missing)

    def _row_group_of(self, document: int) -> tuple[int, int]:
        return int(self._shards[document]), int(self._row_groups[document])

    def _row_group(self, shard: int, row_group: int, *, values: bool) -> Columns:
        """A row group's token columns or its value columns, from the cache if they are there."""
        key = (shard, row_group, values)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        found = self._ahead.take((shard, row_group, values or self._at.by_range))
        for kind, columns in found.items():
            self._keep((shard, row_group, kind), columns)
        return found[values]

    def _load(self, shard: int, row_group: int, values: bool) -> dict[bool, Columns]:  # noqa: FBT001  # part of a key
        """Read and check a row group: its tokens, and its values if they are asked for.

        Where a row group is fetched as a whole, the values come along anyway.
        """
        with self._one_at_a_time:
            file = self._file(shard)
            table = file.row_group(row_group, TOKEN_COLUMNS[1:])
            tokens = {name: table.column(name).to_numpy() for name in TOKEN_COLUMNS[1:]}
            if not values and not self._at.by_range:
                return {False: tokens}
            names = [name for name in self._schema.names if name not in TOKEN_COLUMNS]
            chunks = file.raw(row_group, names)
        checksums = self._checksums[shard][row_group]
        columns: Columns = {}
        for name, chunk in chunks.items():
            rows = checksums.num_final if self._schema.field(name).nullable else table.num_rows
            # The values are the end of the column's only page, whatever stands in its header.
            size = rows * self._schema.field(name).type.byte_width
            data = chunk[len(chunk) - size :] if size <= len(chunk) else chunk
            if zlib.crc32(data) != checksums.crc32.get(name):
                raise ArtifactError(
                    f"the checksum of column {name} in row group {row_group} does not match.",
                    where=f"{self._at.location}/{self.layout.shards[shard].file}",
                    remedy=CAPTURE_AGAIN,
                )
            columns[name] = np.frombuffer(data, dtype=np.uint8).reshape(rows, -1)
        columns[_FINALS_BEFORE] = self._finals_before(shard, row_group, tokens["supervised"])
        return {False: tokens, True: columns}

    def _finals_before(self, shard: int, row_group: int, supervised_T: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """How many rows of a row group before each of its rows have a final state."""
        number = self._first_row_groups[shard] + row_group
        first, last = np.searchsorted(self._global_row_groups, [number, number + 1])
        starts = self._first_rows[first:last]
        kept_T = supervised_T.copy()
        behind_T = supervised_T[:-1].copy()
        behind_T[starts[1:] - 1] = False  # the last position of a document has none behind it
        kept_T[1:] |= behind_T
        return np.cumsum(kept_T) - kept_T

    def _keep(self, key: tuple[int, int, bool], columns: Columns) -> None:
        self._cached_bytes += _size(columns) - _size(self._cache.pop(key, {}))
        self._cache[key] = columns
        # A window's row groups are needed again and again; without room for all of them each would be read many times.
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 2 * WINDOW_ROW_GROUPS:
            (shard, row_group, _), dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _size(dropped)
            self._file(shard).forget(row_group)

    def _file(self, shard: int) -> ParquetTable:
        if shard not in self._files:
            described = self.layout.shards[shard]
            file = self._at.parquet(described.file)
            if not file.schema.equals(self._schema) or file.num_row_groups != described.num_row_groups:
                raise ArtifactError(
                    "has other columns or row groups than states.json says.",
                    where=f"{self._at.location}/{described.file}",
                    remedy=CAPTURE_AGAIN,
                )
            self._checksums[shard] = _checksums(file, f"{self._at.location}/{described.file}")
            self._files[shard] = file
        return self._files[shard]


class _Memory:
    """Memory for batches, used again once no batch lies in it.

    Memory that is new to the process is cleared by the kernel first: that took a third of a reader's time. What is new
    comes from numpy, which asks for large pages; they are ready three times sooner than torch's.
    """

    def __init__(self) -> None:
        self._pieces: list[npt.NDArray[np.int16]] = []

    def empty(self, *shape: int) -> torch.Tensor:
        """An uninitialised bfloat16 tensor."""
        size = math.prod(shape)
        for index in range(len(self._pieces)):
            piece = self._pieces[index]
            # One reference from the list, one from this name, one from the question: no tensor has any.
            if piece.size >= size > piece.size // 4 and sys.getrefcount(piece) == _UNUSED:
                self._pieces.append(self._pieces.pop(index))
                return torch.from_numpy(piece[:size].reshape(shape)).view(torch.bfloat16)
        piece = np.empty(size, dtype=np.int16)
        self._pieces = [*self._pieces[-(_PIECES - 1) :], piece]
        return torch.from_numpy(piece.reshape(shape)).view(torch.bfloat16)


def _checksums(file: ParquetTable, where: str) -> list[RowGroupChecksums]:
    try:
        listed = json.loads(file.metadata[CHECKSUMS.encode()])
        found = [RowGroupChecksums.model_validate(one) for one in listed]
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"has no checksums that can be read: {error}.", where=where, remedy=CAPTURE_AGAIN
        ) from error
    if len(found) != file.num_row_groups:
        raise ArtifactError(
            f"has checksums of {len(found)} row groups, not {file.num_row_groups}.",
            where=where,
            remedy=CAPTURE_AGAIN,
        )
    return found


def _size(columns: Columns) -> int:
    return sum(int(array.nbytes) for array in columns.values())
