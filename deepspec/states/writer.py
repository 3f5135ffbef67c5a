"""Capturing a target's states: tokens in, a folder of states out.

Documents run through the target in batches of similar length, right-padded: attention is causal, so padding behind a
document changes nothing in it. Batches are formed within a stretch of consecutive documents, which is then written in
document order: what is in a shard depends on its own documents alone.

Shapes: T tokens of a document or of a packed batch, L captured layers, D hidden.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from deepspec.data.tokens import runs_to_mask
from deepspec.errors import DataError, StoreFull
from deepspec.progress import SILENT, Progress
from deepspec.states.config import Config
from deepspec.states.layout import Layout, Shard, shard_file
from deepspec.states.shards import EncodedDocument, ShardWriter, encode, write_index
from deepspec.targets.capture import capture, length_batches
from deepspec.targets.model import Target

_STRETCH_BATCHES = 8
_READ_ROWS = 256


@dataclass(frozen=True)
class TokenDocument:
    """One row of a tokens file.

    Args:
        number: its row number.
        input_ids_T: int32.
        supervised_T: bool.
    """

    number: int
    input_ids_T: npt.NDArray[np.int32]
    supervised_T: npt.NDArray[np.bool_]


def write_states(
    tokens_file: Path,
    out: Path,
    *,
    target: Target,
    config: Config,
    batch_tokens: int = 4096,
    fingerprint: str = "",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Run `target` over every document of a tokens file and keep the outputs of its captured layers.

    Args:
        tokens_file: what `write_tokens` wrote for a split.
        out: existing folder that is written to.
        target: captures the layers that are wanted (`layer_ids`).
        config: codec and sizes of the files.
        batch_tokens: tokens per forward, padding included; a longer document is alone.
        fingerprint: of the target, noted in `states.json`.
        progress: told tokens.

    Returns:
        counts: documents, tokens, supervised_tokens, bytes, bytes_per_token, shards, blocks.

    Raises:
        DataError: the target gives infinite or undefined states (names layer and row), or there are no documents.
        StoreFull: there is no room left.
    """
    progress.start(_count_tokens(tokens_file), "tokens")
    shards: list[Shard] = []
    indexes: list[list[dict[str, int]]] = []
    documents = _Lookahead(read_documents(tokens_file))
    try:
        while documents.more():
            writer = ShardWriter(
                out / shard_file(len(shards)),
                codec=config.codec,
                num_layers=len(target.layer_ids),
                hidden_size=target.spec.hidden_size,
                block_tokens=config.block_tokens,
            )
            _fill(writer, documents, config, target, batch_tokens, progress)
            shards.append(writer.close())
            indexes.append(writer.index)
        if not shards:
            raise DataError("there are no documents to capture.", where=str(tokens_file))
        layout = Layout(
            codec=config.codec,
            layer_ids=target.layer_ids,
            hidden_size=target.spec.hidden_size,
            target=fingerprint,
            num_documents=sum(shard.num_documents for shard in shards),
            num_tokens=sum(shard.num_tokens for shard in shards),
            num_supervised=sum(entry["num_supervised"] for index in indexes for entry in index),
            shards=tuple(shards),
        )
        write_index(out, layout, indexes)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StoreFull(
                "there is no room left for the target's states.",
                where=str(out),
                remedy="Free some space, or choose a smaller states.codec.",
            ) from error
        raise
    size = sum(path.stat().st_size for path in out.iterdir())
    return {
        "documents": layout.num_documents,
        "tokens": layout.num_tokens,
        "supervised_tokens": layout.num_supervised,
        "bytes": size,
        "bytes_per_token": round(size / layout.num_tokens, 1),
        "shards": len(shards),
        "blocks": sum(shard.num_blocks for shard in shards),
    }


