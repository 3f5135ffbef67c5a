"""Reading target states: a few row groups in memory, checked as they are read, packed into batches.

From object storage, the row groups that come next are fetched while others are used, and kept on a local disk.

Not here: in which order (order.py), and what is learned from them (drafts).
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from deepspec.errors import ArtifactError
from deepspec.states.ahead import ReadAhead
from deepspec.states.batch import PackedStates
from deepspec.states.codecs import CODECS
from deepspec.states.layout import INDEX, TOKEN_COLUMNS, Layout, has_final, shard_schema
from deepspec.states.order import WINDOW_BLOCKS, DataOrder
from deepspec.store.block_cache import BlockCache
from deepspec.store.files import ParquetTable, open_files

Columns: TypeAlias = dict[str, npt.NDArray[Any]]

_CACHE_BYTES = 1 << 30


class StateReader:
    """The states of an artifact.

    Args:
        location: folder of what `write_states` wrote, or the URL of its artifact's manifest in object storage, from
            where blocks are read by range.
        cache_bytes: blocks kept in memory; at least one shuffling window is.
        disk: keeps blocks from object storage, so that other processes and later epochs don't fetch them again.

    Raises:
        ArtifactError: the states are incomplete or damaged.
    """

    def __init__(
        self, location: str | Path, *, cache_bytes: int = _CACHE_BYTES, disk: BlockCache | None = None
    ) -> None:
        self._at = open_files(location, disk=disk)
        self.layout = Layout.read(self._at)
        self._schema = shard_schema(self.layout.codec, len(self.layout.layer_ids), self.layout.hidden_size)
        index = self._at.parquet(INDEX).read()
        columns = {name: index.column(name).to_numpy() for name in index.column_names}
        self._documents = columns["document"]
        self._shards = columns["shard"]
        self._blocks = columns["block"]
        self._first_rows = columns["first_row"]
        self.num_tokens_of = columns["num_tokens"]
        if len(self._documents) != self.layout.num_documents or int(self.num_tokens_of.sum()) != self.layout.num_tokens:
            raise ArtifactError(
                f"lists {len(self._documents)} documents with {self.num_tokens_of.sum()} tokens; "
                f"{self.layout.num_documents} with {self.layout.num_tokens} were written.",
                where=f"{self._at.location}/{INDEX}",
            )
        self._files: dict[int, ParquetTable] = {}
        self._cache: OrderedDict[tuple[int, int, bool], Columns] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes
        self._opening = Lock()
        self._ahead: ReadAhead[tuple[int, int], dict[bool, Columns]] = ReadAhead(
            lambda block: self._fetch(*block, kinds=(True, False))
        )

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
        first_of_shard = np.cumsum([0, *(shard.num_blocks for shard in self.layout.shards)])
        return DataOrder(first_of_shard[self._shards] + self._blocks, seed=seed)

    def read_ahead(self, documents: Sequence[int]) -> None:
        """See `StateSource.read_ahead`; local files are mapped, and the system reads ahead by itself."""
        if self._at.by_range:
            blocks = dict.fromkeys(self._block_of(number) for number in documents)
            self._ahead.want([block for block in blocks if (*block, True) not in self._cache])

    def batch(self, documents: Sequence[int]) -> PackedStates:
        """Some documents with their states, packed in this order, on the CPU in bfloat16.

        Args:
            documents: numbers in 0 … num_documents-1.

        Raises:
            ArtifactError: a block is damaged.
        """
        return self._pack(documents, with_states=True)

    def token_batch(self, documents: Sequence[int]) -> PackedStates:
        """See `StateSource.token_batch`."""
        return self._pack(documents, with_states=False)

    def _pack(self, documents: Sequence[int], *, with_states: bool) -> PackedStates:
        lengths = [int(self.num_tokens_of[number]) for number in documents]
        ends = np.cumsum([0, *lengths])
        num_tokens = int(ends[-1])
        num_layers, hidden_size = (len(self.layer_ids), self.hidden_size) if with_states else (0, 0)
        input_ids_T = np.empty(num_tokens, dtype=np.int64)
        loss_mask_T = np.empty(num_tokens, dtype=np.bool_)
        states_TLD = _empty(num_tokens, num_layers, hidden_size)
        final_T1D = _empty(num_tokens, 1, hidden_size)
        # Block by block, so that each is read once even when the cache holds few.
        order = sorted(range(len(documents)), key=lambda place: self._block_of(documents[place]))
        self._expect([self._block_of(documents[place]) for place in order], values=with_states)
        for place in order:
            number, target = documents[place], slice(int(ends[place]), int(ends[place + 1]))
            first = int(self._first_rows[number])
            rows = slice(first, first + lengths[place])
            tokens = self._block(*self._block_of(number), values=False)
            input_ids_T[target] = tokens["input_id"][rows]
            loss_mask_T[target] = tokens["supervised"][rows]
            if with_states:
                values = self._block(*self._block_of(number), values=True)
                self._decode(values, "states", rows, states_TLD[target])
                self._decode_final(values, rows, loss_mask_T[target], final_T1D[target])
        return PackedStates(
            input_ids_T=torch.from_numpy(input_ids_T),
            loss_mask_T=torch.from_numpy(loss_mask_T),
            lengths=tuple(lengths),
            document_ids=tuple(int(self._documents[number]) for number in documents),
            states_TLD=states_TLD,
            final_TD=final_T1D.squeeze(1),
        )

    def _decode(self, values: Columns, name: str, rows: slice | npt.NDArray[Any], out_NCD: torch.Tensor) -> None:
        if out_NCD.numel():
            codec = CODECS[self.layout.codec]
            suffixes = codec.widths(out_NCD.shape[1], self.hidden_size)
            codec.decode_into({suffix: values[name + suffix][rows] for suffix in suffixes}, out_NCD)

    def _decode_final(
        self, values: Columns, rows: slice, supervised_T: npt.NDArray[np.bool_], out_T1D: torch.Tensor
    ) -> None:
        """The final states of one document; NaN, which nobody can mistake for one, where there is none."""
        kept_T = has_final(supervised_T)
        first, last = (int(kept_T.argmax()), len(kept_T) - int(kept_T[::-1].argmax())) if kept_T.any() else (0, 0)
        if kept_T[first:last].all():  # an answer: one stretch, which is decoded in place
            self._decode(values, "final", slice(rows.start + first, rows.start + last), out_T1D[first:last])
            out_T1D[:first] = float("nan")
            out_T1D[last:] = float("nan")
            return
        found_M1D = _empty(int(kept_T.sum()), *out_T1D.shape[1:])
        self._decode(values, "final", rows.start + np.flatnonzero(kept_T), found_M1D)
        out_T1D.fill_(float("nan"))
        out_T1D[torch.from_numpy(kept_T)] = found_M1D

    def _expect(self, blocks: Sequence[tuple[int, int]], *, values: bool) -> None:
        """Have the system read the blocks that are not at hand while earlier ones are decoded."""
        if self._at.by_range:
            return  # see `read_ahead`
        wanted: dict[int, list[int]] = {}
        for shard, block in dict.fromkeys(blocks):
            if (shard, block, values) not in self._cache:
                wanted.setdefault(shard, []).append(block)
        for shard, numbers in wanted.items():
            self._file(shard).expect(numbers, self._columns(values=values))

    def _block_of(self, number: int) -> tuple[int, int]:
        return int(self._shards[number]), int(self._blocks[number])

    def _block(self, shard: int, block: int, *, values: bool) -> Columns:
        """A block's token columns or its value columns, from the cache if they are there."""
        key = (shard, block, values)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        found = self._ahead.take((shard, block)) if self._at.by_range else self._fetch(shard, block, kinds=(values,))
        for kind, columns in found.items():
            self._keep((shard, block, kind), columns)
        return self._cache[key]

    def _fetch(self, shard: int, block: int, *, kinds: Sequence[bool]) -> dict[bool, Columns]:
        """A block's value columns (true) or token columns (false)."""
        names = {kind: self._columns(values=kind) for kind in kinds}
        table = self._file(shard).row_group(block, [name for kind in kinds for name in names[kind]])
        return {kind: {name: _array(table.column(name)) for name in names[kind]} for kind in kinds}

    def _columns(self, *, values: bool) -> list[str]:
        names = [name for name in self._schema.names if (name not in TOKEN_COLUMNS) == values]
        return [name for name in names if name != "document"]

    def _keep(self, key: tuple[int, int, bool], columns: Columns) -> None:
        self._cached_bytes += _size(columns) - _size(self._cache.pop(key, {}))
        self._cache[key] = columns
        # A window's blocks are needed again and again; without room for all of them each would be read many times.
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 2 * WINDOW_BLOCKS:
            self._cached_bytes -= _size(self._cache.popitem(last=False)[1])

    def _file(self, shard: int) -> ParquetTable:
        with self._opening:
            return self._opened(shard)

    def _opened(self, shard: int) -> ParquetTable:
        if shard not in self._files:
            described = self.layout.shards[shard]
            file = self._at.parquet(described.file)
            if not file.schema.equals(self._schema) or file.num_row_groups != described.num_blocks:
                raise ArtifactError(
                    "has other columns or row groups than states.json says.",
                    where=f"{self._at.location}/{described.file}",
                )
            self._files[shard] = file
        return self._files[shard]


def _empty(*shape: int) -> torch.Tensor:
    """An uninitialised bfloat16 tensor; numpy asks for large pages, which are ready three times sooner than torch's."""
    return torch.from_numpy(np.empty(shape, dtype=np.int16)).view(torch.bfloat16)


def _array(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of one row group; binary ones as bytes [N, width], without copying."""
    if not pa.types.is_fixed_size_binary(column.type):
        return column.to_numpy()  # type: ignore[no-any-return]  # pyarrow is untyped
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = column.type.byte_width
    data = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)


def _size(columns: Columns) -> int:
    return sum(int(array.nbytes) for array in columns.values())