def read_documents(tokens_file: Path) -> Iterator[TokenDocument]:
    """The rows of a tokens file, in order.

    Raises:
        DataError: a row's mask does not fit its tokens, or the file cannot be read.
    """
    number = 0
    try:
        with pq.ParquetFile(tokens_file, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=_READ_ROWS, columns=["input_ids", "mask_runs"]):
                for ids, runs in zip(batch.column(0), batch.column(1), strict=True):
                    input_ids_T = ids.values.to_numpy(zero_copy_only=False).astype(np.int32)
                    supervised_T = runs_to_mask(runs.values.to_numpy(zero_copy_only=False))
                    if len(supervised_T) != len(input_ids_T):
                        raise DataError(
                            f"the mask covers {len(supervised_T)} of {len(input_ids_T)} tokens.",
                            where=f"{tokens_file.name}:{number}",
                        )
                    yield TokenDocument(number, input_ids_T, supervised_T)
                    number += 1
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"cannot be read as tokens: {error}.", where=str(tokens_file)) from error


class _Lookahead:
    """Documents that can be looked at before they are taken."""

    def __init__(self, documents: Iterator[TokenDocument]) -> None:
        self._documents = documents
        self._next = next(documents, None)

    def more(self) -> bool:
        return self._next is not None

    def take(self, room: int, stretch_tokens: int, *, fresh: bool) -> list[TokenDocument]:
        """The next documents of together about `stretch_tokens`.

        Args:
            room: tokens that the shard still has room for.
            stretch_tokens: how many to take at once; changes nothing in which shard a document ends up.
            fresh: the shard is empty: a document that is too long even for that goes in all the same.
        """
        taken: list[TokenDocument] = []
        total = 0
        while self._next is not None and total < stretch_tokens:
            length = len(self._next.input_ids_T)
            if total + length > room and (taken or not fresh):
                break
            taken.append(self._next)
            total += length
            self._next = next(self._documents, None)
        return taken


def _fill(
    writer: ShardWriter,
    documents: _Lookahead,
    config: Config,
    target: Target,
    batch_tokens: int,
    progress: Progress,
) -> None:
    """Write one shard: at most `shard_tokens` tokens, unless one document alone has more."""
    room = config.shard_tokens
    fresh = True
    while stretch := documents.take(room, _STRETCH_BATCHES * batch_tokens, fresh=fresh):
        fresh = False
        room -= sum(len(document.input_ids_T) for document in stretch)
        encoded: dict[int, EncodedDocument] = {}
        for places in length_batches([len(document.input_ids_T) for document in stretch], batch_tokens):
            batch = [stretch[place] for place in places]
            encoded |= {document.document: document for document in _capture(target, batch, config.codec)}
            progress.advance(sum(len(document.input_ids_T) for document in batch))
        for taken in stretch:
            writer.write(encoded.pop(taken.number))


def _capture(target: Target, batch: Sequence[TokenDocument], codec: str) -> Iterator[EncodedDocument]:
    states_TLD, final_TD = capture(target, [document.input_ids_T for document in batch])
    states_TLD, final_TD = states_TLD.to(torch.bfloat16), final_TD.to(torch.bfloat16)
    _check_finite(target, batch, states_TLD, final_TD)
    columns = encode(states_TLD, final_TD, codec)
    start = 0
    for document in batch:
        rows = slice(start, start := start + len(document.input_ids_T))
        own = {name: data[rows] for name, data in columns.items()}
        yield EncodedDocument(document.number, document.input_ids_T, document.supervised_T, own)


def _check_finite(
    target: Target, batch: Sequence[TokenDocument], states_TLD: torch.Tensor, final_TD: torch.Tensor
) -> None:
    if bool(states_TLD.isfinite().all()) and bool(final_TD.isfinite().all()):
        return
    names = [*(f"layer {layer}" for layer in target.layer_ids), "the final state"]
    vectors_TCD = torch.cat([states_TLD, final_TD.unsqueeze(1)], dim=1)
    position, vector = (~vectors_TCD.isfinite().all(-1)).nonzero()[0].tolist()
    for document in batch:
        if position < len(document.input_ids_T):
            raise DataError(
                f"the target's {names[vector]} is not finite at position {position}.",
                where=f"row {document.number}",
                remedy="Check the target's weights, or capture with target.dtype float32.",
            )
        position -= len(document.input_ids_T)


def _count_tokens(tokens_file: Path) -> int:
    total = 0
    with pq.ParquetFile(tokens_file) as file:
        for batch in file.iter_batches(columns=["input_ids"]):
            total += len(batch.column(0).values)
    return total
